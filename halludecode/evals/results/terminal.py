"""Results as tables of 120 columns: one per task and data source, one row a strategy.

A cell holds the value with its 95 % interval and, on the line below, the paired difference to
greedy with its own; a star marks a difference whose interval leaves out zero. The line after it is
the difference under the control that goes with the metric: at greedy's yes-ratio, or at equal
length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from halludecode.evals.benchmarks.base import Metric
from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.results import control_text, remarks
from halludecode.evals.results.notes import notes
from halludecode.evals.results.sections import (
    MARK,
    MEAN,
    Section,
    cell,
    gap_text,
    groups,
    heading,
    section,
    value_text,
)

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table


WIDTH = 120
NAME, FOLDED = 22, 10  # most and least width of the strategies' names
Column = tuple[str | None, Metric]  # a split and what is shown of it


def results_tables(results: Mapping[str, Any], labels: Mapping[str, str]) -> Group:
    """All tables of a run.

    Args:
        results: The content of ``results.json``.
        labels: Canonical strategy to a shorter name.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for task, data in groups(results):
        part = section(results, task, data)
        for columns in _side_by_side(part, labels):
            parts += [_table(part, labels, columns), Text()]
        if rows := control_text.rivals(part.gaps):
            parts += [_control_table(part, rows, labels), Text()]
    parts += [Text(sentence) for sentence in notes(results, labels)]
    return Group(*parts)


def _side_by_side(part: Section, labels: Mapping[str, str]) -> list[Sequence[Column]]:
    """The columns that fit beside the strategies' names, and those of further tables."""
    names = [labels.get(strategy, strategy) for strategy in part.strategies]
    room = WIDTH - min(FOLDED, max(map(len, ["strategy", *names]))) - len("  token   ")
    tables: list[list[Column]] = [[]]
    left = room
    for split, column in part.cells:
        texts = [cell(part, strategy, split, column) for strategy in part.strategies]
        lines = "\n".join([heading(split, column), *texts]).split("\n")
        width = max(map(len, lines)) + 3
        if width > left and tables[-1]:
            tables.append([])
            left = room
        tables[-1].append((split, column))
        left -= width
    return list(tables)


def _table(part: Section, labels: Mapping[str, str], columns: Sequence[Column]) -> Table:
    from rich import box
    from rich.table import Table

    counts = [e["n"] for e in part.entries.values() if e["split"] != MEAN]
    n = (
        f"n = {min(counts)}"
        if counts and min(counts) == max(counts)
        else "n differs, see results.json"
    )
    each = " a split" if len(part.splits) > 1 else ""
    table = Table(
        box=box.SIMPLE_HEAD,
        leading=1 if part.gaps else 0,
        title=f"{part.task.upper()} on {part.data} ({n}{each})",
        title_justify="left",
        title_style="bold",
        pad_edge=False,
    )
    table.add_column("strategy", overflow="fold", max_width=NAME)
    for split, column in columns:
        table.add_column(heading(split, column), no_wrap=True)
    costs = {strategy: part.cost(strategy) for strategy in part.strategies}
    timed = any(costs.values())  # nobody timed answers that were made elsewhere
    if timed:
        table.add_column("time/\ntoken", justify="right", no_wrap=True)
    for strategy, ratio in costs.items():
        cells = [cell(part, strategy, split, column) for split, column in columns]
        cost = [f"{ratio:.2f}x" if ratio else ""] * timed
        table.add_row(labels.get(strategy, strategy), *cells, *cost)
    return table


def _control_table(
    part: Section, rows: Sequence[tuple[str, str]], labels: Mapping[str, str]
) -> Table:
    """Differences to the controls that a sampled strategy must be read against."""
    table = _plain_table("minus the controls it must be read against")
    table.add_column("strategy - control", overflow="fold", max_width=34)
    for split, column in part.cells:
        table.add_column(heading(split, column), no_wrap=True)
    for strategy, control in rows:
        cells = []
        for split, column in part.cells:
            entry = control_text.rival(part.gaps.get((strategy, split)), control)
            gap = (entry or {}).get("metrics", {}).get(column.name)
            cells.append(gap_text(gap, column.scale, column.digits) if gap else "not run")
        names = (labels.get(name, name) for name in (strategy, control))
        table.add_row(" - ".join(names), *cells)
    return table


def comparison_tables(gaps: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> Group:
    """Differences alone: one table per task, source and split, all metrics, controls below.

    Args:
        gaps: Entries as `paired.differences` makes them.
        labels: Canonical strategy to a shorter name.
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    parts: list[RenderableType] = []
    for gap in gaps:
        parts.append(_comparison(gap, labels))
        sentences = control_text.sentences(gap, labels, gap_text)
        parts += [Padding(Text(line), (0, 0, 0, 2)) for line in sentences]
        curve = gap.get("controls", {}).get("length", {}).get("budgets")
        parts += [_curve(curve, gap, labels), Text()] if curve else [Text()]
    parts += [Text(line) for line in remarks.of_differences(gaps, labels)]
    parts += [Text(line) for line in control_text.general(gaps)]
    parts.append(
        Text(
            f"{MARK}: the 95 % interval leaves out zero. p: McNemar's exact test where the items "
            "that only one side got stand beside it, bootstrap elsewhere. p (Holm) corrects for "
            "several strategies."
        )
    )
    return Group(*parts)


def _comparison(gap: Mapping[str, Any], labels: Mapping[str, str]) -> Table:
    name, base = _names(gap, labels)
    split = f", {gap['split']}" if gap["split"] else ""
    table = _plain_table(
        f"{name} minus {base}: {gap['task'].upper()}, {gap['data']}{split}, n = {gap['n']}"
    )
    table.padding = (0, 1, 0, 0)  # sums of points need the width
    table.add_column("metric", overflow="fold", max_width=20)
    for side in (name, base):
        table.add_column(side, overflow="fold", max_width=23)
    table.add_column("difference [95 %]", no_wrap=True)
    for title in ("p", "p (Holm)", "only one"):
        table.add_column(title, no_wrap=True)
    for metric, d in _metrics(gap["task"], gap["metrics"]):
        sides = (value_text(d[side], metric) for side in ("strategy", "baseline"))
        tests = (f"{d['p']:.2g}", f"{d['p_holm']:.2g}", ":".join(map(str, d.get("discordant", ()))))
        table.add_row(metric.name, *sides, gap_text(d, metric.scale, metric.digits), *tests)
    return table


def _metrics(
    task: str, values: Mapping[str, Mapping[str, Any]]
) -> list[tuple[Metric, Mapping[str, Any]]]:
    benchmark = benchmark_named(task)
    return [(benchmark.metric(name), value) for name, value in values.items()]


def _curve(
    curve: Sequence[Mapping[str, Any]], gap: Mapping[str, Any], labels: Mapping[str, str]
) -> Table:
    """Metrics of captions cut at fixed numbers of words."""
    name, base = _names(gap, labels)
    benchmark = benchmark_named(gap["task"])
    metrics = [benchmark.metric(metric) for metric in benchmark.word_budgets]
    table = _plain_table(f"captions cut after so many words: {name}, then {base}")
    for title in ("words", "reached by"):
        table.add_column(title, justify="right", no_wrap=True)
    for metric in metrics:
        table.add_column(metric.title, justify="right", no_wrap=True)
        table.add_column("difference [95 %]", no_wrap=True)
    for point in curve:
        row = [str(point["words"]), "{strategy}, {baseline}".format(**point["reach"])]
        for metric in metrics:
            d = point["metrics"][metric.name]
            sides = (f"{d[side]['value'] * metric.scale:.1f}" for side in ("strategy", "baseline"))
            row += [", ".join(sides), gap_text(d, metric.scale)]
        table.add_row(*row)
    return table


def seed_tables(
    spreads: Sequence[Mapping[str, Any]], labels: Mapping[str, str], seeds: Sequence[int]
) -> Group:
    """Means over seeds: one table per task, source, split and strategy.

    Args:
        spreads: Entries as `compare.compare_seeds` makes them.
        labels: Canonical strategy to a shorter name.
        seeds: The seeds.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for entry in spreads:
        name = labels.get(entry["strategy"], entry["strategy"])
        split = f", {entry['split']}" if entry["split"] else ""
        table = _plain_table(
            f"{name}: {entry['task'].upper()}, {entry['data']}{split}, n = {entry['n']}"
        )
        table.add_column("metric", overflow="fold", max_width=28)
        gaps = entry.get("differences", {})
        for title in ("mean [95 %]", "sd", *(("minus greedy [95 %]", "sd") if gaps else ())):
            table.add_column(title, no_wrap=True)
        for metric, spread in _metrics(entry["task"], entry["metrics"]):
            row = [value_text({**spread, "value": spread["mean"]}, metric)]
            row.append(f"{spread['sd'] * metric.scale:.{metric.digits + 1}f}")
            if gap := gaps.get(metric.name):
                row.append(gap_text({**gap, "value": gap["mean"]}, metric.scale, metric.digits))
                row.append(f"{gap['sd'] * metric.scale:.{metric.digits + 1}f}")
            table.add_row(metric.name, *row)
        parts += [table, Text()]
    about = f"Seeds {', '.join(map(str, seeds))}. Intervals: seeds resampled, and pictures in them."
    return Group(*parts, Text(about))


def _names(gap: Mapping[str, Any], labels: Mapping[str, str]) -> tuple[str, str]:
    name, base = (labels.get(gap[k], gap[k]) for k in ("strategy", "baseline"))
    return name, base


def _plain_table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
    )
