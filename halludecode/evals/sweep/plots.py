"""What a sweep found, over each of its parameters: intervals, and greedy's line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halludecode.core.errors import MissingExtra
from halludecode.evals.benchmarks.registry import benchmark_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".pdf", ".svg")
LINES = 6  # most lines of a drawing; beyond, the one through the best setting stands alone
# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKS = "os^Dv<"


def check() -> None:
    """Raise MissingExtra unless Matplotlib is installed."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise MissingExtra('A sweep draws its parameters: pip install "halludecode[plot]".')


def draw(folder: Path, found: Mapping[str, Any]) -> list[Path]:
    """One drawing per parameter that has several values, as PNG, PDF and SVG; their paths.

    Args:
        folder: The sweep's.
        found: The content of ``sweep.json``.
    """
    best = found["best"]
    alike = [row for row in found["settings"] if row["values"].keys() == best["values"].keys()]
    paths: list[Path] = []
    for name in best["values"]:
        if len({row["values"][name] for row in alike}) > 1:
            figure = _figure(name, alike, found)
            for suffix in SUFFIXES:
                path = folder / f"{name}{suffix}"
                figure.savefig(path)
                paths.append(path)
    return paths


def _figure(name: str, rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> Any:
    from matplotlib.figure import Figure

    metric = benchmark_named(found["task"]).metric(found["metric"])
    sources, best = list(found["greedy"]), found["best"]
    figure = Figure(figsize=(1.2 + 4.6 * len(sources), 3.8), dpi=120, layout="constrained")
    every = figure.subplots(1, len(sources), sharey=True, squeeze=False)[0]
    lines = _lines(name, rows, best)
    words = [row["values"][name] for row in rows]
    ticks = [] if all(isinstance(w, int | float) for w in words) else list(dict.fromkeys(words))
    for axes, source in zip(every, sources, strict=True):
        _greedy(axes, found["greedy"][source], metric.scale)
        for number, (label, line) in enumerate(lines.items()):
            points = [(row["values"][name], row["dev"][source]) for row in line if row["dev"]]
            _line(axes, points, ticks, label, number, len(lines), metric.scale)
        here = best["values"][name]
        x = ticks.index(here) if ticks else here
        y = best["dev"][source]["value"] * metric.scale
        axes.plot([x], [y], "*", color="black", markersize=13, zorder=5, label="chosen")
        if ticks:
            axes.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
        axes.set_xlabel(name)
        axes.set_title(source, fontsize=10)
        axes.grid(alpha=0.25)
    every[0].set_ylabel(metric.axis_title)
    every[-1].legend(fontsize=7, frameon=False, loc="best")
    figure.suptitle(
        f"{found['task'].upper()} on development pictures, 95 % intervals; "
        f"{found['tried']} settings tried",
        fontsize=9,
    )
    return figure


def _lines(
    name: str, rows: Sequence[Mapping[str, Any]], best: Mapping[str, Any]
) -> dict[str, list[Mapping[str, Any]]]:
    """Settings that differ in this parameter alone, by the values of the others in words."""

    def others(row: Mapping[str, Any]) -> str:
        return ", ".join(f"{key}={value}" for key, value in row["values"].items() if key != name)

    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: _order(row["values"][name])):
        lines.setdefault(others(row), []).append(row)
    return lines if len(lines) <= LINES else {others(best): lines[others(best)]}


def _order(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value


def _greedy(axes: Axes, value: Mapping[str, float], scale: float) -> None:
    low, high = value["low"] * scale, value["high"] * scale
    axes.axhspan(low, high, color="0.88", zorder=0, label="greedy, 95 %")
    axes.axhline(value["value"] * scale, color="0.35", linestyle="--", label="greedy", zorder=1)


def _line(
    axes: Axes,
    points: Sequence[tuple[Any, Mapping[str, float]]],
    ticks: Sequence[Any],
    label: str,
    number: int,
    count: int,
    scale: float,
) -> None:
    """Values with their intervals, lines moved apart so that these do not hide one another."""
    xs = [ticks.index(x) if ticks else x for x, _ in points]
    width = (max(xs) - min(xs)) or 1
    xs = [x + (number - (count - 1) / 2) * width * 0.008 for x in xs]
    ys = [v["value"] * scale for _, v in points]
    below = [y - v["low"] * scale for y, (_, v) in zip(ys, points, strict=True)]
    above = [v["high"] * scale - y for y, (_, v) in zip(ys, points, strict=True)]
    axes.errorbar(
        xs,
        ys,
        yerr=[below, above],
        label=label or None,
        color=COLOURS[number % len(COLOURS)],
        marker=MARKS[number % len(MARKS)],
        markersize=4,
        linewidth=1.2,
        elinewidth=0.9,
        capsize=2,
        zorder=3,
    )
