"""The search for one request's answer: beams whose candidates are tried before they are chosen.

Beams end and are ranked as in transformers' beam search with its defaults: by log-probability over
length, until the best option cannot beat the worst of ``width`` ended ones. Everything here is on
the CPU and in float64; the forwards are asked for by yielding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from halludecode.core.beam_search import BeamSearch, Peek
from halludecode.engines.api import Sampling, TokenLogprob
from halludecode.engines.hf.decode_loop import AnswerState
from halludecode.engines.hf.token_tree import Chosen, TreeResult, TreeStep
from halludecode.engines.sampling import FREE, Sampler
from halludecode.engines.token_rules import NEG_INF, TokenRules, exhausted

NOWHERE = -1


@dataclass(frozen=True)
class Top:
    """The likeliest next tokens of a beam.

    Args:
        ids: int64 [K].
        logits: float64 [K], largest first, penalties of `Sampling` included.
        rest: float64 [1], log-sum-exp of the logits of all other tokens.
    """

    ids: Tensor
    logits: Tensor
    rest: Tensor


@dataclass(frozen=True)
class Beam:
    """An answer being written.

    Args:
        top: What may come next.
        kept: float64 [A], see `BeamSearch.fold`.
        columns: Where its tokens lie in the tree.
        score: Sum of its tokens' log-probabilities.
        pointed: Where its candidates pointed, step by step.
        finish: "" while it lives.
    """

    top: Top
    kept: Tensor
    ids: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    score: float = 0.0
    pointed: tuple[int, ...] = ()
    differs: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str = ""
    text: str = ""


@dataclass(frozen=True)
class Choices:
    """What one beam may be continued with: ids int64 [k], log-probabilities float64 [k]."""

    ids: Tensor
    logprobs: Tensor


@dataclass(frozen=True)
class Option:
    """One token after one beam: the ``place``-th of the beam's choices."""

    beam: int
    place: int
    token: int
    total: float


class BeamScorer:
    """What all requests of a batch share: likeliest tokens, ends of answers, their text.

    Args:
        sampling: Lengths, stop strings and penalties.
        eos: End-of-sequence ids.
        tokenizer: Of the model.
        words: Words whose first-step scores are wanted -> their token ids.
        limit: Most tokens a row may reach (the model's context).
        rules: Tokens that are banned, allowed or pushed.
    """

    def __init__(
        self,
        sampling: Sampling,
        eos: Sequence[int],
        tokenizer: Any,
        words: Mapping[str, list[int]],
        limit: int,
        rules: TokenRules = FREE,
    ) -> None:
        self.sampling, self.tokenizer, self.words, self.limit = sampling, tokenizer, words, limit
        self.eos = frozenset(eos)
        self._sampler = Sampler(sampling, [0], eos, rules)

    def tops(
        self, logits: Tensor, prompt: Tensor, ids: Sequence[tuple[int, ...]], k: int
    ) -> list[Top]:
        """The k likeliest tokens after each beam, and end tokens more; one transfer for all.

        Args:
            logits: float32 [B, V].
            prompt: int64 ids of the request's prompt.
            ids: Tokens written by each beam.
            k: Tokens wanted.

        Raises:
            InvalidRequest: The rules leave a beam no token to go on with.
        """
        logits = self._sampler.ban(logits, len(ids[0]), ids)
        if self._sampler.rules and bool((logits.amax(-1) == NEG_INF).any()):
            raise exhausted(len(ids[0]))
        history = (
            [torch.cat([prompt, torch.tensor(own, dtype=torch.long)]) for own in ids]
            if self.sampling.repetition_penalty != 1
            else []
        )
        scores = self._sampler.penalise(logits, history, len(ids[0]))
        k = min(k + len(self.eos), scores.shape[-1])
        top = scores.topk(k, dim=-1)
        rest = scores.scatter(-1, top.indices, NEG_INF).logsumexp(-1, keepdim=True)
        rows = torch.cat([top.values.double(), rest.double(), top.indices.double()], -1).cpu()
        return [Top(row[k + 1 :].long(), row[:k], row[k : k + 1]) for row in rows]

    def ending(self, ids: tuple[int, ...]) -> str | None:
        """The text of an answer that has ended, by an end token or a stop string; else None."""
        ended = ids[-1] in self.eos
        if not ended and not self.sampling.stop:
            return None
        text = self.decode(ids)
        for stop in self.sampling.stop:
            at = text.find(stop)
            if at >= 0:
                text, ended = text[:at], True
        return text if ended else None

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def logprob(self, own: Choices, option: Option) -> tuple[TokenLogprob, ...]:
        """What is reported of a token, nothing unless `Sampling.logprobs` asks."""
        count = self.sampling.logprobs
        if count is None:
            return ()
        best = own.logprobs.topk(min(count, len(own.ids)))
        top = dict(zip(own.ids[best.indices].tolist(), best.values.tolist(), strict=True))
        word = self.tokenizer.decode([option.token])
        return (TokenLogprob(option.token, word, float(own.logprobs[option.place]), top),)


Search: TypeAlias = Generator[TreeStep | Chosen, TreeResult | Tensor, Beam]


class BeamSearchRun:
    """The search for one request's answer.

    Args:
        scorer: What it shares with the batch's others.
        answer: The request; first-step scores of words are put there.
        rules: The strategy's search.
        text_ids: Ids of the prompt's text, a picture counted as one.
    """

    def __init__(
        self, scorer: BeamScorer, answer: AnswerState, rules: BeamSearch, text_ids: int = 0
    ) -> None:
        self.scorer, self.answer, self.rules = scorer, answer, rules
        self.room = min(scorer.sampling.max_new_tokens, scorer.limit - len(answer.prompt))
        self.ended: tuple[Beam, ...] = ()
        self.past: dict[int, tuple[list[Beam], tuple[Beam, ...]]] = {}  # step -> beams, ended
        self.chosen: dict[int, set[tuple[int, int]]] = {}  # step -> (beam, token) that went on
        self.forbidden: dict[int, set[tuple[int, int]]] = {}
        self.used: Counter[int] = Counter()
        self.pointed: list[list[int]] = []  # step -> where its beams pointed
        self.before = text_ids if rules.prompt_counts else 0

    def run(self, logits: Tensor) -> Search:
        """Yields what the next forward must hold, then which logits of it; returns the best beam.

        Args:
            logits: float32 [1, V] of the first token.
        """
        beams = [Beam(self._tops(logits, [()])[0], torch.zeros(0, dtype=torch.float64))]
        keep, extra = list[int](), sorted({t for ids in self.scorer.words.values() for t in ids})
        choices, n = list[Choices](), self.rules.peek
        while True:
            result = None
            if n:
                tokens = [[*beam.top.ids[:n].tolist(), *extra] for beam in beams]
                result = yield TreeStep(keep, [beam.columns for beam in beams], tokens)
                assert isinstance(result, TreeResult)
                beams, choices, phi = self._peek(beams, result)
                back = self._turn(beams)
                if back is not None:
                    beams, result, keep = back, None, []
            written = len(beams[0].ids)
            if extra:  # only before the first token, of a single beam
                self._score_words(logits[0], extra, phi[0, -len(extra) :] if n else None)
                extra = []
            if result is None:
                choices = [self._open(i, beam) for i, beam in enumerate(beams)]
            going, best = self._settle(beams, choices)
            self.chosen[written] = {(option.beam, option.token) for option in going}
            if self._is_done(going, best, written + 1):
                cut = going if written + 1 == self.room else []
                return self._best([self._child(beams, choices, option) for option in cut])
            if result is None:
                paths = [beams[option.beam].columns for option in going]
                result = yield TreeStep(keep, paths, [[option.token] for option in going])
                keep = list(range(len(going)))
            else:
                keep = [option.beam * len(choices[0].ids) + option.place for option in going]
            assert isinstance(result, TreeResult)
            after = yield Chosen(keep)
            assert isinstance(after, Tensor)
            beams = self._grow(beams, choices, going, result.rows[keep], result.first, after)

    # One step -------------------------------------------------------------------------------------
    def _tops(self, logits: Tensor, ids: Sequence[tuple[int, ...]]) -> list[Top]:
        # `width` beams must be left to go on after every token that returns may forbid.
        many = self.rules.width * (self.rules.peek + 1)
        return self.scorer.tops(logits, self.answer.prompt, ids, max(many, 2 * self.rules.width))

    def _peek(
        self, beams: list[Beam], result: TreeResult
    ) -> tuple[list[Beam], list[Choices], Tensor]:
        """Beams with where they point, their candidates' log-probabilities, and the penalties."""
        past = torch.stack([beam.kept for beam in beams])[:, None]
        rows = result.rows.unflatten(0, (len(beams), -1))
        kept = self.rules.fold(past.expand(-1, rows.shape[1], -1), rows)
        image = result.image.view(len(beams), -1)
        phi, pointed = self.rules.penalty(Peek(len(beams[0].ids), kept, image))
        turned, choices = list[Beam](), list[Choices]()
        for beam, cost, at in zip(beams, phi, pointed.tolist(), strict=True):
            ids, logits = beam.top.ids[: self.rules.peek], beam.top.logits[: self.rules.peek]
            choices.append(Choices(ids, (logits - cost[: len(ids)]).log_softmax(-1)))
            turned.append(replace(beam, pointed=(*beam.pointed, at)))
        return turned, choices, phi

    def _open(self, number: int, beam: Beam) -> Choices:
        """A beam's tokens without penalty, those forbidden at this place left out."""
        here = self.forbidden.get(len(beam.ids), ())
        barred = torch.tensor([t for b, t in here if b == number], dtype=torch.long)
        logits = beam.top.logits.masked_fill(torch.isin(beam.top.ids, barred), NEG_INF)
        return Choices(beam.top.ids, logits - torch.cat([logits, beam.top.rest]).logsumexp(-1))

    def _settle(self, beams: list[Beam], choices: list[Choices]) -> tuple[list[Option], float]:
        """End beams that end among the best ``width``; the best ``width`` others go on.

        Returns:
            Those that go on, and the log-probability of the best option, ended or not.
        """
        options = [
            Option(b, place, token, beams[b].score + logprob)
            for b, own in enumerate(choices)
            for place, (token, logprob) in enumerate(
                zip(own.ids.tolist(), own.logprobs.tolist(), strict=True)
            )
            if logprob != NEG_INF
        ]
        options.sort(key=lambda option: -option.total)
        going, ended = list[Option](), list(self.ended)
        for rank, option in enumerate(options):
            text = self.scorer.ending((*beams[option.beam].ids, option.token))
            if text is None:
                going.append(option)
            elif rank < self.rules.width:
                child = self._child(beams, choices, option)
                ended.append(replace(child, finish="stop", text=text))
            if len(going) == self.rules.width:
                break
        ended.sort(key=lambda beam: -self._rank(beam))
        self.ended = tuple(ended[: self.rules.width])
        return going, options[0].total

    def _is_done(self, going: list[Option], best: float, written: int) -> bool:
        if not going or written == self.room:
            return True
        full = len(self.ended) == self.rules.width
        most = best if self.rules.prompt_counts else going[0].total
        return full and self._rank(self.ended[-1]) >= most / (self.before + written)

    def _rank(self, beam: Beam) -> float:
        """What ended beams are ranked by: log-probability over length."""
        unread = int(self.rules.prompt_counts and beam.ids[-1] in self.scorer.eos)
        return beam.score / (self.before + len(beam.ids) - unread)

    def _best(self, last: list[Beam]) -> Beam:
        """The best ended beam, those cut off by the length included."""
        cut = [replace(b, finish="length", text=self.scorer.decode(b.ids)) for b in last]
        return max((*self.ended, *cut), key=self._rank)

    def _child(self, beams: list[Beam], choices: list[Choices], option: Option) -> Beam:
        parent = beams[option.beam]
        return replace(
            parent,
            ids=(*parent.ids, option.token),
            score=option.total,
            differs=parent.differs + int(option.token != int(parent.top.ids[0])),
            logprobs=(*parent.logprobs, *self.scorer.logprob(choices[option.beam], option)),
        )

    def _grow(
        self,
        beams: list[Beam],
        choices: list[Choices],
        going: list[Option],
        rows: Tensor,
        column: int,
        after: Tensor,
    ) -> list[Beam]:
        """The beams of the next step: what goes on, with what its forward gave.

        Args:
            beams: Those that were.
            choices: Theirs.
            going: G of these.
            rows: float64 [G, A], see `TreeResult`.
            column: Where the first lies in the tree.
            after: float32 [G, V], logits of the tokens after them.
        """
        children = [self._child(beams, choices, option) for option in going]
        past = torch.stack([beam.kept for beam in children])
        kept = self.rules.fold(past, rows)
        tops = self._tops(after, [child.ids for child in children])
        return [
            replace(child, top=top, kept=row, columns=(*child.columns, column + i))
            for i, (child, top, row) in enumerate(zip(children, tops, kept, strict=True))
        ]

    # Going back -----------------------------------------------------------------------------------
    def _turn(self, beams: list[Beam]) -> list[Beam] | None:
        """Remember this step; beams of an earlier one if the rules go back, else None."""
        written = len(beams[0].ids)
        self.past[written] = (beams, self.ended)
        self.past.pop(written - self.rules.history, None)
        self.pointed[written:] = [[beam.pointed[-1] for beam in beams]]
        target = self.rules.rollback(self._history(beams), self.used)
        if target is None or written == 0:
            return None
        at = max(target, min(self.past))
        if at >= written:
            if not self.rules.by_slot:
                return None
            at = written - 1  # as the released code, whose place after the last token is the last
        self.used[target] += 1
        earlier, self.ended = self.past[at]
        self.forbidden = {step: pairs for step, pairs in self.forbidden.items() if step <= at}
        self.forbidden.setdefault(at, set()).update(self.chosen[at])
        self.past = {step: state for step, state in self.past.items() if step <= at}
        return earlier

    def _history(self, beams: list[Beam]) -> Tensor:
        """int64 [B, steps]: where beams, or their places, pointed so far."""
        if not self.rules.by_slot:
            return torch.tensor([beam.pointed for beam in beams])
        # A place that held no beam at a step pointed nowhere.
        count = len(beams)
        steps = [
            row * count if len(row) == 1 else [*row, *[NOWHERE] * count][:count]
            for row in self.pointed
        ]
        return torch.tensor(steps).T

    def _score_words(self, logits: Tensor, extra: list[int], penalty: Tensor | None) -> None:
        scores = logits[extra].double().cpu()
        scores = dict(zip(extra, scores if penalty is None else scores - penalty, strict=True))
        for word, ids in self.scorer.words.items():
            self.answer.scores[word] = max(float(scores[t]) for t in ids)
