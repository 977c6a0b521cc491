"""The token loop: one forward per step for all rows of all requests, until every answer is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from halludecode.core import step as hd_step
from halludecode.core.step import Step
from halludecode.engines.api import Choice, Sampling, TokenLogprob
from halludecode.engines.explain import (
    BLIND,
    Glance,
    TokenReading,
    explaining,
    explanation,
    readings,
)
from halludecode.engines.hf.batch import Batch
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
    scores: dict[str, float] = field(default_factory=dict)
    raw: list[Tensor] = field(default_factory=list)  # float32 [V] each, on the CPU
    read: list[TokenReading] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # characters after each token

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
        rules: TokenRules = FREE,
    ) -> None:
        self.batch, self.sampling, self.words, self.limit = batch, sampling, words, limit
        self._eos = frozenset(eos)
        self._keep_logits = keep_logits
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
            first = step == 0 and any(
                row.life == "prefill"
                for request in self.batch.requests
                for row in request.rows.values()
            )
            if len(keep) <= COMPACT * len(live) or first:
                token = token[keep]
                self._alive = [self._alive[i] for i in keep]
                self.sampler.select(torch.tensor(keep))
                self._select(keep, drop_prefill_rows=first)
            logits = self.batch.step(token.cpu())
            glances = self.batch.glances()

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
        written = [live[request].ids for request, _ in self.batch.rows]
        logits = self.sampler.ban(logits, step, written)
        main = logits[: len(live)]
        self._check_left(main, live)
        combined = self._combine(logits, step)
        if step == 0 and self.words:
            self._score_words(self._combine(logits, step, masking=False), live)
        history = self._history(live) if self.sampling.repetition_penalty != 1 else []
        token = self.sampler.draw(self.sampler.penalise(combined, history, step), step)
        plain = self.sampler.draw(self.sampler.penalise(main, history, step), step)
        self._keep_logprobs(combined, token, live)
        differs, ids = (token != plain).tolist(), token.tolist()
        changed = self.batch.context.changed
        touched = changed.tolist() if changed is not None else [False] * len(live)
        for i, answer in enumerate(live):
            if not answer.finish:
                answer.differs += differs[i]
                if self._keep_logits:
                    answer.raw.append(main[i].cpu())
                answer.changed = touched[i]
                self._append(answer, ids[i])
        return token

    def _check_left(self, main: Tensor, live: list[AnswerState]) -> None:
        """Something must be left to write; only rules of a request can ban everything."""
        if self.sampler.rules:
            empty = (main.amax(-1) == NEG_INF).tolist()
            for answer, nothing in zip(live, empty, strict=True):
                if nothing and not answer.finish:
                    raise exhausted(len(answer.ids))

    def _combine(self, logits: Tensor, step: int, *, masking: bool = True) -> Tensor:
        main = logits[: len(self._alive)]
        t = torch.full((len(main), 1), step + 1, device=logits.device)
        parts: list[Any] = []
        for i, part in enumerate(self.batch.plan.parts):
            if part.combines:
                rows = {name: logits[place.at] for name, place in self.batch.index[i].items()}
                state = self.batch.states[i]
                early = {n: self.batch.context.early[n] for n in part.early}
                shown = Step(
                    rows,
                    t,
                    state,
                    self.batch.decode,
                    early,
                    masking=masking,
                    owner=part.strategy.name,
                )
                parts.append((part.strategy, shown))
        acting = [part.strategy.name for part in self.batch.plan.parts]
        sees = [bool(request.prompt.pictures) for request in self.batch.requests]
        pictured = None if all(sees) else torch.tensor(sees, device=main.device)
        combined = hd_step.combine(parts, main, pictured, acting)
        return combined.check() if masking else combined.scores

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

    def _score_words(self, combined: Tensor, live: list[AnswerState]) -> None:
        for word, ids in self.words.items():
            best = combined[:, ids].amax(-1).tolist()
            for answer, score in zip(live, best, strict=True):
                answer.scores[word] = score

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
