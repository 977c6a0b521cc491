"""What one table shows: the results of a task on a data source, and the text of its cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halludecode.evals.benchmarks.base import Benchmark, Metric
from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.results import control_text
from halludecode.evals.statistics.intervals import excludes_zero

MARK = "*"
BASELINE = "greedy"
MEAN = "mean"  # the split that stands for all others
MOST_UNDECLARED = 4  # columns of a benchmark that declares none

By = tuple[str, str | None]  # strategy, split


@dataclass(frozen=True)
class Section:
    """What one table shows: the entries of a task and source by (strategy, split)."""

    task: str
    data: str
    entries: Mapping[By, Mapping[str, Any]]
    gaps: Mapping[By, Mapping[str, Any]]

    @property
    def benchmark(self) -> type[Benchmark]:
        """What the task is."""
        return benchmark_named(self.task)

    @property
    def strategies(self) -> list[str]:
        """Canonical strategies, greedy first."""
        names = list(dict.fromkeys(strategy for strategy, _ in self.entries))
        return sorted(names, key=lambda name: name != BASELINE)

    @property
    def splits(self) -> list[str | None]:
        """Splits in order; [None] for tasks without."""
        found = list(dict.fromkeys(split for _, split in self.entries))
        return [s for s in found if s != MEAN] if len(found) < 3 else found  # of one it is that one

    @property
    def columns(self) -> list[Metric]:
        """Metrics that have a value, or the first; the benchmark's, if it declares any."""
        names = list(dict.fromkeys(n for entry in self.entries.values() for n in entry["metrics"]))
        declared = self.benchmark.metrics
        shown = [m for m in declared if m.name in names and m.unless not in names]
        if declared:
            return shown or [declared[0]]
        return [self.benchmark.metric(name) for name in names[:MOST_UNDECLARED]]

    @property
    def cells(self) -> list[tuple[str | None, Metric]]:
        """(split, metric) of every value column."""
        return [(split, column) for split in self.splits for column in self.columns]

    def cost(self, strategy: str) -> float | None:
        """Relative time per token over all splits."""
        whole = MEAN if (strategy, MEAN) in self.entries else None
        entry = self.entries.get((strategy, whole))
        return cost(entry, self.entries.get((BASELINE, whole))) if entry else None


def groups(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(task, data) in the order of the results."""
    return list(dict.fromkeys((entry["task"], entry["data"]) for entry in results["runs"]))


def section(results: Mapping[str, Any], task: str, data: str) -> Section:
    """The part of the results that one table shows."""

    def part(name: str) -> dict[By, Any]:
        own = (e for e in results.get(name, ()) if (e["task"], e["data"]) == (task, data))
        return {(e["strategy"], e["split"]): e for e in own}

    return Section(task, data, part("runs"), part("differences"))


def cost(entry: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> float | None:
    """Time per written token, relative to greedy on the same samples; prefill included."""
    if not baseline or not entry["tokens_per_second"] or not baseline["tokens_per_second"]:
        return None
    return baseline["tokens_per_second"] / entry["tokens_per_second"]


# Text -------------------------------------------------------------------------------------------


def heading(split: str | None, column: Metric, between: str = "\n") -> str:
    """Title of a value column."""
    return f"{split}{between}{column.title}" if split else column.title


def value_text(interval: Mapping[str, float], metric: Metric) -> str:
    """``81.8 [79.1, 84.0]``."""
    value, low, high = (interval[k] * metric.scale for k in ("value", "low", "high"))
    return f"{value:.{metric.digits}f} [{low:.{metric.digits}f}, {high:.{metric.digits}f}]"


def gap_text(gap: Mapping[str, float], scale: float, digits: int = 1) -> str:
    """``+1.4* [+0.4, +2.5]``."""
    value, low, high = (gap[k] * scale for k in ("value", "low", "high"))
    mark = MARK if excludes_zero(gap) else ""
    return f"{value:+.{digits}f}{mark} [{low:+.{digits}f}, {high:+.{digits}f}]"


def beside(part: Section, entry: Mapping[str, Any], column: Metric) -> list[tuple[str, str]]:
    """(title, value) of what stands in a cell without interval."""
    metrics = entry["metrics"]
    return [
        (title, f"{metrics[name]['value'] * part.benchmark.metric(name).scale:.1f}")
        for name, title in column.beside
        if name in metrics
    ]


def cell(part: Section, strategy: str, split: str | None, column: Metric) -> str:
    """The text of one cell: value with interval, what stands beside it, difference to greedy."""
    entry = part.entries.get((strategy, split))
    if not entry or column.name not in entry["metrics"]:
        return "-"
    lines = [value_text(entry["metrics"][column.name], column)]
    if values := beside(part, entry, column):
        lines.append("  ".join(f"{title} {value}" for title, value in values))
    gap = part.gaps.get((strategy, split))
    if gap:
        lines.append(gap_text(gap["metrics"][column.name], column.scale, column.digits))
        matched = control_text.matched(gap, column)
        if matched:
            sign = control_text.SIGNS[column.control]
            lines.append(f"{sign} {gap_text(matched, column.scale, column.digits)}")
    return "\n".join(lines)
