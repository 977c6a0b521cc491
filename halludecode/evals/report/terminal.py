"""Results as tables of 120 columns: one per task and data source, one row a strategy.

A cell holds the value with its 95 % interval and, on the line below, the paired difference to
greedy with its own; a star marks a difference whose interval leaves out zero. The line after it is
the difference under the control that goes with the metric: at greedy's yes-ratio, or at equal
length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from halludecode.evals.benchmarks.amber.files import DIMENSIONS
from halludecode.evals.report import control_text
from halludecode.evals.statistics.intervals import excludes_zero

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
        unless: A metric in whose presence this one is not shown.
    """

    metric: str
    title: str
    scale: float = 100.0
    lower: bool | None = False
    beside: tuple[tuple[str, str], ...] = ()
    unless: str = ""


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
    "amber": (
        Column("chair", "CHAIR %", lower=True, beside=(("hal", "Hal"), ("cog", "Cog"))),
        Column("cover", "cover %"),
        Column("f1", "F1 %", beside=(("accuracy", "accuracy"),)),
        Column("amber", "AMBER %"),
        *(Column(f"{p}.f1", f"{p} F1 %", unless="f1") for p in DIMENSIONS[1:]),
    ),
    "hallusionbench": tuple(Column(n, f"{n} %") for n in ("aAcc", "qAcc", "fAcc", "hard")),
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
        """(split, column) of every value column that has a value, or of the first."""
        known = {name for entry in self.entries.values() for name in entry["metrics"]}
        columns = [c for c in COLUMNS[self.task] if c.metric in known and c.unless not in known]
        shown = columns or COLUMNS[self.task][:1]
        return [(split, column) for split in self.splits for column in shown]

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
        part = section(results, task, data)
        parts += [_table(part, labels), Text()]
        if rows := control_text.rivals(part.gaps):
            parts += [_control_table(part, rows, labels), Text()]
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


def _control_table(
    part: Section, rows: Sequence[tuple[str, str]], labels: Mapping[str, str]
) -> Table:
    """Differences to the controls that a sampled strategy must be read against."""
    table = _plain_table("minus the controls it must be read against")
    table.add_column("strategy - control", overflow="fold", max_width=34)
    for split, column in part.cells:
        table.add_column(f"{split}\n{column.title}" if split else column.title, no_wrap=True)
    for strategy, control in rows:
        cells = []
        for split, column in part.cells:
            beside = control_text.rival(part.gaps.get((strategy, split)), control)
            gap = (beside or {}).get("metrics", {}).get(column.metric)
            cells.append(gap_text(gap, column.scale) if gap else "not run")
        names = (labels.get(name, name) for name in (strategy, control))
        table.add_row(" - ".join(names), *cells)
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
        name, matched = control_text.matched(gap, column.metric)
        if matched:
            lines.append(f"{name} {gap_text(matched, column.scale)}")
    return "\n".join(lines)


def notes(results: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    """What a reader of the tables must know, and what went wrong."""
    said = []
    if results.get("differences"):
        said.append(
            f"Below a value: paired difference to greedy, 95 % interval, {MARK} leaves out zero "
            "(not corrected for several strategies; results.json has Holm's p)."
        )
        said += control_text.legend(results["differences"])
        said += control_text.verdicts(results["differences"], labels)
    said.append(
        "time/token is relative to greedy, prefill included; it varies with the machine. Questions "
        "about one picture share what was computed of it unless a strategy edits the prompt "
        "itself, so that one-word answers show the prefill above all."
    )
    entries = [entry for entry in results["runs"] if entry["split"] != "mean"]
    for entry in entries:
        if entry["failed"]:
            split = f" ({entry['split']})" if entry["split"] else ""
            name = labels.get(entry["strategy"], entry["strategy"])
            where = f"{name}, {entry['task']} on {entry['data']}{split}"
            said.append(f"{where}: {entry['failed']} failed, see errors.jsonl.")
        if entry["task"] in ("amber", "hallusionbench") and entry.get("unparsed"):
            name = labels.get(entry["strategy"], entry["strategy"])
            said.append(
                f"{name}, {entry['task']} on {entry['data']}: {entry['unparsed']} of {entry['n']} "
                "answers say neither yes nor no as the official rule reads them."
            )
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
        told = control_text.sentences(gap, labels, gap_text)
        parts += [Padding(Text(line), (0, 0, 0, 2)) for line in told]
        curve = gap.get("controls", {}).get("length", {}).get("budgets")
        parts += [_curve(curve, gap, labels), Text()] if curve else [Text()]
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
    title = f"{name} minus {base}: {gap['task'].upper()}, {gap['data']}{split}, n = {gap['n']}"
    table = _plain_table(title)
    table.padding = (0, 1, 0, 0)  # MME's sums need the width
    table.add_column("metric", overflow="fold", max_width=20)
    for side in (name, base):
        table.add_column(side, overflow="fold", max_width=23)
    table.add_column("difference [95 %]", no_wrap=True)
    for heading in ("p", "p (Holm)", "only one"):
        table.add_column(heading, no_wrap=True)
    for metric, d in gap["metrics"].items():
        scale = _scale(gap["task"], metric)
        sides = (value_text(d[side], scale) for side in ("strategy", "baseline"))
        only = ":".join(map(str, d.get("discordant", ())))
        table.add_row(
            metric, *sides, gap_text(d, scale), f"{d['p']:.2g}", f"{d['p_holm']:.2g}", only
        )
    return table


def _curve(
    curve: Sequence[Mapping[str, Any]], gap: Mapping[str, Any], labels: Mapping[str, str]
) -> Table:
    """CHAIR of captions cut at fixed numbers of words."""
    name, base = _names(gap, labels)
    table = _plain_table(f"captions cut after so many words: {name}, then {base}")
    for title in ("words", "reached by"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("CHAIR_s %", "CHAIR_i %"):
        table.add_column(title, justify="right", no_wrap=True)
        table.add_column("difference [95 %]", no_wrap=True)
    for point in curve:
        row = [str(point["words"]), "{strategy}, {baseline}".format(**point["reach"])]
        for metric in ("chair_s", "chair_i"):
            d = point["metrics"][metric]
            sides = (f"{d[side]['value'] * 100:.1f}" for side in ("strategy", "baseline"))
            row += [", ".join(sides), gap_text(d, 100.0)]
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
        for metric, spread in entry["metrics"].items():
            scale = _scale(entry["task"], metric)
            row = [value_text({**spread, "value": spread["mean"]}, scale)]
            row.append(f"{spread['sd'] * scale:.2f}")
            if gap := gaps.get(metric):
                row.append(gap_text({**gap, "value": gap["mean"]}, scale))
                row.append(f"{gap['sd'] * scale:.2f}")
            table.add_row(metric, *row)
        parts += [table, Text()]
    said = f"Seeds {', '.join(map(str, seeds))}. Intervals: seeds resampled, and pictures in them."
    return Group(*parts, Text(said))


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


def _scale(task: str, metric: str) -> float:
    plain = task == "mme" and not metric.endswith((".acc", ".acc_plus"))
    return 1.0 if plain or metric in ("length", "unparsed") else 100.0
