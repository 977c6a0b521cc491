"""Training curves of all seeds as one picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# told apart without red and green
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
)  # tell apart without red and green
_LINES = ("-", "--", ":", "-.")
_PANELS = {
    "vision": ("loss", ("patch accuracy",)),
    "words": ("loss", ("existence", "count", "color", "position", "place", "scene")),
}
_TITLES = {"vision": "Stage 1: patches", "words": "Stage 2: sentences"}


def draw(folders: Mapping[int, Path], target: Path) -> Path:
    """Draws loss and accuracy of both stages.

    Args:
        folders: Seed to its folder, with `vision.csv` and `words.csv`.
        target: The PNG file.

    Returns:
        ``target``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    for row, (stage, (loss, names)) in enumerate(_PANELS.items()):
        for number, (seed, folder) in enumerate(sorted(folders.items())):
            lines = _read(folder / f"{stage}.csv")
            style: dict[str, Any] = {"linestyle": _LINES[number % len(_LINES)], "linewidth": 1.5}
            _line(axes[row, 0], lines, loss, color="0.2", label=f"seed {seed}", **style)
            for colour, name in zip(_COLOURS * 2, names, strict=False):
                key = name if name in lines[0] or stage == "vision" else f"{name} accuracy"
                label = name if number == 0 else None
                _line(axes[row, 1], lines, key, color=colour, label=label, **style)
        axes[row, 0].set(title=_TITLES[stage], xlabel="step", ylabel="training loss")
        axes[row, 1].set(title="On pictures kept apart", xlabel="step", ylabel="accuracy")
        axes[row, 1].set_ylim(0, 1)
        for axis in axes[row]:
            axis.grid(color="0.9")
        axes[row, 0].legend(fontsize="small", frameon=False)
        axes[row, 1].legend(fontsize="small", frameon=False, loc="lower right", ncols=2)
    figure.savefig(target, dpi=100, facecolor="white")
    return target


def table(folder: Path) -> str:
    """The lines of both curves at which the stages were measured, in Markdown.

    Args:
        folder: Holds `vision.csv` and `words.csv`.
    """
    parts = []
    for stage, title in _TITLES.items():
        lines = _read(folder / f"{stage}.csv")
        names = [name for name in lines[0] if name != "seconds"]
        parts += [f"{title}:", "", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
        measured = [line for line in lines if all(line[name] for name in names)]
        parts += [
            "| " + " | ".join([line["step"], *(f"{float(line[n]):.3f}" for n in names[1:])]) + " |"
            for line in measured
        ]
        parts.append("")
    return "\n".join(parts)


def seconds(folder: Path) -> list[float]:
    """Processor time of each stage, in seconds.

    Args:
        folder: Holds `vision.csv` and `words.csv`.
    """
    return [float(_read(folder / f"{stage}.csv")[-1]["seconds"]) for stage in _PANELS]


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _line(axis: Any, lines: Sequence[Mapping[str, str]], key: str, **style: Any) -> None:
    points = [(int(line["step"]), float(line[key])) for line in lines if line.get(key)]
    axis.plot(*zip(*points, strict=True), **style) if points else None
