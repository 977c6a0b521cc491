"""Results as tables of 120 columns: one per task and data source, one row a strategy.

A cell holds the value with its 95 % interval and, on the line below, the paired difference to
greedy with its own; a star marks a difference whose interval leaves out zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

MARK = "*"


@dataclass(frozen=True)
class Column:
    """One metric of a table.

    Args:
        metric: Its name in ``results.json``.
        title: What people call it.
        scale: 100 for fractions shown as percentages.
        lower: Whether less is better; None where neither is.
        beside: Further metrics shown without interval: (metric, short title).
    """

    metric: str
    title: str
    scale: float = 100.0
    lower: bool | None = False
    beside: tuple[tuple[str, str], ...] = ()


COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "pope": (Column("accuracy", "accuracy %", beside=(("f1", "F1"), ("yes_ratio", "yes"))),),
    "chair": (
        Column("chair_i", "CHAIR_i %", lower=True),
        Column("chair_s", "CHAIR_s %", lower=True),
        Column("recall", "recall %"),
        Column("length", "length", scale=1.0, lower=None),
    ),
    "mme": (
        Column("total", "MME total", scale=1.0),
        Column("hallucination_subset", "halluc. subset", scale=1.0),
    ),
}


def cost(entry: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> float | None:
    """Time per written token, relative to greedy on the same samples; prefill included."""
    if not baseline or not entry["tokens_per_second"] or not baseline["tokens_per_second"]:
        return None
    return baseline["tokens_per_second"] / entry["tokens_per_second"]


def value_text(interval: Mapping[str, float], scale: float) -> str:
    """``81.8 [79.1, 84.0]``."""
    value, low, high = (interval[k] * scale for k in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def excludes_zero(gap: Mapping[str, float]) -> bool:
    """Whether the interval of a difference leaves out zero."""
    return gap["low"] > 0 or gap["high"] < 0


def gap_text(gap: Mapping[str, float], scale: float) -> str:
    """``+1.4* [+0.4, +2.5]``."""
    value, low, high = (gap[k] * scale for k in ("value", "low", "high"))
    return f"{value:+.1f}{MARK if excludes_zero(gap) else ''} [{low:+.1f}, {high:+.1f}]"


def groups(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(task, data) in the order of the results."""
    return list(dict.fromkeys((entry["task"], entry["data"]) for entry in results["runs"]))


@dataclass(frozen=True)
class Section:
    """What one table shows: the entries of a task and source by (strategy, split)."""

    task: str
    data: str
    entries: Mapping[tuple[str, str | None], Mapping[str, Any]]
    gaps: Mapping[tuple[str, str | None], Mapping[str, Any]]

    @property
    def strategies(self) -> list[str]:
        """Canonical strategies, greedy first."""
        names = list(dict.fromkeys(strategy for strategy, _ in self.entries))
        return sorted(names, key=lambda name: name != "greedy")

    @property
    def splits(self) -> list[str | None]:
        """Splits in order; [None] for tasks without."""
        return list(dict.fromkeys(split for _, split in self.entries))

    @property
    def cells(self) -> list[tuple[str | None, Column]]:
        """(split, column) of every value column."""
        return [(split, column) for split in self.splits for column in COLUMNS[self.task]]

    def cost(self, strategy: str) -> float | None:
        """Relative time per token over all splits."""
        whole = "mean" if self.task == "pope" else None
        entry = self.entries.get((strategy, whole))
        return cost(entry, self.entries.get(("greedy", whole))) if entry else None


def section(results: Mapping[str, Any], task: str, data: str) -> Section:
    """The part of the results that one table shows."""

    def mine(part: str) -> dict[tuple[str, str | None], Any]:
        chosen = (e for e in results.get(part, ()) if (e["task"], e["data"]) == (task, data))
        return {(e["strategy"], e["split"]): e for e in chosen}

    return Section(task, data, mine("runs"), mine("differences"))


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
        parts += [_table(section(results, task, data), labels), Text()]
    parts += [Text(sentence) for sentence in notes(results, labels)]
    return Group(*parts)


def _table(part: Section, labels: Mapping[str, str]) -> Table:
    from rich import box
    from rich.table import Table

    counts = [e["n"] for e in part.entries.values() if e["split"] != "mean"]
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
    table.add_column("strategy", overflow="fold", max_width=22)
    for split, column in part.cells:
        title = f"{split}\n{column.title}" if split else column.title
        table.add_column(title, no_wrap=True)
    table.add_column("time/\ntoken", justify="right", no_wrap=True)
    for strategy in part.strategies:
        cells = [cell(part, strategy, split, column) for split, column in part.cells]
        ratio = part.cost(strategy)
        name = labels.get(strategy, strategy)
        table.add_row(name, *cells, "" if ratio is None else f"{ratio:.2f}x")
    return table


def cell(part: Section, strategy: str, split: str | None, column: Column) -> str:
    """The text of one cell: value with interval, what stands beside it, difference to greedy."""
    entry = part.entries.get((strategy, split))
    if not entry or column.metric not in entry["metrics"]:
        return "-"
    lines = [value_text(entry["metrics"][column.metric], column.scale)]
    if column.beside:
        beside = (
            f"{title} {entry['metrics'][name]['value'] * 100:.1f}" for name, title in column.beside
        )
        lines.append("  ".join(beside))
    gap = part.gaps.get((strategy, split))
    if gap:
        lines.append(gap_text(gap["metrics"][column.metric], column.scale))
    return "\n".join(lines)


def notes(results: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    """What a reader of the tables must know, and what went wrong."""
    said = []
    if results.get("differences"):
        said.append(
            f"Last line of a cell: paired difference to greedy, 95 % interval, {MARK} "
            "leaves out zero (not corrected for several strategies; results.json has Holm's p)."
        )
    said.append("time/token is relative to greedy, prefill included; it varies with the machine.")
    entries = [entry for entry in results["runs"] if entry["split"] != "mean"]
    for entry in entries:
        if entry["failed"]:
            split = f" ({entry['split']})" if entry["split"] else ""
            name = labels.get(entry["strategy"], entry["strategy"])
            where = f"{name}, {entry['task']} on {entry['data']}{split}"
            said.append(f"{where}: {entry['failed']} failed, see errors.jsonl.")
    warned = Counter[tuple[str, str]]()
    answers = Counter[str]()
    for entry in entries:
        answers[entry["strategy"]] += entry["n"]
        for sentence, count in entry.get("warnings", {}).items():
            warned[entry["strategy"], sentence] += count
    for (strategy, sentence), count in warned.items():
        name = labels.get(strategy, strategy)
        said.append(f"{name}, {count} of {answers[strategy]} answers: {sentence}")
    return said


def comparison_tables(gaps: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> Group:
    """Differences alone: one table per task, source and split, all metrics.

    Args:
        gaps: Entries as `results.differences` makes them.
        labels: Canonical strategy to a shorter name.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for gap in gaps:
        parts += [_comparison(gap, labels), Text()]
    parts.append(
        Text(
            f"{MARK}: the 95 % interval leaves out zero. p (Holm) corrects for several strategies."
        )
    )
    return Group(*parts)


def _comparison(gap: Mapping[str, Any], labels: Mapping[str, str]) -> Table:
    from rich import box
    from rich.table import Table

    name, base = (labels.get(gap[k], gap[k]) for k in ("strategy", "baseline"))
    split = f", {gap['split']}" if gap["split"] else ""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{name} minus {base}: {gap['task'].upper()}, {gap['data']}{split}, n = {gap['n']}",
        title_justify="left",
        title_style="bold",
        pad_edge=False,
    )
    for title in ("metric", "difference [95 % interval]", "p", "p (Holm)"):
        table.add_column(title)
    for metric, d in gap["metrics"].items():
        scale = _scale(gap["task"], metric)
        table.add_row(metric, gap_text(d, scale), f"{d['p']:.3g}", f"{d['p_holm']:.3g}")
    return table


def _scale(task: str, metric: str) -> float:
    plain = task == "mme" and not metric.endswith((".acc", ".acc_plus"))
    return 1.0 if plain or metric in ("length", "unparsed") else 100.0
