"""In a worker: sampling of groups: rows are combined, the main row's token goes to all.

What bans, allows or pushes tokens acts on all rows before that (`bans`); everything else that vLLM
does with logits (penalties, temperature, top-k and top-p) acts on the combined scores of the main
row. The noise of our seeded requests is our own, and temperatures that vLLM would not take, so that
their tokens are those of every other engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from halludecode.core import step as hd_step
from halludecode.core.errors import HookNeverFired
from halludecode.core.plan import Plan
from halludecode.core.state import stack
from halludecode.core.step import Step
from halludecode.core.tracing import TracedStrategy
from halludecode.engines import sampling
from halludecode.engines.api import Sampling
from halludecode.engines.explain import (
    BLIND,
    Glance,
    carried,
    explaining,
    on_image,
    readings,
)
from halludecode.engines.sampling import gumbel, tempered
from halludecode.engines.vllm.worker import first_logits, undecided
from halludecode.engines.vllm.worker.bans import ban
from halludecode.engines.vllm.worker.captured import Captured
from halludecode.engines.vllm.worker.state import WorkerState
from halludecode.engines.vllm.worker.step_batch import (
    Rows,
    ScheduledRow,
    StepBatch,
    placed,
    rows_of,
)


@dataclass
class Current:
    """The step being sampled."""

    groups: list[Rows] = field(default_factory=list)
    plain: dict[str, Tensor] = field(default_factory=dict)  # raw main logits [V] by group
    probes: dict[str, tuple[int, Tensor]] = field(default_factory=dict)  # see `_keep_probes`


class GroupSampling:
    """What `sampler_v1` and `sampler_v2` call where vLLM's samplers begin, draw and end."""

    runner: Any
    current: Current

    @property
    def state(self) -> WorkerState:
        """What the worker keeps of our requests."""
        return self.runner.hd_state

    def combined(
        self, logits: Tensor, batch: StepBatch, written: Callable[[ScheduledRow], Sequence[int]]
    ) -> Tensor:
        """Logits [rows, V] in which every complete group is combined into its main row.

        Args:
            logits: As the forward gave them, a grammar's mask applied.
            batch: Our rows of the step.
            written: See `bans.ban`.
        """
        self.current = Current(list(batch.sampling()))
        self._keep_logits(logits)
        self._keep_probes(logits)
        first_logits.keep(self.state, self.current.groups, logits)
        logits = ban(self.current.groups, logits, written, self.state)
        undecided.ask(self, logits)
        return self._combine(logits)

    def drawn(
        self, logits: Tensor, k: Tensor | None, p: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """Places and tokens of main rows whose noise is ours; None where there are none.

        vLLM's noise depends on how often a request was drawn for before, and on the device. Ours is
        a function of a row's key, of how many tokens it has written and of the word, so that every
        engine draws the same tokens.

        Args:
            logits: Processed, but for top-k and top-p; left as they are.
            k: Tokens left of each row.
            p: Probability left of each row.
        """
        rows = self._rows_with_our_noise()
        if not rows:
            return None
        at = placed([row.index for row in rows], logits.device)
        cut = apply_top_k_top_p(
            logits[at].clone(), None if k is None else k[at], None if p is None else p[at]
        )
        keys = placed([row.metadata.noise_key for row in rows], logits.device)
        step = placed([row.written for row in rows], logits.device)
        return at, (cut + gumbel(keys, step, logits.shape[-1])).argmax(-1)

    def tempered(self, logits: Tensor) -> list[tuple[int, Tensor]]:
        """Places and scores of our rows whose temperature vLLM would not take."""
        rows = [row for row in self._rows_with_our_noise() if row.metadata.temperature]
        return [(row.index, tempered(logits[row.index], _temperature(row))) for row in rows]

    def settle(self, tokens: Tensor) -> None:
        """The main row's token is every row's token; in place."""
        pairs = [
            (row.index, rows["main"].index)
            for rows in self.current.groups
            for name, row in rows.items()
            if name != "main"
        ]
        if pairs:
            to, source = placed(pairs, tokens.device).T
            tokens.index_copy_(0, to, tokens.index_select(0, source))
        self._count_differing(tokens)
        self._read_explained(tokens)
        self._end_failed(tokens)

    def _keep_logits(self, logits: Tensor) -> None:
        for rows in self.current.groups:
            main = rows["main"]
            metadata, plan = main.metadata, self.state.plan(main.metadata.plan)
            if metadata.capture and metadata.capture["logits"]:
                captured = self.state.captured.setdefault(metadata.group, Captured())
                captured.logits[main.written] = logits[main.index].detach().float().cpu()
            elif plan is not None and "confidence" in plan.needs:
                sure = logits[main.index].float().softmax(-1).amax()
                self.state.record(metadata.group).sure[main.written] = sure

    def _keep_probes(self, logits: Tensor) -> None:
        """Of groups that are explained: the probe's place, and log p [2, V], with image first."""
        for rows in self.current.groups:
            metadata = rows["main"].metadata
            plan = self.state.plan(metadata.plan)
            place = None if plan is None else explaining(plan)
            if place is not None and metadata.pictured and metadata.local_names:
                blind = dict(metadata.local_names[place])[BLIND]
                pair = logits[[rows["main"].index, rows[blind].index]].float().log_softmax(-1)
                self.current.probes[metadata.group] = place, pair

    def _read_explained(self, tokens: Tensor) -> None:
        """What the tokens just drawn owe to the image, where that is asked for."""
        for rows in self.current.groups:
            main = rows["main"]
            group = main.metadata.group
            place, pair = self.current.probes.get(group, (0, None))
            if pair is None:
                continue
            record, token = self.state.record(group), tokens[main.index].long()
            try:
                reading = readings(pair[:1], pair[1:], token.view(1), [Glance(0.0)])[0]
                attention = self._on_image(main, place).tolist()
                record.readings[main.written] = [reading.grounding, reading.entropy, attention]
            except Exception as error:
                record.fail(error, "explain")

    def _on_image(self, main: ScheduledRow, place: int) -> Tensor:
        """What the probe left of the query that drew a row's token."""
        forward = self.runner.hd_forward()
        for edited in forward.edit_batches if forward is not None else ():
            for r, span in enumerate(edited.spans.get("main", ())):
                if span.row is main and span.stop == main.stop and edited.carry[place]:
                    return on_image(carried(edited.carry[place])[r], main.picture)
        raise HookNeverFired("The attention of a token that is to be explained was never seen.")

    def _end_failed(self, tokens: Tensor) -> None:
        """A void answer ends here, with an end token.

        A worker cannot end a request; the scheduler ends one whose main row wrote an end token, as
        it does every day, and the front end then reads in the report that the answer is void.
        """
        for rows in self.current.groups:
            main = rows["main"]
            end_tokens = main.request.sampling_params.stop_token_ids
            record = self.state.records.get(main.metadata.group)
            if record is not None and record.error and end_tokens:
                for row in rows.values():
                    tokens[row.index] = end_tokens[0]

    def _rows_with_our_noise(self) -> list[ScheduledRow]:
        mains = [rows["main"] for rows in self.current.groups]
        return [main for main in mains if main.metadata.noise_key >= 0]

    def _combine(self, logits: Tensor) -> Tensor:
        """Logits with the combined scores of every group in its main row."""
        alike: dict[tuple[str, str], list[Rows]] = {}  # under one plan, with rows of one naming
        for rows in self.current.groups:
            metadata = rows["main"].metadata
            if metadata.plan or (metadata.score_words and rows["main"].written == 0):
                alike.setdefault((metadata.plan, str(metadata.local_names)), []).append(rows)
        if not alike:
            return logits
        logits = logits.float()
        out = logits.clone()
        for (text, _), groups in alike.items():
            plan = self.state.plan(text)
            try:
                combined = self._combined(plan, groups, logits)
            except Exception as error:
                for rows in groups:
                    self.state.record(rows["main"].metadata.group).fail(error, text)
                continue
            out[_at(groups, "main", logits)] = combined
            for rows in groups:
                self.current.plain[rows["main"].metadata.group] = logits[rows["main"].index]
        return out

    def _combined(self, plan: Plan | None, groups: Sequence[Rows], logits: Tensor) -> Tensor:
        """float32 [B, V] scores of groups under one plan."""
        main = logits[_at(groups, "main", logits)]
        first = [i for i, rows in enumerate(groups) if rows["main"].written == 0]
        scored = [i for i in first if groups[i]["main"].metadata.score_words]
        if scored:
            scored_groups = [groups[i] for i in scored]
            unmasked = self._scores(plan, scored_groups, logits, main[scored], masking=False)
            alone = undecided.decided(self, plan, scored_groups, logits, main[scored])
            unmasked = unmasked.where(~alone[:, None], main[scored])
            for scores, rows, own in zip(unmasked, scored_groups, alone.tolist(), strict=True):
                metadata = rows["main"].metadata
                record = self.state.record(metadata.group)
                record.decided = own
                for word, ids in (metadata.score_words or {}).items():
                    record.scores[word] = float(scores[ids].max())
        return self._scores(plan, groups, logits, main, masking=True)

    def _scores(
        self,
        plan: Plan | None,
        groups: Sequence[Rows],
        logits: Tensor,
        main: Tensor,
        *,
        masking: bool,
    ) -> Tensor:
        """One composition of all parts, or main where there is none or no picture.

        Broken scores void the answers of their groups alone; on a GPU that is read at their end.
        """
        if plan is None:
            return main
        steps = self.steps(plan, groups, logits, masking=masking)
        acting = [part.strategy.name for part in plan.parts]
        pairs = [(part.strategy, step) for part, step in steps]
        combined = hd_step.combine(pairs, main, undecided.pictured(groups, main), acting)
        for r, rows in enumerate(groups if masking else ()):
            self.state.record(rows["main"].metadata.group).note_broken(combined, r)
        return combined.scores

    def steps(
        self, plan: Plan, groups: Sequence[Rows], logits: Tensor, *, masking: bool = True
    ) -> list[tuple[TracedStrategy, Step]]:
        """What every part that combines sees of some groups."""
        decode = self.runner._hd_decode
        requests = [rows["main"].metadata for rows in groups]
        names = [request.group for request in requests]
        t = placed([[rows["main"].written + 1] for rows in groups], logits.device)
        steps = list[tuple[TracedStrategy, Step]]()
        for i, part in enumerate(plan.parts):
            if part.combines:
                named = rows_of(i, groups, logits)
                if groups[0]["main"].metadata.alone:  # what it decides is the same for any others
                    named |= dict.fromkeys(part.extra, named["main"])
                own_states = [self.state.states_of(request)[i] for request in requests]
                state = _on(stack(own_states), logits.device)
                forward = self.runner.hd_forward()
                early = forward.early_of(i, part, groups, named)
                first = first_logits.of(self.state, names, i, part)
                branch = forward.branch_of(i, part, groups)
                more = {"beside": early, "branch": branch, "first": first, "masking": masking}
                step = Step(named, t, state, decode, **more, owner=part.strategy.name)
                steps.append((part, step))
        return steps

    def _count_differing(self, tokens: Tensor) -> None:
        """Tokens that differ from the plain model's choice, where that is cheaply known."""
        alike: dict[tuple[float, ...], list[ScheduledRow]] = {}
        for rows in self.current.groups:
            main = rows["main"]
            metadata, params = main.metadata, main.request.sampling_params
            if metadata.plan and metadata.group in self.current.plain:
                # Noise of vLLM's own, or what was written is not known here yet.
                late = params.repetition_penalty != 1 and self.runner.hd_history(main) is None
                if late or (params.temperature > 0 and metadata.noise_key < 0):
                    self.state.record(metadata.group).differs = None
                    continue
                how = (_temperature(main), params.top_p, params.top_k, params.repetition_penalty)
                alike.setdefault(how, []).append(main)
        for mains in alike.values():
            at = placed([main.index for main in mains], tokens.device)
            differs = tokens[at] != self._plain_tokens(mains)
            for i, main in enumerate(mains):
                record = self.state.record(main.metadata.group)
                if record.differs is not None:
                    record.differs.append((main.written, (differs, i)))

    def _plain_tokens(self, rows: Sequence[ScheduledRow]) -> Tensor:
        """int64 [B]: what the plain model would have written, for rows that are sampled alike."""
        scores = torch.stack([self.current.plain[row.metadata.group] for row in rows])
        params = rows[0].request.sampling_params
        ours = Sampling(
            temperature=_temperature(rows[0]),
            top_p=params.top_p,
            top_k=max(params.top_k, 0),
            repetition_penalty=params.repetition_penalty,
            seed=0,
        )
        drawer = sampling.Sampler(ours, [0], [])  # end tokens were banned before, see `bans`
        drawer.keys = placed([row.metadata.noise_key for row in rows], scores.device)
        history: list[Tensor] = []
        if params.repetition_penalty != 1:
            history = [self.runner.hd_history(row) for row in rows]
        step = placed([row.written for row in rows], scores.device)
        return drawer.draw(drawer.penalise(scores, history, 0), step)


def _temperature(main: ScheduledRow) -> float:
    """As the request asked for it."""
    return main.metadata.temperature or main.request.sampling_params.temperature


def _at(groups: Sequence[Rows], name: str, like: Tensor) -> Tensor:
    return placed([rows[name].index for rows in groups], like.device)


def _on(state: Any, device: torch.device) -> Any:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in state.items()}
