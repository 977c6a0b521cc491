"""Texts at equally many objects: is a gain more than naming fewer things?

Every further object is another chance to be wrong, so a rule that names 2.6 things instead of 3.3
lowers the share of texts with an invented one, also at an equal number of words. So both texts of a
picture are cut behind the same number of different objects, the smaller of the two: what is left
was named first, and equally much of it. How a text is cut is the benchmark's
(`Benchmark.cut_after_objects`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halludecode.evals.benchmarks.base import Benchmark
from halludecode.evals.results.yes_ratio import judge
from halludecode.evals.statistics import intervals as stats
from halludecode.evals.statistics.score import Score

VERDICTS = {
    "only": "only a matter of naming fewer objects",
    "kept": "holds at equally many objects",
    "reversed": "turns round at equally many objects",
    "hidden": "hidden by the number of objects",
    "none": "no clear difference",
}


def object_control(
    benchmark: type[Benchmark],
    a: Score,
    b: Score,
    plain: Mapping[str, Mapping[str, Any]],
    *,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Differences of texts that name equally many objects.

    Args:
        benchmark: Counts objects and cuts texts.
        a: Score of the strategy.
        b: Score of the baseline, of the same pictures.
        plain: The differences of the two as they are: value, low and high by metric.
        seed: Seed of the bootstrap of pictures.
        level: Coverage.

    Returns:
        ``matched`` (``n``, ``metrics`` and a ``verdict`` on each of ``object_metrics``) and
        ``named``, the different objects of a whole text; {} where no answer is a text.
    """
    ours, theirs = benchmark.objects_named(a), benchmark.objects_named(b)
    if not ours:
        return {}
    fewer = {i: min(count, theirs[i]) for i, count in ours.items()}
    named, matched = (
        stats.compare(
            benchmark.cut_after_objects(a, mine),
            benchmark.cut_after_objects(b, other),
            seed=seed,
            level=level,
        )
        for mine, other in ((ours, theirs), (fewer, fewer))
    )
    gaps = {name: gap.to_dict() for name, gap in matched.items()}
    judged = [name for name in benchmark.object_metrics if name in plain]
    return {
        "matched": {
            "n": len(fewer),
            "metrics": gaps,
            "verdict": {name: VERDICTS[judge(plain[name], gaps[name])] for name in judged},
        },
        "named": named["objects"].to_dict(),
    }
