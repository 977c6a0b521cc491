"""vLLM's sampler for groups: rows are combined first, the main row's token goes to all of them.

Everything vLLM does with logits (allowed tokens, penalties, temperature, top-k and top-p) then acts
on the combined scores of the main row. Only the noise of our seeded requests is our own, so that
their tokens are those of every other engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.sample.sampler import Sampler

from halludecode.core import step as hd_step
from halludecode.core.errors import HalluDecodeError, HookNeverFired
from halludecode.core.plan import Plan
from halludecode.core.state import stack
from halludecode.core.step import Step
from halludecode.engines import sampling
from halludecode.engines.api import Sampling
from halludecode.engines.explain import BLIND, Glance, carried, explaining, on_image, readings
from halludecode.engines.sampling import NEG_INF, gumbel
from halludecode.engines.vllm.worker.capture import Captured
from halludecode.engines.vllm.worker.step_batch import ScheduledRow, StepBatch, placed

Rows = dict[str, ScheduledRow]


class Noise(nn.Module):
    """In place of vLLM's top-k/top-p sampler: our counter noise for our rows, its own for others.

    Args:
        stock: What vLLM uses.
        sampler: Whose current step is sampled.
    """

    def __init__(self, stock: nn.Module, sampler: GroupSampler) -> None:
        super().__init__()
        self.stock = stock
        self._sampler = [sampler]  # in a list: it is this module's parent

    def forward(
        self,
        logits: Tensor,
        generators: dict[int, torch.Generator],
        k: Tensor | None,
        p: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens int64 [rows], as the stock sampler gives them."""
        rows = self._sampler[0].noised()
        if not rows:
            return self.stock(logits, generators, k, p)
        at = placed([row.index for row in rows], logits.device)
        kept = apply_top_k_top_p(
            logits[at].clone(), None if k is None else k[at], None if p is None else p[at]
        )
        keys = placed([row.tag.noise for row in rows], logits.device)
        step = placed([row.written for row in rows], logits.device)
        drawn = (kept + gumbel(keys, step, logits.shape[-1])).argmax(-1)
        tokens, processed = self.stock(logits, generators, k, p)
        tokens = tokens.long()
        tokens[at] = drawn
        return tokens, processed


@dataclass
class Current:
    """The step being sampled."""

    groups: list[Rows] = field(default_factory=list)
    plain: dict[str, Tensor] = field(default_factory=dict)  # raw main logits [V] by group
    pairs: dict[str, tuple[int, Tensor]] = field(default_factory=dict)  # see `_keep_pairs`


class GroupSampler(Sampler):
    """vLLM's sampler; `install` makes an existing one of this class."""

    runner: Any
    current: Current

    def forward(
        self,
        logits: Tensor,
        sampling_metadata: Any,
        predict_bonus_token: bool = False,
        logprobs_mode_override: Any = None,
    ) -> Any:
        """Combine every complete group into its main row, then sample as vLLM does."""
        self.current = Current()
        view: StepBatch | None = self.runner.hd_view()
        batch = self.runner.input_batch
        if view is not None and logits is not None and logits.shape[0] == batch.num_reqs:
            self.current.groups = list(view.sampling())
            self._keep_logits(logits)
            self._keep_pairs(logits)
            logits = self._combine(self._ban(logits))
        return super().forward(
            logits, sampling_metadata, predict_bonus_token, logprobs_mode_override
        )

    def sample(
        self, logits: Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The main row's token is every row's token."""
        tokens, processed = super().sample(logits, sampling_metadata, *args, **kwargs)
        groups = self.current.groups
        pairs = [
            (row.index, rows["main"].index)
            for rows in groups
            for name, row in rows.items()
            if name != "main"
        ]
        if pairs:
            to, source = placed(pairs, tokens.device).T
            tokens.index_copy_(0, to, tokens.index_select(0, source))
        self._count(tokens)
        self._read(tokens)
        self._end_failed(tokens)
        return tokens, processed

    def _keep_logits(self, logits: Tensor) -> None:
        for rows in self.current.groups:
            main = rows["main"]
            if main.tag.capture and main.tag.capture["logits"]:
                kept = self.runner.hd_desk.captured.setdefault(main.tag.group, Captured())
                kept.logits[main.written] = logits[main.index].detach().float().cpu()

    def _keep_pairs(self, logits: Tensor) -> None:
        """Of groups that are explained: the probe's place, and log p [2, V], with image first."""
        for rows in self.current.groups:
            tag = rows["main"].tag
            plan = self.runner.hd_desk.plan(tag.plan)
            place = None if plan is None else explaining(plan)
            if place is not None and tag.pictured and tag.local:
                blind = dict(tag.local[place])[BLIND]
                pair = logits[[rows["main"].index, rows[blind].index]].float().log_softmax(-1)
                self.current.pairs[tag.group] = place, pair

    def _read(self, tokens: Tensor) -> None:
        """What the tokens just drawn owe to the image, where that is asked for."""
        for rows in self.current.groups:
            main = rows["main"]
            place, pair = self.current.pairs.get(main.tag.group, (0, None))
            if pair is None:
                continue
            note, token = self.runner.hd_desk.note(main.tag.group), tokens[main.index].long()
            try:
                one = readings(pair[:1], pair[1:], token.view(1), [Glance(0.0)])[0]
                seen = self._on_image(main, place).tolist()
                note.read[main.written] = [one.grounding, one.entropy, seen]
            except Exception as error:
                note.fail(error, "explain")

    def _on_image(self, main: ScheduledRow, place: int) -> Tensor:
        """What the probe left of the query that drew a row's token."""
        inside = self.runner.hd_inside()
        for unit in inside.units if inside is not None else ():
            for r, span in enumerate(unit.spans.get("main", ())):
                if span.row is main and span.stop == main.stop and unit.carry[place]:
                    return on_image(carried(unit.carry[place])[r], main.picture)
        raise HookNeverFired("The attention of a token that is to be explained was never seen.")

    def _end_failed(self, tokens: Tensor) -> None:
        """A void answer ends here, with an end token."""
        for rows in self.current.groups:
            ends = rows["main"].request.sampling_params.stop_token_ids
            known = self.runner.hd_desk.notes.get(rows["main"].tag.group)
            if known is not None and known.error and ends:
                for row in rows.values():
                    tokens[row.index] = ends[0]

    def noised(self) -> list[ScheduledRow]:
        """Main rows whose noise is ours."""
        return [r["main"] for r in self.current.groups if r["main"].tag.noise >= 0]

    def _ban(self, logits: Tensor) -> Tensor:
        """No end token below the minimum length, in any row: a mask must not leave it alone."""
        out = logits
        for rows in self.current.groups:
            main = rows["main"]
            asked = main.request.sampling_params
            if asked.min_tokens > main.written and asked.stop_token_ids:
                out = logits.float().clone() if out is logits else out
                for row in rows.values():
                    out[row.index, asked.stop_token_ids] = NEG_INF
        return out

    def _combine(self, logits: Tensor) -> Tensor:
        """Logits with the combined scores of every group in its main row."""
        kinds: dict[tuple[str, str], list[Rows]] = {}
        for rows in self.current.groups:
            tag = rows["main"].tag
            if tag.plan or (tag.words and rows["main"].written == 0):
                kinds.setdefault((tag.plan, str(tag.local)), []).append(rows)
        if not kinds:
            return logits
        logits = logits.float()
        out = logits.clone()
        for (text, _), groups in kinds.items():
            plan = self.runner.hd_desk.plan(text)
            try:
                made = self._combined(plan, groups, logits)
            except Exception as error:
                for rows in groups:
                    self.runner.hd_desk.note(rows["main"].tag.group).fail(error, text)
                continue
            out[_at(groups, "main", logits)] = made
            for rows in groups:
                self.current.plain[rows["main"].tag.group] = logits[rows["main"].index]
        return out

    def _combined(self, plan: Plan | None, groups: Sequence[Rows], logits: Tensor) -> Tensor:
        """float32 [B, V] scores of groups under one plan."""
        desk = self.runner.hd_desk
        main = logits[_at(groups, "main", logits)]
        first = [i for i, rows in enumerate(groups) if rows["main"].written == 0]
        wanted = [i for i in first if groups[i]["main"].tag.words]
        if wanted:
            some = [groups[i] for i in wanted]
            free = self._scores(plan, some, logits, main[wanted], masking=False)
            for scores, rows in zip(free, some, strict=True):
                tag = rows["main"].tag
                note = desk.note(tag.group)
                for word, ids in (tag.words or {}).items():
                    note.scores[word] = float(scores[ids].max())
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
        """One composition of all parts, or main where there is none or no picture."""
        if plan is None:
            return main
        desk, decode = self.runner.hd_desk, self.runner._hd_decode
        tags = [rows["main"].tag for rows in groups]
        written = [[rows["main"].written + 1] for rows in groups]
        t = placed(written, logits.device)
        parts: list[Any] = []
        for i, part in enumerate(plan.parts):
            if part.combines:
                named = _rows_of(i, groups, logits)
                state = _on(stack([desk.states(tag)[i] for tag in tags]), logits.device)
                inside = self.runner.hd_inside()
                asked = [tag.group for tag in tags]
                early = {layer: inside.early_of(asked, layer) for layer in part.early}
                parts.append((part.strategy, Step(named, t, state, decode, early, masking=masking)))
        combined = hd_step.combine(parts, main)
        seen = placed([tag.pictured for tag in tags], main.device)
        return combined.where(seen[:, None], main)

    def _count(self, tokens: Tensor) -> None:
        """Tokens that differ from the plain model's choice, where that is cheaply known."""
        alike: dict[tuple[float, ...], list[ScheduledRow]] = {}
        for rows in self.current.groups:
            main = rows["main"]
            if main.tag.plan and main.tag.group in self.current.plain:
                asked = main.request.sampling_params
                # Noise of vLLM's own, or what was written is not on this side yet.
                late = self.runner.use_async_scheduling and asked.repetition_penalty != 1
                if late or (asked.temperature > 0 and main.tag.noise < 0):
                    self.runner.hd_desk.note(main.tag.group).differs = None
                    continue
                how = (asked.temperature, asked.top_p, asked.top_k, asked.repetition_penalty)
                alike.setdefault(how, []).append(main)
        for mains in alike.values():
            at = placed([main.index for main in mains], tokens.device)
            differs = tokens[at] != self._plain_tokens(mains)
            for i, main in enumerate(mains):
                note = self.runner.hd_desk.note(main.tag.group)
                if note.differs is not None:
                    note.differs.append((main.written, (differs, i)))

    def _plain_tokens(self, rows: Sequence[ScheduledRow]) -> Tensor:
        """int64 [B]: what the plain model would have written, for rows that are sampled alike."""
        scores = torch.stack([self.current.plain[row.tag.group] for row in rows])
        asked = rows[0].request.sampling_params
        known = Sampling(
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=max(asked.top_k, 0),
            repetition_penalty=asked.repetition_penalty,
            seed=0,
        )
        drawer = sampling.Sampler(known, [0], [])  # end tokens were banned before, see `_ban`
        drawer.keys = placed([row.tag.noise for row in rows], scores.device)
        history: list[Tensor] = []
        if asked.repetition_penalty != 1:
            ids = [[*r.request.prompt_token_ids, *r.request.output_token_ids] for r in rows]
            history = [torch.tensor(one) for one in ids]
        step = placed([row.written for row in rows], scores.device)
        return drawer.draw(drawer.penalise(scores, history, 0), step)


def install(runner: Any) -> None:
    """Make a runner's sampler a `GroupSampler`."""
    sampler = runner.sampler
    if type(sampler) is not Sampler:
        raise HalluDecodeError(
            f"vLLM's sampler is a {type(sampler).__name__}, which halludecode does not know; "
            "use the vllm version of this package's extras."
        )
    sampler.__class__ = GroupSampler
    sampler.runner, sampler.current = runner, Current()
    sampler.topk_topp_sampler = Noise(sampler.topk_topp_sampler, sampler)


def _rows_of(i: int, groups: Sequence[Rows], logits: Tensor) -> dict[str, Tensor]:
    """Logits [B, V] by the names part ``i`` gives its rows.

    A request whose branches lack a row another one has (no picture, say) reads its main row there;
    a row that was dropped is left out.
    """
    local = [dict(rows["main"].tag.local[i]) for rows in groups]
    made: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for one in local for name in one):
        labels = [one.get(name, "main") for one in local]
        if all(label in rows for rows, label in zip(groups, labels, strict=True)):
            at = [rows[label].index for rows, label in zip(groups, labels, strict=True)]
            made[name] = logits[placed(at, logits.device)]
    return made


def _at(groups: Sequence[Rows], name: str, like: Tensor) -> Tensor:
    return placed([rows[name].index for rows in groups], like.device)


def _on(state: Any, device: torch.device) -> Any:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in state.items()}
