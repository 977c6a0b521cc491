"""A strategy, the sampled baseline of its own, and plain greedy, in one table.

A strategy that samples is published beside plain sampling, and greedy decoding is often better than
both. So three sides are compared at once: the first minus the second is what is claimed, the first
minus the third what a user gets, the second minus the third what the baseline lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.results.paired import correct
from halludecode.evals.results.sections import gap_text

if TYPE_CHECKING:
    from rich.table import Table

PAIRS = ((0, 1), (0, 2), (1, 2))  # first minus second, of strategy, its baseline, greedy
Gap = dict[str, Any]


def joined(parts: Sequence[Sequence[Gap]]) -> list[Gap]:
    """The differences of `PAIRS`, Holm's correction over the three.

    Args:
        parts: Those of each pair.
    """
    families: dict[Any, list[Any]] = {}
    gaps = [gap for part in parts for gap in part]
    for gap in gaps:
        families.setdefault((gap["task"], gap["data"], gap["split"]), []).append(gap["metrics"])
    for rivals in families.values():
        correct(rivals)
    return gaps


def tables(gaps: Sequence[Gap], labels: Mapping[str, str]) -> list[Table]:
    """One table per task, source and split: three values of every metric, two differences.

    Args:
        gaps: What `joined` gave.
        labels: Canonical strategy to a shorter name.
    """
    by_split: dict[Any, list[Gap]] = {}
    for gap in gaps:
        by_split.setdefault((gap["task"], gap["data"], gap["split"]), []).append(gap)
    return [_table(three, labels) for three in by_split.values() if len(three) == len(PAIRS)]


def _table(three: Sequence[Gap], labels: Mapping[str, str]) -> Table:
    from rich import box
    from rich.table import Table

    own, other, _ = three
    names = [labels.get(n, n) for n in (own["strategy"], own["baseline"], other["baseline"])]
    split = f", {own['split']}" if own["split"] else ""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{own['task'].upper()}, {own['data']}{split}: {', '.join(names)}",
        title_justify="left",
        title_style="bold",
        pad_edge=False,
    )
    table.add_column("metric", overflow="fold", max_width=20)
    for name in names:
        table.add_column(name, overflow="fold", max_width=14, justify="right")
    for name in names[1:]:
        table.add_column(f"minus {name}", no_wrap=True)
    benchmark = benchmark_named(own["task"])
    for name, gap in own["metrics"].items():
        metric, against = benchmark.metric(name), other["metrics"][name]
        sides = (gap["strategy"], gap["baseline"], against["baseline"])
        values = (f"{side['value'] * metric.scale:.{metric.digits}f}" for side in sides)
        table.add_row(
            name, *values, *(gap_text(d, metric.scale, metric.digits) for d in (gap, against))
        )
    return table
