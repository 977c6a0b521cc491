"""Paired differences to greedy as dots with intervals, as PDF and SVG for a paper."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halludecode.evals.benchmarks.base import Metric
from halludecode.evals.report.figures import verdict
from halludecode.evals.results.sections import MEAN, Section

COLOURS = {"better": "#0072B2", "worse": "#D55E00", "changed": "black", "open": "0.55"}
MARKS = {"better": "o", "worse": "s", "changed": "D", "open": "o"}


def draw_forests(
    folder: Path, parts: Sequence[Section], named: Mapping[str, str], stem: str = ""
) -> dict[int, Path]:
    """The PDF of every part that has differences, by its number; an SVG stands beside each.

    Args:
        folder: Where they go.
        parts: What tables show.
        named: Canonical strategy to a shorter name.
        stem: What their names begin with.
    """
    found: dict[int, Path] = {}
    for number, part in enumerate(parts):
        if part.gaps:
            figure = _figure(part, named)
            name = re.sub(r"[^A-Za-z0-9]+", "-", f"{stem}{part.task}-{part.data}").lower()
            for suffix in (".svg", ".pdf"):
                figure.savefig(folder / f"{name}{suffix}")
            found[number] = folder / f"{name}.pdf"
    return found


def _figure(part: Section, named: Mapping[str, str]) -> Any:
    from matplotlib.figure import Figure

    names = part.benchmark.headlines()
    columns = [c for c in part.columns if c.name in names] or part.columns[:2]
    split = MEAN if MEAN in part.splits else part.splits[0]
    strategies = [s for s in part.strategies if (s, split) in part.gaps]
    figure = Figure(figsize=(7.0, 0.9 + 0.3 * len(strategies)), layout="constrained")
    every = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(every, columns, strict=True):
        axes.axvline(0, color="0.4", linewidth=0.8, linestyle="--")
        for place, strategy in enumerate(strategies):
            gap = part.gaps[strategy, split]["metrics"].get(column.name)
            if gap:
                _point(axes, place, gap, column)
        axes.set_xlabel(f"{column.words}: difference to greedy", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.25)
    words = [named.get(s, s) for s in strategies]
    every[0].set_yticks(range(len(words)), words, fontsize=8)
    every[0].set_ylim(len(words) - 0.5, -0.5)
    return figure


def _point(axes: Any, place: int, gap: Mapping[str, float], column: Metric) -> None:
    said = verdict(gap, column.lower_is_better)
    low, value, high = (gap[k] * column.scale for k in ("low", "value", "high"))
    axes.plot([low, high], [place, place], color=COLOURS[said], linewidth=1.6)
    filled = COLOURS[said] if said != "open" else "white"
    axes.plot(
        [value], [place], MARKS[said], color=COLOURS[said], markerfacecolor=filled, markersize=5
    )
