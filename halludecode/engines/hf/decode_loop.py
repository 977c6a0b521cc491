"""The token loop: one forward per step for all rows of all requests, until every answer is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from halludecode.core import step as hd_step
from halludecode.core.step import Step
from halludecode.core.tracing import TracedStrategy
from halludecode.engines.api import Choice, Sampling, TokenLogprob
from halludecode.engines.explain import (
    BLIND,
    Glance,
    TokenReading,
    explaining,
    explanation,
    readings,
    unprobed,
)
from halludecode.engines.hf.batch import Batch
from halludecode.engines.hf.late_rows import Asked, LateRows, Logits
from halludecode.engines.outputs import settled
from halludecode.engines.sampling import FREE, Sampler
from halludecode.engines.token_rules import NEG_INF, TokenRules, exhausted

COMPACT = 0.75  # drop finished rows from the batch once fewer than this share is alive


@dataclass
class AnswerState:
    """One child's answer while it is written.

    Args:
        request: Place of its request in the batch it started in.
        prompt: int64 ids of its prompt.
    """

    request: int
    prompt: Tensor
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    differs: int = 0
    changed: bool = False
    started: bool = True
    decided: bool = False
    scores: dict[str, float] = field(default_factory=dict)
    raw: list[Tensor] = field(default_factory=list)  # float32 [V] each, on the CPU
    read: list[TokenReading] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # characters after each token
    first: dict[tuple[int, str], Tensor] = field(default_factory=dict)  # see `Step.first`

    def choice(self, sampling: Sampling) -> Choice:
        """The finished answer."""
        logprobs = tuple(self.logprobs) if sampling.logprobs is not None else None
        explained = explanation(self.text, self.ids, self.ends, self.read) if self.read else None
        return Choice(self.text, tuple(self.ids), self.finish or "length", logprobs, explained)


class DecodeLoop:
    """Writes the answers of one batch.

    Args:
        batch: Prefilled rows.
        sampling: How tokens are drawn.
        eos: End-of-sequence ids.
        words: Words whose first-step scores are wanted -> their token ids.
        limit: Most tokens a row may reach (the model's context).
        keep_logits: Keep the main row's raw logits of every written token.
        late: Rows beside main, where they wait until they are needed.
        rules: Tokens that are banned, allowed or pushed.

    Raises:
        InvalidRequest: The rules leave no token to go on with.
    """

    def __init__(
        self,
        batch: Batch,
        sampling: Sampling,
        eos: Sequence[int],
        words: Mapping[str, list[int]],
        limit: int,
        *,
        keep_logits: bool = False,
        late: LateRows | None = None,
        rules: TokenRules = FREE,
    ) -> None:
        self.batch, self.sampling, self.words, self.limit = batch, sampling, words, limit
        self._eos = frozenset(eos)
        self._keep_logits, self._late = keep_logits, late
        self._tokenizer = batch.row_builder.inputs.tokenizer
        count = len(batch.requests)
        self.answers = [
            AnswerState(r, batch.requests[r].rows["main"].input_ids)
            for r in range(count)
            for _ in range(sampling.n)
        ]
        children = [child for _ in range(count) for child in range(sampling.n)]
        self.sampler = Sampler(sampling, children, eos, rules)
        self._alive = list(range(len(self.answers)))  # answer of every request now in the batch

    def run(self, logits: Tensor) -> Iterator[list[AnswerState]]:
        """From the prefill's logits to the end; yields the live answers after every token."""
        at = torch.tensor(
            [r for r in range(len(self.batch.requests)) for _ in range(self.sampling.n)]
        )
        rows = self._rows_of(at)
        logits = logits[rows]
        glances = self.batch.glances()
        glances = [glances[r] for r in at.tolist()] if glances else []
        self._select(at.tolist(), drop_prefill_rows=False)
        for step in range(self.sampling.max_new_tokens):
            live = [self.answers[a] for a in self._alive]
            token = self._choose(logits, live, step)
            self._read(logits, token, live, glances)
            yield live
            keep = [i for i, answer in enumerate(live) if not answer.finish]
            if not keep or step + 1 == self.sampling.max_new_tokens:
                return
            if self._late is not None:
                self._late.admit_to(self.batch, self._alive, [a.request for a in live])
            first = step == 0 and any(
                row.life == "prefill"
                for request in self.batch.requests
                for row in request.rows.values()
            )
            if len(keep) <= COMPACT * len(live) or first:
                token = token[keep]
                gone = set(self._alive)
                self._alive = [self._alive[i] for i in keep]
                if self._late is not None:
                    self._late.forget(list(gone - set(self._alive)))
                self.sampler.select(torch.tensor(keep))
                self._select(keep, drop_prefill_rows=first)
            logits = self.batch.step(token.cpu())
            glances = self.batch.glances()

    def choose(self, batch: Any, logits: Tensor, step: int) -> dict[int, int]:
        """Write one token into every unfinished answer, where others make the forwards.

        Args:
            batch: The rows of the unfinished answers, in their order; see `shared_rows.RowsOfOne`.
            logits: Theirs, float32 [rows, V].
            step: Tokens already written.

        Returns:
            Places of the answers that go on -> their tokens.
        """
        self.batch = batch
        live = [self.answers[a] for a in self._alive]
        token = self._choose(logits, live, step).tolist()
        goes_on = [i for i, answer in enumerate(live) if not answer.finish]
        self._alive = [self._alive[i] for i in goes_on]
        self.sampler.select(torch.tensor(goes_on, dtype=torch.long))
        return {i: token[i] for i in goes_on}

    def _rows_of(self, requests: Tensor) -> Tensor:
        place = {key: i for i, key in enumerate(self.batch.rows)}
        names = dict.fromkeys(name for _, name in self.batch.rows)
        return torch.tensor(
            [place[r, name] for name in names for r in requests.tolist() if (r, name) in place]
        )

    def _select(self, requests: list[int], *, drop_prefill_rows: bool) -> None:
        if drop_prefill_rows or requests != list(range(len(self.batch.requests))):
            self.batch.select(requests, drop_prefill_rows=drop_prefill_rows)

    def _choose(self, logits: Tensor, live: list[AnswerState], step: int) -> Tensor:
        """Combine, penalise, draw, and write the token into every live answer."""
        if step == 0:
            self._keep_first(logits, live)
        written = [live[request].ids for request, _ in self.batch.rows]
        self.batch.context.note_confidence(logits[: len(live)])
        logits = self.sampler.ban(logits, step, written)
        main = logits[: len(live)]
        self._check_left(main, live)
        found = self._undecided(logits, live, step)
        combined = self._combined(self._steps(found, logits, step), logits)
        if step == 0 and self.words:
            self._score_words(logits, live, found)
        history = self._history(live) if self.sampling.repetition_penalty != 1 else []
        token = self.sampler.draw(self.sampler.penalise(combined, history, step), step)
        plain = self.sampler.draw(self.sampler.penalise(main, history, step), step)
        self._keep_logprobs(combined, token, live)
        differs, ids = (token != plain).tolist(), token.tolist()
        changed = self.batch.context.changed
        touched = changed.tolist() if changed is not None else [False] * len(live)
        if self._late is not None:
            touched = [
                hit or a in self._late.changed for hit, a in zip(touched, self._alive, strict=False)
            ]
        for i, answer in enumerate(live):
            if not answer.finish:
                answer.differs += differs[i]
                if self._keep_logits:
                    answer.raw.append(main[i].cpu())
                answer.changed = touched[i]
                self._append(answer, ids[i])
        return token

    def _keep_first(self, logits: Tensor, live: list[AnswerState]) -> None:
        """Logits of token 1, where a strategy goes on reading them."""
        for i, part in enumerate(self.batch.plan.parts):
            for name in part.firsts:
                for answer, own in zip(live, logits[self.batch.index[i][name].at], strict=True):
                    answer.first[i, name] = own

    def _check_left(self, main: Tensor, live: list[AnswerState]) -> None:
        """Something must be left to write; only rules of a request can ban everything."""
        if self.sampler.rules:
            empty = (main.amax(-1) == NEG_INF).tolist()
            for answer, nothing in zip(live, empty, strict=True):
                if nothing and not answer.finish:
                    raise exhausted(len(answer.ids))

    def _undecided(
        self, logits: Tensor, live: list[AnswerState], step: int
    ) -> dict[int, Logits] | None:
        """Per live answer that its main row does not decide, the other rows' logits, bans applied.

        None where all rows are in the batch.
        """
        if self._late is None:
            return None
        sees = torch.tensor([bool(r.prompt.pictures) for r in self.batch.requests])
        decided = self._decided(self._steps({}, logits, step), logits) | ~sees
        here = [a in self._late.admitted for a in self._alive]
        open_ = [i for i, a in enumerate(live) if not (a.finish or decided[i] or here[i])]
        asked = [Asked(self._alive[i], live[i].request, tuple(live[i].ids)) for i in open_]
        rows = self._late.logits(asked) if asked else []
        for i, answer in enumerate(live):
            answer.started = self._alive[i] in self._late.started_answers
        return {
            i: {name: self.sampler.ban(x[None], step, [live[i].ids])[0] for name, x in own.items()}
            for i, own in zip(open_, rows, strict=True)
        }

    def _rows_of_part(
        self, i: int, part: TracedStrategy, logits: Tensor, found: dict[int, Logits] | None
    ) -> dict[str, Tensor]:
        """Logits [B, V] of a part's rows; where a row was not needed, or is none, main's."""
        if found is None:
            return {name: logits[place.at] for name, place in self.batch.index[i].items()}
        main = logits[: len(self._alive)]
        rows = {"main": main}
        for name in part.extra:
            place = self.batch.index[i].get(name)
            rows[name] = main if place is None else logits[place.at]
            own = {n: x.get((i, name), main[n]) for n, x in found.items()}
            if own:
                at = torch.tensor(list(own), device=main.device)
                rows[name] = rows[name].index_copy(0, at, torch.stack(list(own.values())))
        return rows

    def _steps(
        self,
        found: dict[int, Logits] | None,
        logits: Tensor,
        step: int,
        *,
        masking: bool = True,
    ) -> list[tuple[TracedStrategy, Step]]:
        t = torch.full((len(self._alive), 1), step + 1, device=logits.device)
        return [
            (
                part,
                Step(
                    self._rows_of_part(i, part, logits, found),
                    t,
                    self.batch.states[i],
                    self.batch.decode,
                    self._early(i, part, "main"),
                    beside={
                        name: self._early(i, part, name)
                        for name in part.early_rows & self.batch.index[i].keys()
                    },
                    branch=self.batch.branch(i),
                    first={
                        name: torch.stack([self.answers[a].first[i, name] for a in self._alive])
                        for name in part.firsts
                    },
                    masking=masking,
                    owner=part.strategy.name,
                ),
            )
            for i, part in enumerate(self.batch.plan.parts)
            if part.combines
        ]

    def _early(self, i: int, part: TracedStrategy, name: str) -> dict[int, Tensor]:
        """[B, D] by layer: residuals of a part's row that `combine` may decode."""
        at = self.batch.index[i][name].at
        return {n: self.batch.context.early[n][at] for n in part.early}

    def _combined(
        self,
        steps: Sequence[tuple[TracedStrategy, Step]],
        logits: Tensor,
        *,
        checked: bool = True,
    ) -> Tensor:
        main = logits[: len(self._alive)]
        acting = [part.strategy.name for part in self.batch.plan.parts]
        sees = [bool(request.prompt.pictures) for request in self.batch.requests]
        pictured = None if all(sees) else torch.tensor(sees, device=main.device)
        pairs = [(part.strategy, shown) for part, shown in steps]
        combined = hd_step.combine(pairs, main, pictured, acting)
        return combined.check() if checked else combined.scores

    def _history(self, live: list[AnswerState]) -> list[Tensor]:
        return [
            torch.cat([answer.prompt, torch.tensor(answer.ids, dtype=torch.long)])
            for answer in live
        ]

    def _read(
        self, logits: Tensor, token: Tensor, live: list[AnswerState], glances: list[Glance]
    ) -> None:
        """What the tokens just written owe to the image, where that is asked for."""
        place = explaining(self.batch.plan)
        if place is None:
            return
        blind = logits[self.batch.index[place].get(BLIND, self.batch.index[place]["main"]).at]
        by_answer = readings(logits[: len(live)], blind, token, glances)
        for request, answer, reading in zip(self.batch.requests, live, by_answer, strict=True):
            if request.prompt.pictures and len(answer.read) < len(answer.ids):
                answer.read.append(reading)
                answer.ends.append(len(settled(answer.text, ())))

    def _append(self, answer: AnswerState, token: int) -> None:
        answer.ids.append(token)
        if token in self._eos:
            answer.finish = "stop"
        elif len(answer.prompt) + len(answer.ids) >= self.limit:
            answer.finish = "length"
        answer.text = self._decode(answer.ids)
        for stop in self.sampling.stop:
            at = answer.text.find(stop)
            if at >= 0:
                answer.text, answer.finish = answer.text[:at], "stop"

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _score_words(
        self, logits: Tensor, live: list[AnswerState], found: dict[int, Logits] | None
    ) -> None:
        """Unmasked scores of the first token; the main row's own where it decides the token."""
        steps = self._steps(found, logits, 0, masking=False)
        scores = self._combined(steps, logits, checked=False)
        if unprobed(self.batch.plan).can_wait:
            sees = torch.tensor([bool(r.prompt.pictures) for r in self.batch.requests])
            alone = self._decided(steps, logits) & sees
            for answer, own in zip(live, alone.tolist(), strict=True):
                answer.decided = own
            scores = scores.where(~alone.to(scores.device)[:, None], logits[: len(live)])
        for word, ids in self.words.items():
            best = scores[:, ids].amax(-1).tolist()
            for answer, score in zip(live, best, strict=True):
                answer.scores[word] = score

    def _decided(self, steps: Sequence[tuple[TracedStrategy, Step]], logits: Tensor) -> Tensor:
        """Bool [B], on the processor."""
        return hd_step.decided(steps, logits[: len(self._alive)]).cpu()

    def _keep_logprobs(self, combined: Tensor, token: Tensor, live: list[AnswerState]) -> None:
        if self.sampling.logprobs is None:
            return
        log_p = combined.log_softmax(-1)
        chosen = log_p.gather(-1, token[:, None])[:, 0].tolist()
        top = log_p.topk(min(self.sampling.logprobs, log_p.shape[-1]), dim=-1)
        values, indices, ids = top.values.tolist(), top.indices.tolist(), token.tolist()
        for i, answer in enumerate(live):
            if not answer.finish:
                word = self._tokenizer.decode([ids[i]])
                best = dict(zip(indices[i], values[i], strict=True))
                answer.logprobs.append(TokenLogprob(ids[i], word, chosen[i], best))
