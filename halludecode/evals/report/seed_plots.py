"""Values of several seeds: each with its interval over pictures, their mean with that over both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.results.build import MEAN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Key = tuple[str, str, str | None, str]  # task, source, split, strategy
SUFFIXES = (".png", ".pdf", ".svg")


def draw_seeds(
    folder: Path,
    spreads: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str],
) -> list[Path]:
    """One drawing per task and source, of its headlines, as PNG, PDF and SVG; their paths.

    Args:
        folder: Where they go.
        spreads: Entries of `compare.SeedComparison`.
        runs: The content of every seed's ``results.json``.
        labels: Canonical strategy to a shorter name.
    """
    each = [{_key(entry): entry for entry in run["runs"]} for run in runs]
    paths: list[Path] = []
    for task, data in dict.fromkeys((entry["task"], entry["data"]) for entry in spreads):
        here = [entry for entry in spreads if (entry["task"], entry["data"]) == (task, data)]
        whole = [entry for entry in here if entry["split"] == MEAN] or here
        figure = _figure(task, data, whole, each, labels)
        for suffix in SUFFIXES:
            paths.append(folder / f"seeds-{task}-{Path(data).name}{suffix}")
            figure.savefig(paths[-1])
    return paths


def _key(entry: Mapping[str, Any]) -> Key:
    return entry["task"], entry["data"], entry["split"], entry["strategy"]


def _figure(
    task: str,
    data: str,
    spreads: Sequence[Mapping[str, Any]],
    each: Sequence[Mapping[Key, Mapping[str, Any]]],
    labels: Mapping[str, str],
) -> Any:
    from matplotlib.figure import Figure

    benchmark = benchmark_named(task)
    names = benchmark.headlines() or tuple(spreads[0]["metrics"])[:1]
    width = 1.5 + max(2.0, 1.1 * len(spreads))
    figure = Figure(figsize=(width * len(names), 3.8), dpi=120, layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        metric = benchmark.metric(name)
        for place, entry in enumerate(spreads):
            values = [run[_key(entry)]["metrics"][name] for run in each if _key(entry) in run]
            _strategy(axes, place, values, entry["metrics"][name], metric.scale)
        words = [labels.get(entry["strategy"], entry["strategy"]) for entry in spreads]
        axes.set_xticks(range(len(words)), words, rotation=20, ha="right", fontsize=8)
        axes.set_ylabel(metric.axis_title, fontsize=9)
        axes.grid(axis="y", alpha=0.25)
    figure.suptitle(
        f"{task.upper()} on {data}: {len(each)} seeds (thin: 95 % over pictures), their mean "
        "(thick: 95 % over seeds and pictures)",
        fontsize=8,
    )
    return figure


def _strategy(
    axes: Axes,
    place: int,
    values: Sequence[Mapping[str, float]],
    spread: Mapping[str, float],
    scale: float,
) -> None:
    for number, value in enumerate(values):
        x = place - 0.3 + 0.4 * number / max(1, len(values) - 1)
        axes.plot([x, x], [value["low"] * scale, value["high"] * scale], color="0.7", linewidth=1)
        axes.plot([x], [value["value"] * scale], "o", color="#0072B2", markersize=3)
    x = place + 0.3
    low, high = spread["low"] * scale, spread["high"] * scale
    axes.plot([x, x], [low, high], color="#D55E00", linewidth=2.5)
    axes.plot([x], [spread["mean"] * scale], "D", color="#D55E00", markersize=5)
