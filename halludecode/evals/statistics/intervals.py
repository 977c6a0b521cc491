"""Intervals and paired tests for scores.

Questions about one picture are not independent, so pictures are resampled, not questions, and both
sides of a comparison see the same resampled pictures. Plain accuracies get Wilson's interval and
McNemar's exact test; everything else the percentile bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist, fmean, stdev
from typing import Any, NamedTuple

import numpy as np

from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.evals.statistics.resampling import draws
from halludecode.evals.statistics.score import Id, Score


class Interval(NamedTuple):
    """A value and its confidence interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """First minus second, its interval, a two-sided p-value and the test behind it.

    Args:
        value: Metric of the first score minus that of the second.
        low: Lower end of the paired bootstrap interval.
        high: Upper end.
        p: McNemar's exact p for shares of items, the bootstrap's otherwise: of n pictures at
            least 2^(1 - n), so that one picture says nothing of others.
        test: ``mcnemar`` or ``bootstrap``.
        discordant: Items where only the first, and only the second, has the flag (McNemar only).
        first: The first's own value and interval.
        second: The second's.
    """

    value: float
    low: float
    high: float
    p: float
    test: str
    discordant: tuple[int, int] | None = None
    first: Interval | None = None
    second: Interval | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON; ``strategy`` and ``baseline`` are the first and the second side."""
        sides = {"strategy": self.first, "baseline": self.second}
        return {
            **{name: getattr(self, name) for name in ("value", "low", "high", "p", "test")},
            **({"discordant": list(self.discordant)} if self.discordant else {}),
            **{name: side._asdict() for name, side in sides.items() if side},
        }


def excludes_zero(gap: Difference | Mapping[str, Any]) -> bool:
    """Whether the interval of a difference leaves out zero."""
    found = gap._asdict() if isinstance(gap, Difference) else gap
    return bool(found["low"] > 0 or found["high"] < 0)


def intervals(
    score: Score,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    wilson: bool = True,
) -> dict[str, Interval]:
    """Confidence intervals of every metric.

    Args:
        score: A scored task.
        resamples: Bootstrap resamples of the pictures.
        seed: Seed of the resampling.
        level: Coverage.
        wilson: Wilson's interval where `Score.wilson` names the metric; False bootstraps all, which
            also allows for questions sharing a picture.

    Raises:
        InvalidParameter: Fewer than 1 resample, or a level outside (0, 1).
    """
    _check(resamples, level)
    return _intervals(score, _bootstrap([score], resamples, seed)[0], level, wilson)


def with_intervals(score: Score, resamples: int) -> dict[str, dict[str, float]]:
    """``value`` of every metric, and ``low`` and ``high`` where there are resamples.

    Args:
        score: A scored task.
        resamples: Bootstrap resamples; 0 leaves the intervals out.
    """
    metrics: dict[str, dict[str, float]] = {n: {"value": v} for n, v in score.metrics.items()}
    if resamples:
        for name, interval in intervals(score, resamples=resamples).items():
            metrics[name] |= {"low": interval.low, "high": interval.high}
    return metrics


def _intervals(
    score: Score, drawn: Mapping[str, np.ndarray], level: float, wilson: bool = True
) -> dict[str, Interval]:
    out: dict[str, Interval] = {}
    for name, value in score.metrics.items():
        low, high = _percentiles(drawn[name], level)
        if wilson and name in score.wilson:
            flags = score.shares[name]
            low, high = wilson_interval(sum(flags.values()), len(flags), level)
        out[name] = Interval(value, low, high)
    return out


def compare(
    a: Score, b: Score, *, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> dict[str, Difference]:
    """Paired differences ``a - b`` of every metric, items matched by id.

    Args:
        a: First score.
        b: Second score, of the same items under the same rule.
        resamples: Bootstrap resamples of the pictures, the same for both.
        seed: Seed of the resampling.
        level: Coverage.

    Raises:
        InvalidData: Other task, rule or items.
        InvalidParameter: As `intervals`.
    """
    _check(resamples, level)
    _pairable(a, b)
    drawn_a, drawn_b = _bootstrap([a, b], resamples, seed)
    firsts, seconds = _intervals(a, drawn_a, level), _intervals(b, drawn_b, level)
    out: dict[str, Difference] = {}
    for name in a.metrics:
        gap = difference(firsts[name], seconds[name], drawn_a[name] - drawn_b[name], level)
        # All pictures on one side: no test of so few can say more, whatever resampling says.
        gap = gap._replace(p=max(gap.p, 2.0 ** (1 - len(a.clusters))))
        flags_a, flags_b = a.shares.get(name), b.shares.get(name)
        paired = flags_a is not None and flags_b is not None and flags_a.keys() == flags_b.keys()
        # POPE's splits share their positive questions, which a pooled count would take thrice.
        if paired and len(a.notes.get("splits", ())) < 2:
            both = discordant(flags_a, flags_b)
            gap = gap._replace(p=mcnemar(*both), test="mcnemar", discordant=both)
        out[name] = gap
    return out


def difference(
    first: Interval, second: Interval, gaps: np.ndarray, level: float = 0.95
) -> Difference:
    """A difference whose interval and p come from paired resamples.

    Args:
        first: The first's own value and interval.
        second: The second's.
        gaps: First minus second under each resample, ``[resamples]``.
        level: Coverage.
    """
    low, high = _percentiles(gaps, level)
    p = _bootstrap_p(gaps)
    value = first.value - second.value
    return Difference(value, low, high, p, "bootstrap", None, first, second)


def interval(value: float, drawn: np.ndarray, level: float = 0.95) -> Interval:
    """A value with the percentile interval of its resamples ``[resamples]``."""
    return Interval(value, *_percentiles(drawn, level))


class SeedSpread(NamedTuple):
    """Mean over seeds, their standard deviation, and the two-level bootstrap interval."""

    mean: float
    sd: float
    low: float
    high: float


def over_seeds(
    scores: Sequence[Score],
    baseline: Sequence[Score] | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, SeedSpread]:
    """Spread of sampled decoding: seeds are resampled, and pictures within them.

    Args:
        scores: One score per seed, of the same items under the same rule.
        baseline: As many scores, of the same seeds in the same order: the spread is then that of
            the differences, both sides under the same resampled seeds and pictures.
        resamples: Resamples.
        seed: Seed of the resampling.
        level: Coverage.

    Raises:
        InvalidData: Fewer than three scores, scores of other items, or another number of baselines.
        InvalidParameter: As `intervals`.
    """
    _check(resamples, level)
    count = len(scores)
    if count < 3:
        raise InvalidData(f"{count} seeds say nothing about spread; give at least 3.")
    if baseline is not None and len(baseline) != count:
        raise InvalidData(f"{count} seeds and {len(baseline)} of the baseline; pair them by seed.")
    every = [*scores, *(baseline or ())]
    for other in every[1:]:
        _pairable(scores[0], other)
    drawn = _bootstrap(every, resamples, seed)
    picks = np.random.default_rng([seed, 1]).integers(count, size=(resamples, count))
    out: dict[str, SeedSpread] = {}
    for name in scores[0].metrics:
        table = np.stack([one[name] for one in drawn], axis=1)  # [resamples, seeds (and baselines)]
        values = np.array([one.metrics[name] for one in every])
        if baseline is not None:
            table, values = table[:, :count] - table[:, count:], values[:count] - values[count:]
        low, high = _percentiles(np.take_along_axis(table, picks, axis=1).mean(axis=1), level)
        spread = values.tolist()
        out[name] = SeedSpread(fmean(spread), stdev(spread), low, high)
    return out


def wilson_interval(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of ``n`` independent items; (0, 1) for no items."""
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, spread = hits / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def discordant(a: Mapping[Id, int], b: Mapping[Id, int]) -> tuple[int, int]:
    """Items with the flag in ``a`` only, and in ``b`` only."""
    only_a = sum(bool(flag) and not b[item] for item, flag in a.items())
    only_b = sum(bool(b[item]) and not flag for item, flag in a.items())
    return only_a, only_b


def mcnemar(only_a: int, only_b: int, *, exact: bool = True) -> float:
    """Two-sided p that both kinds of discordant items are equally likely.

    Args:
        only_a: Items that only the first got.
        only_b: Items that only the second got.
        exact: Binomial test; False gives the chi-square form with continuity correction.
    """
    n = only_a + only_b
    if n == 0:
        return 1.0
    if not exact:
        chi2 = max(0, abs(only_a - only_b) - 1) ** 2 / n
        return math.erfc(math.sqrt(chi2 / 2))
    # Whole numbers keep the tail exact however small it is.
    tail, term = 0, 1
    for k in range(min(only_a, only_b) + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n) if n < 1000 else min(1.0, _divide(2 * tail, n))


def _divide(numerator: int, power: int) -> float:
    # 2**n no longer fits a float; shift both sides down first.
    shift = max(0, power - 1000)
    return float(numerator >> shift) / 2.0 ** (power - shift)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for several comparisons, in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _check(resamples: int, level: float) -> None:
    if resamples < 1:
        raise InvalidParameter(f"resamples is {resamples}; it must be at least 1.")
    if not 0 < level < 1:
        raise InvalidParameter(f"level is {level}; it must lie between 0 and 1.")


def _pairable(a: Score, b: Score) -> None:
    if (a.task, a.rule) != (b.task, b.rule):
        raise InvalidData(
            f"{a.task} under {a.rule!r} and {b.task} under {b.rule!r} cannot be compared; "
            "score both with one rule."
        )
    apart = a.outcomes.keys() ^ b.outcomes.keys()
    if apart:
        first = min(map(str, apart))
        raise InvalidData(
            f"{len(apart)} items were scored on one side only ({first} first); "
            "compare runs over the same items."
        )
    if set(a.clusters) != set(b.clusters) or a.metrics.keys() != b.metrics.keys():
        raise InvalidData("the two scores are of other pictures or subtasks; score both alike.")


def _bootstrap(scores: Sequence[Score], resamples: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Metrics of every score under the same resampled pictures, ``[resamples]`` each."""
    lead = scores[0].clusters
    tables = [_ordered(score, lead) for score in scores]
    # Sums of whole numbers have no rounding while they stay below 2**24, so that single precision
    # gives the same in half the time, and so does one product for all scores.
    whole = all(_whole(table) for table in tables)
    kind = np.float32 if whole else float
    factors = [np.concatenate(tables, axis=1).astype(kind)] if whole else tables
    parts = [
        [weights @ factor for factor in factors]
        for weights in draws(scores[0].strata or [""] * len(lead), resamples, seed, kind)
    ]
    sums = [np.concatenate(part).astype(float) for part in zip(*parts, strict=True)]
    if whole:
        sums = np.split(sums[0], np.cumsum([table.shape[1] for table in tables])[:-1], axis=1)
    return [score.from_sums(own) for score, own in zip(scores, sums, strict=True)]


def _ordered(score: Score, lead: Sequence[str]) -> np.ndarray:
    """The columns of a score, its pictures in the leading order."""
    if tuple(score.clusters) == tuple(lead):
        return score.table()
    place = {name: i for i, name in enumerate(score.clusters)}
    return score.table()[[place[name] for name in lead]]


def _whole(table: np.ndarray) -> bool:
    """Whether no sum of as many rows can be rounded in single precision."""
    most = float(np.abs(table).max(initial=0.0)) * len(table)
    return most < 2**24 and bool((table == np.rint(table)).all())


def _percentiles(drawn: np.ndarray, level: float) -> tuple[float, float]:
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return float(low), float(high)


def _bootstrap_p(gaps: np.ndarray) -> float:
    # One is added to each side, so that p is never 0 with a finite number of resamples.
    below, above = int((gaps <= 0).sum()), int((gaps >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(gaps) + 1))
