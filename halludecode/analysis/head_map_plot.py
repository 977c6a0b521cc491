"""Layer x head maps as Matplotlib figures, 900 pixels wide."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from halludecode.core.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from halludecode.analysis.head_map import HeadMap

TITLES = {
    "vhd": "Head divergence (VHD): ||output with image - output without||",
    "mass": "Attention on image tokens",
    "ablation": "What silencing a head does to the right answer",
}
WIDTH, DPI = 9.0, 100  # inches; 900 pixels
LEFT, ACROSS, BAR, BELOW, ABOVE = 0.62, 7.25, 0.17, 0.55, 0.85  # inches
ROW = 0.3  # inches of a layer, within limits
TICKS = 16  # most tick labels of an axis
SMALL = 10  # points
LINE = 112  # characters of the smallest size that fit the width


def draw(head_map: HeadMap, part: str | None, top: int) -> Figure:
    """One map: layers down, heads across; the ``top`` heads are ringed.

    Signed maps use a diverging scale centred at zero and dot the heads whose interval leaves out
    zero; the others use cividis from zero. Both are safe for the colour-blind.
    """
    check()
    from matplotlib.figure import Figure

    grid = head_map._part(part)
    layers, heads = grid.values.shape
    height = min(max(layers * ROW, 2.2), 9.0)
    whole = BELOW + height + ABOVE
    figure = Figure(figsize=(WIDTH, whole), dpi=DPI, facecolor="white")
    axes = figure.add_axes((LEFT / WIDTH, BELOW / whole, ACROSS / WIDTH, height / whole))
    beside = ((LEFT + ACROSS + 0.12) / WIDTH, BELOW / whole, BAR / WIDTH, height / whole)
    image = axes.imshow(grid.values, aspect="auto", interpolation="nearest", **_scale(head_map))
    figure.colorbar(image, cax=figure.add_axes(beside)).set_label(head_map.unit, fontsize=SMALL)
    axes.set_xlabel("head", fontsize=SMALL + 1)
    axes.set_ylabel("layer", fontsize=SMALL + 1)
    axes.set_xticks(_ticks(heads))
    axes.set_yticks(_ticks(layers))
    legend = _mark(axes, head_map, part, top, min(ACROSS * 72 / heads, height * 72 / layers))
    stable = (
        "" if head_map.stability is None else f" Halves agree at Spearman {head_map.stability:.2f}."
    )
    title = TITLES[head_map.metric] + (f": {part}" if part else "")
    counts = f"{head_map.samples} samples of {head_map.pictures} pictures"
    about = f"{head_map.model}, {counts}. {legend}{stable}"
    lines = textwrap.wrap(about, LINE, max_lines=2)
    inch = 1 / whole
    figure.text(LEFT / WIDTH, 1 - 0.12 * inch, title, fontsize=SMALL + 2, va="top")
    figure.text(LEFT / WIDTH, 1 - 0.4 * inch, "\n".join(lines), fontsize=SMALL - 1, va="top")
    return figure


def _mark(axes: Axes, head_map: HeadMap, part: str | None, top: int, size: float) -> str:
    """Rings and dots of a cell's ``size`` in points; what they mean."""
    best = [head for head in head_map.top(top, part=part) if head.value > 0]
    x, y = [head.head for head in best], [head.layer for head in best]
    for colour, width in (("white", 2.8), ("black", 1.2)):  # seen on any colour
        area = (0.75 * size) ** 2
        axes.scatter(x, y, s=area, facecolors="none", edgecolors=colour, linewidths=width)
    legend = f"Rings: the {len(best)} highest."
    if head_map.signed:
        grid = head_map._part(part)
        clear = np.argwhere((grid.low > 0) | (grid.high < 0))
        axes.scatter(clear[:, 1], clear[:, 0], s=(0.16 * size) ** 2, color="black", linewidths=0)
        legend += " Dots: the 95 % interval leaves out zero."
    return legend


def _scale(head_map: HeadMap) -> dict[str, Any]:
    """Colours; a map and its parts share one scale."""
    every = [head_map.values, *(grid.values for grid in head_map.parts.values())]
    most = max(float(np.nanmax(np.abs(values))) for values in every) or 1.0
    if head_map.signed:
        return {"cmap": "RdBu_r", "vmin": -most, "vmax": most}
    return {"cmap": "cividis", "vmin": 0.0, "vmax": most}


def _ticks(count: int) -> list[int]:
    step = next(s for s in (1, 2, 4, 5, 8, 10, 16, 20, 50, 100, 1000) if count / s <= TICKS)
    return list(range(0, count, step))


def check() -> None:
    """Raise MissingExtra unless Matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtra('Pictures need Matplotlib: pip install "halludecode[plot]".') from None
