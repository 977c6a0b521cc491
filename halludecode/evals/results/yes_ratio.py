"""Accuracy at the baseline's yes-ratio: is a gain more than a shift toward one of the two words?

A rule that only adds a constant to the yes-minus-no margin moves accuracy wherever the plain model
says yes too seldom or too often, without telling any picture better from another (Yin et al.,
arXiv:2504.10020). So the strategy's own margins are cut where as many answers are yes as the
baseline gave, and accuracy is compared there. The cut belongs to the estimate: every resample of
the pictures makes its own. Answers with one margin at the cut count as yes in the share that is
needed, which is the mean over all orders of them.

Answers that the main row decided alone (``"decided": true``) carry its own margin: no other row
could have turned them, so they lie beyond all others, on their side.

Where the baseline is strongly biased, few answers near its cut are left to tell two rules apart, so
the mirror image is taken too: the baseline's margins cut at the strategy's yes-ratio. Only a
difference that neither view shows is called a shift.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.statistics import intervals as stats

Line = Mapping[str, Any]
Pairs = Sequence[tuple[Line, Line]]

_RUN = 64  # answers that are summed together
SHIFT = "only a yes-ratio shift"
# Cutting margins also takes the noise of drawing away, which a rule may merely lower.
SAMPLED_SHIFT = f"{SHIFT} or a lower temperature"
VERDICTS = {
    "only": SHIFT,
    "kept": "holds at the baseline's yes-ratio",
    "reversed": "turns round at the baseline's yes-ratio",
    "hidden": "hidden by a yes-ratio shift",
    "own": "more than a yes-ratio shift, but only at its own yes-ratio",
    "none": "no clear difference",
}


class Ranked:
    """Answers in the order of their margins, to be cut at any number of yes.

    Sums over runs of neighbours are matrix products with the pictures' weights; only the run in
    which a resample's cut falls is looked at answer by answer.

    Args:
        margins: Yes-minus-no margins, finite, ``[n]``.
        positive: Whether yes is right, ``[n]``.
        pictures: Place of every answer's picture, ``[n]``.
        count: Number of pictures.
    """

    def __init__(
        self,
        margins: Sequence[float],
        positive: Sequence[bool],
        pictures: Sequence[int],
        count: int,
    ) -> None:
        values = np.asarray(margins, dtype=float)
        order = np.argsort(-values, kind="stable")
        self._values, place = values[order], np.asarray(pictures)[order]
        right = np.asarray(positive, dtype=bool)[order]
        ties = np.concatenate([[0], np.flatnonzero(np.diff(self._values)) + 1])
        bounds = _bounds(ties.tolist(), len(order))
        self._size, self._gain = (np.zeros((count, len(bounds) - 1)) for _ in range(2))
        run = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        np.add.at(self._size, (place, run), 1.0)
        np.add.at(self._gain, (place, run), np.where(right, 1.0, -1.0))
        self._negative = np.bincount(place[~right], minlength=count).astype(float)
        # Per run, padded: pictures and signs of its answers (0 behind its end), ends of their ties.
        inside = np.arange(len(order)) - np.repeat(bounds[:-1], np.diff(bounds))
        shape = (len(bounds) - 1, int(np.diff(bounds).max()))
        self._place, self._first, self._last = (np.zeros(shape, dtype=int) for _ in range(3))
        self._one, self._sign = np.zeros(shape), np.zeros(shape)
        self._place[run, inside], self._one[run, inside] = place, 1.0
        self._sign[run, inside] = np.where(right, 1.0, -1.0)
        tie = np.searchsorted(ties, np.arange(len(order)), side="right") - 1
        ends = np.append(ties[1:], len(order)) - 1
        self._first[run, inside] = inside - (np.arange(len(order)) - ties[tie])
        self._last[run, inside] = inside + (ends[tie] - np.arange(len(order)))

    def right(self, weights: np.ndarray, yes: np.ndarray) -> np.ndarray:
        """Number of right answers when the ``yes`` highest margins are answered yes.

        Args:
            weights: How often each picture counts, ``[resamples, pictures]``.
            yes: Number of answers to be yes, so weighted, ``[resamples]``.

        Returns:
            Answers that are right, so weighted, ``[resamples]``.
        """
        rows = np.arange(len(weights))
        taken, gained = (np.cumsum(weights @ part, axis=1) for part in (self._size, self._gain))
        whole = (taken <= yes[:, None]).sum(axis=1)  # runs that are answered yes throughout
        every = whole == taken.shape[1]
        run, last = np.minimum(whole, taken.shape[1] - 1), np.maximum(whole - 1, 0)
        before = np.where(whole > 0, taken[rows, last], 0.0)
        base = np.where(whole > 0, gained[rows, last], 0.0)
        inside = weights[rows[:, None], self._place[run]] * self._one[run]
        size, gain = np.cumsum(inside, axis=1), np.cumsum(inside * self._sign[run], axis=1)
        rest = yes - before
        cut = np.minimum((size <= rest[:, None]).sum(axis=1), size.shape[1] - 1)
        first, final = self._first[run, cut], self._last[run, cut]
        head, head_gain = (np.where(first > 0, part[rows, first - 1], 0.0) for part in (size, gain))
        tied, tied_gain = size[rows, final] - head, gain[rows, final] - head_gain
        share = np.divide(rest - head, tied, out=np.zeros_like(rest), where=tied > 0)
        part = np.where(every, 0.0, head_gain + share * tied_gain)
        return weights @ self._negative + base + part

    def threshold(self, yes: int) -> float | None:
        """The margin above which ``yes`` answers lie; None where all or none are yes.

        Margins are those of `ordered`.
        """
        if not 0 < yes < len(self._values):
            return None
        return float(self._values[yes - 1] + self._values[yes]) / 2


def _bounds(ties: Sequence[int], n: int) -> np.ndarray:
    """Starts of runs of at least `_RUN` answers that tear no tie apart, and the end."""
    bounds = [0]
    for start in ties:
        if start - bounds[-1] >= _RUN:
            bounds.append(start)
    return np.array([*bounds, n])


@dataclass(frozen=True)
class _Split:
    """One split: sums over the answers of every picture, and both sides by margin."""

    sums: np.ndarray  # [pictures, 5]: answers, right of ours, of theirs, yes of ours, of theirs
    ranked: Ranked
    rival: Ranked | None  # the baseline; None where it lacks margins
    sampled: bool

    def drawn(self, weights: np.ndarray) -> np.ndarray:
        """Accuracies [6, resamples]: (strategy, baseline) plain, at its yes-ratio, at our own."""
        total, ours, theirs, our_yes, their_yes = (weights @ self.sums).T
        rights = [ours, theirs, self.ranked.right(weights, their_yes), theirs, ours, theirs]
        if self.rival is not None:
            rights[5] = self.rival.right(weights, our_yes)
        if self.sampled and self.rival is not None:
            rights[3] = self.rival.right(weights, their_yes)
            rights[4] = self.ranked.right(weights, our_yes)
        table = np.stack(rights)
        return np.divide(table, total, out=np.zeros_like(table), where=total > 0)


def yes_ratio(
    splits: Mapping[str | None, Pairs],
    *,
    sampled: bool = False,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str | None, dict[str, Any]]:
    """Accuracy at the baseline's yes-ratio, per split and, of named splits, their mean.

    Args:
        splits: (strategy's line, baseline's line) of every question, as in ``samples.jsonl``.
        sampled: Whether answers were drawn at a temperature. Cutting margins undoes the noise of
            drawing, so the baseline is then cut at its own margins too.
        resamples: Bootstrap resamples of the pictures.
        seed: Seed of the resampling.
        level: Coverage.

    Returns:
        Split to ``{"yes_ratio", "threshold", "accuracy", "baseline", "difference", "plain", "own",
        "verdict", "n"}``: ``plain`` is the difference of the accuracies as answered, ``own`` the
        one at the strategy's yes-ratio, None where the baseline lacks margins. A split with answers
        of the strategy whose margin is missing or infinite has ``{"reason", "n"}`` alone.

    Raises:
        InvalidData: No questions, or a pair of lines that is not about one question.
    """
    reasons = {name: _lack(pairs, sampled) for name, pairs in splits.items()}
    usable = {name: pairs for name, pairs in splits.items() if not reasons[name]}
    blocks: dict[str | None, dict[str, Any]] = {
        name: {"n": len(splits[name]), "reason": reason}
        for name, reason in reasons.items()
        if reason
    }
    if usable:
        blocks |= _blocks(usable, sampled, resamples, seed, level)
    if None not in splits and len(usable) < len(splits):
        questions = sum(len(pairs) for pairs in splits.values())
        blocks["mean"] = {"n": questions, "reason": next(filter(None, reasons.values()))}
    return {name: blocks[name] for name in (*splits, "mean") if name in blocks}


def _lack(pairs: Pairs, sampled: bool) -> str:
    """Why no number can be given; "" where it can."""
    if not pairs:
        raise InvalidData("there are no shared yes/no answers to compare.")
    for a, b in pairs:
        if a["id"] != b["id"] or a["label"] != b["label"]:
            raise InvalidData(f"the lines of {a['id']} and {b['id']} are not about one question.")
    sides = (0, 1) if sampled else (0,)
    for side in sides:
        missing = sum(not _finite(pair[side].get("margin")) for pair in pairs)
        if missing:
            whose = "the baseline's answers" if side else "answers"
            return f"{missing} of {len(pairs)} {whose} have no finite yes-minus-no margin"
    return ""


def _finite(margin: Any) -> bool:
    return isinstance(margin, int | float) and math.isfinite(margin)


def _blocks(
    splits: Mapping[str | None, Pairs], sampled: bool, resamples: int, seed: int, level: float
) -> dict[str | None, dict[str, Any]]:
    places, strata = _pictures(splits)
    arrays = {name: _arrays(pairs, places, sampled) for name, pairs in splits.items()}
    parts: dict[str | None, list[np.ndarray]] = {name: [] for name in arrays}
    for weights in stats.draws(strata, resamples, seed):
        for name, split in arrays.items():
            parts[name].append(split.drawn(weights))
    drawn = {name: np.concatenate(part, axis=1) for name, part in parts.items()}
    once = np.ones((1, len(strata)))
    values = {name: split.drawn(once)[:, 0] for name, split in arrays.items()}
    blocks: dict[str | None, dict[str, Any]] = {}
    for name, split in arrays.items():
        questions, yes = int(split.sums[:, 0].sum()), int(split.sums[:, 4].sum())
        head = {
            "n": questions,
            "yes_ratio": yes / questions,
            "threshold": split.ranked.threshold(yes),
        }
        blocks[name] = head | _numbers(
            values[name], drawn[name], sampled, split.rival is not None, level
        )
    if None not in arrays:
        head = {
            "n": sum(block["n"] for block in blocks.values()),
            "yes_ratio": float(np.mean([block["yes_ratio"] for block in blocks.values()])),
            "threshold": None,  # every split has its own
        }
        middle, around = (np.mean(list(part.values()), axis=0) for part in (values, drawn))
        mirrored = all(split.rival is not None for split in arrays.values())
        blocks["mean"] = head | _numbers(middle, around, sampled, mirrored, level)
    return blocks


def _pictures(splits: Mapping[str | None, Pairs]) -> tuple[dict[str, int], list[str]]:
    """Place of every picture, and the stratum it is resampled in."""
    stratum_of = {
        _picture(line): benchmark_named(line["task"]).stratum(line)
        for pairs in splits.values()
        for line, _ in pairs
    }
    return {name: i for i, name in enumerate(stratum_of)}, list(stratum_of.values())


def _picture(line: Line) -> str:
    return benchmark_named(line["task"]).cluster(line)


def _arrays(pairs: Pairs, places: Mapping[str, int], sampled: bool) -> _Split:
    pictures = [places[_picture(a)] for a, _ in pairs]
    positive = [a["label"] == "yes" for a, _ in pairs]
    mirrored = all(_finite(b.get("margin")) for _, b in pairs)
    ours, theirs = (
        Ranked(ordered([pair[side] for pair in pairs]), positive, pictures, len(places))
        if side == 0 or mirrored
        else None
        for side in (0, 1)
    )
    sums = np.zeros((len(places), 5))
    for place, (a, b) in zip(pictures, pairs, strict=True):
        right = (a["parsed"] == a["label"], b["parsed"] == b["label"])
        sums[place] += (1, *right, a["parsed"] == "yes", b["parsed"] == "yes")
    return _Split(sums, ours, theirs, sampled)


def ordered(lines: Sequence[Line]) -> list[float]:
    """Margins in one order: those of decided answers pushed beyond all others, sign kept."""
    open_ = [abs(line["margin"]) for line in lines if not line.get("decided")]
    beyond = max(open_, default=0.0)
    return [
        line["margin"] + math.copysign(beyond, line["margin"])
        if line.get("decided")
        else line["margin"]
        for line in lines
    ]


def _numbers(
    values: np.ndarray, drawn: np.ndarray, sampled: bool, mirrored: bool, level: float
) -> dict[str, Any]:
    sides = [
        stats.interval(float(value), row, level) for value, row in zip(values, drawn, strict=True)
    ]
    plain, matched, own = (
        _plain(stats.difference(sides[i], sides[i + 1], drawn[i] - drawn[i + 1], level))
        for i in (0, 2, 4)
    )
    verdict = judge(plain, matched)
    if verdict == "only" and mirrored and judge(plain, own) == "kept":
        verdict = "own"
    return {
        "accuracy": sides[2]._asdict(),
        "baseline": sides[3]._asdict(),
        "difference": matched,
        "plain": plain,
        "own": own if mirrored else None,
        "verdict": SAMPLED_SHIFT if sampled and verdict == "only" else VERDICTS[verdict],
    }


def _plain(gap: stats.Difference) -> dict[str, float]:
    return {name: getattr(gap, name) for name in ("value", "low", "high", "p")}


def judge(plain: Mapping[str, float], matched: Mapping[str, float]) -> str:
    """What is left of a difference once its control is applied.

    Args:
        plain: The difference as it stands.
        matched: The difference under the control.

    Returns:
        ``only`` (the control takes it away), ``kept``, ``reversed``, ``hidden`` (it shows under the
        control alone) or ``none``. An interval that holds zero proves no absence: ``only`` says
        that this data shows nothing beyond the shift.
    """
    before, after = stats.excludes_zero(plain), stats.excludes_zero(matched)
    if not before:
        return "hidden" if after else "none"
    if not after:
        return "only"
    return "kept" if plain["value"] * matched["value"] > 0 else "reversed"
