"""Captions at equal length: is a gain more than shorter captions?

A caption that stops earlier names fewer absent objects: within one model's captions CHAIR_s grows
threefold from the short third to the long one. Four views: both captions of a picture cut to the
shorter; only pictures whose captions are about equally long; all captions cut at fixed numbers of
words; and rates that hang less on length, such as invented mentions per 100 words. How a score is
cut is the benchmark's (`Benchmark.shortened`); the fixed budgets instead score the cut text itself,
as published curves do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from halludecode.evals.benchmarks.base import Benchmark
from halludecode.evals.results.yes_ratio import judge
from halludecode.evals.statistics import intervals as stats
from halludecode.evals.statistics.score import Id, Score

BUDGETS = (20, 40, 60, 80)  # white-space words, as in published curves
ALIKE = 0.1  # lengths differ by at most this share of the longer
VERDICTS = {
    "only": "only a matter of length",
    "kept": "holds at equal length",
    "reversed": "turns round at equal length",
    "hidden": "hidden by the length",
    "none": "no clear difference",
}

Rescore = Callable[[int], tuple[Score, Score]]


def length_control(
    benchmark: type[Benchmark],
    a: Score,
    b: Score,
    plain: Mapping[str, Mapping[str, Any]],
    *,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Length-matched metrics of the same pictures' captions.

    Args:
        benchmark: Cuts scores, and says which metrics are judged.
        a: Score of the strategy; its outcomes hold their ``words``.
        b: Score of the baseline.
        plain: The differences of the two as they are: value, low and high by metric.
        seed: Seed of the bootstrap.
        level: Coverage.

    Returns:
        ``matched`` (both captions cut to the shorter, in the scorer's words), ``alike`` (pictures
        whose captions differ by at most `ALIKE` in length) and ``rates``
        (`Benchmark.length_rates`), each with ``n`` and ``metrics``; ``matched`` also with a verdict
        on each metric that must be read with this control.
    """
    shorter = {i: min(_length(a, i), _length(b, i)) for i in a.outcomes}
    matched = _metrics(
        benchmark.shortened(a, shorter), benchmark.shortened(b, shorter), seed, level
    )
    verdicts = {
        name: VERDICTS[judge(plain[name], matched["metrics"][name])]
        for name in benchmark.controlled_by("length")
    }
    rates = benchmark.length_rates(a), benchmark.length_rates(b)
    return {
        "matched": matched | {"verdict": verdicts},
        "alike": _alike(benchmark, a, b, seed, level),
        "rates": _metrics(*rates, seed, level),
    }


def budget_curve(
    rescore: Rescore,
    captions: Sequence[tuple[str, str]],
    *,
    budgets: Sequence[int] = BUDGETS,
    seed: int = 0,
    level: float = 0.95,
) -> list[dict[str, Any]]:
    """Both sides with every caption cut at a number of white-space words.

    Args:
        rescore: Number of words to both scores of the cut captions.
        captions: (strategy's, baseline's) of every picture, uncut.
        budgets: Numbers of words.
        seed: Seed of the bootstrap.
        level: Coverage.

    Returns:
        Per budget ``words``, ``n``, ``metrics`` and ``reach``: how many captions of either side
        have as many words. Where few do, the sides differ in length again.
    """
    sizes = [(len(ours.split()), len(theirs.split())) for ours, theirs in captions]
    return [
        {
            "words": words,
            "reach": {
                "strategy": sum(ours >= words for ours, _ in sizes),
                "baseline": sum(theirs >= words for _, theirs in sizes),
            },
            **_metrics(*rescore(words), seed, level),
        }
        for words in budgets
    ]


def _length(score: Score, name: Id) -> int:
    return len(score.outcomes[name]["words"])


def _alike(
    benchmark: type[Benchmark], a: Score, b: Score, seed: int, level: float
) -> dict[str, Any]:
    sizes = {i: (_length(a, i), _length(b, i)) for i in a.outcomes}
    near = [i for i, (x, y) in sizes.items() if abs(x - y) <= ALIKE * max(x, y)]
    if not near:
        return {"n": 0, "reason": f"no two captions are within {ALIKE:.0%} of each other's length"}
    ours, theirs = ({i: sizes[i][side] for i in near} for side in (0, 1))
    return _metrics(benchmark.shortened(a, ours), benchmark.shortened(b, theirs), seed, level)


def _metrics(a: Score, b: Score, seed: int, level: float) -> dict[str, Any]:
    gaps = stats.compare(a, b, seed=seed, level=level)
    return {"n": a.n, "metrics": {name: gap.to_dict() for name, gap in gaps.items()}}
