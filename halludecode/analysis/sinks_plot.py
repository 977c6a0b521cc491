"""A sink report as one figure: phi by layer, a picture with its sinks, their attention."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from halludecode.core.errors import MissingExtra
from halludecode.core.sinks import CLASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from halludecode.analysis.sinks import SinkExample, SinkReport

WIDTH, UPPER, LOWER, DPI = 9.0, 4.7, 3.0, 100  # inches; 900 pixels wide
SMALL = 10  # points
# Okabe and Ito's palette; marks differ in shape too.
LOOKS = {
    "first": ("first token", "#d55e00", "s", 9),
    "image": ("visual tokens, largest", "#0072b2", "o", 5),
    "text": ("other tokens, largest", "#009e73", "^", 6),
}
ASIDE = "#5b6570"
LABELLED = 8  # sinks of a picture that are told their share


def draw(report: SinkReport) -> Figure:
    """The whole figure."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra('Pictures need Matplotlib: pip install "halludecode[plot]".') from None
    height = UPPER + (LOWER if report.dims else 0)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white", layout="constrained")
    about = f"{report.model}, {report.source}, engine {report.engine}"
    verdict = textwrap.fill(report.verdict[0].upper() + report.verdict[1:] + ".", 98)
    figure.suptitle(f"{verdict}\n{about}", x=0.01, ha="left", fontsize=SMALL + 1)
    rows = 2 if report.dims else 1
    grid = figure.add_gridspec(
        rows, 2, width_ratios=(1.45, 1), height_ratios=(UPPER - 0.6, LOWER)[:rows]
    )
    _phi(figure.add_subplot(grid[0, 0]), report)
    _picture(figure.add_subplot(grid[0, 1]), report.example)
    if report.dims:
        _attention(figure.add_subplot(grid[1, :]), report)
    return figure


def _phi(axes: Axes, report: SinkReport) -> None:
    """Phi of each kind of token, layer by layer."""
    survey = report.survey
    for kind, name in enumerate(CLASSES):
        label, colour, mark, size = LOOKS[name]
        values = survey.phi[:, kind, 1].numpy()
        if not np.isnan(values).all():
            line: dict[str, Any] = {"color": colour, "marker": mark, "markersize": size}
            line["markevery"] = _step(len(survey.layers))
            line |= {"mfc": "none", "mew": 1.6} if name == "first" else {}
            axes.plot(survey.layers, values, label=label, **line)
    if report.dims and survey.pictures:
        mean = survey.phi[:, CLASSES.index("image"), 0].numpy()
        axes.plot(survey.layers, mean, color=LOOKS["image"][1], ls=":", label="visual tokens, mean")
    axes.axhline(survey.tau, color="black", ls="--", lw=1.2, label=f"threshold {survey.tau:g}")
    axes.set_ylim(bottom=0)
    axes.margins(y=0.12)
    _layers(axes, report)
    dims = f"dims {', '.join(map(str, report.dims))}" if report.dims else "any dimension"
    axes.set_ylabel(f"phi = |x| / rms(x), {dims}", fontsize=SMALL)
    axes.set_title("How massive tokens are", loc="left", fontsize=SMALL + 1)
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17)}
    axes.legend(fontsize=SMALL - 1, frameon=False, ncols=3, **place)


def _picture(axes: Axes, example: SinkExample | None) -> None:
    """The picture with a frame round every sink."""
    from matplotlib.patches import Rectangle

    axes.set_xticks([])
    axes.set_yticks([])
    if example is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no picture whose tokens\nform a raster", ha="center", color=ASIDE)
        return
    rows, columns = example.sinks.shape
    axes.imshow(example.image, extent=(0, columns, rows, 0))
    places = np.argwhere(example.sinks)
    for row, column in places:
        for colour, width in (("white", 4.0), ("#d55e00", 2.2)):
            frame = Rectangle((column, row), 1, 1, fill=False, ec=colour, lw=width)
            frame.set_clip_on(False)
            axes.add_patch(frame)
        if len(places) <= LABELLED:
            right = column < columns / 2
            axes.annotate(
                f"{example.attention[row, column]:.0%}",
                (column + (1.15 if right else -0.15), row + 0.5),
                ha="left" if right else "right",
                va="center",
                fontsize=SMALL,
                fontweight="bold",
                bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1.5},
            )
    title = f"{len(places)} of {rows * columns} visual tokens are sinks"
    if len(places):
        title += f",\nwith {example.attention[example.sinks].sum():.0%} of image attention here"
    axes.set_title(title, loc="left", fontsize=SMALL + 1)


def _attention(axes: Axes, report: SinkReport) -> None:
    """Per layer, the sinks' share of attention beside their share of tokens."""
    survey = report.survey
    places = np.arange(len(survey.layers))
    pairs = (
        ("share of image attention they take", survey.taken, "#0072b2", "", -0.2),
        ("share of visual tokens they are", survey.flagged, "#e69f00", "///", 0.2),
    )
    for name, values, colour, hatch, shift in pairs:
        bars = axes.bar(
            places + shift, values.numpy(), 0.4, color=colour, hatch=hatch, ec="white", label=name
        )
        if len(places) <= 16:
            axes.bar_label(bars, [f"{v:.1%}" for v in values.tolist()], fontsize=SMALL - 1)
    axes.set_xticks(places[:: _step(len(places))], survey.layers[:: _step(len(places))])
    axes.set_xlabel("layer", fontsize=SMALL)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_ylim(0, max(0.05, 1.45 * float(max(survey.taken.max(), survey.flagged.max()))))
    axes.set_title(
        "What sinks get of the attention that a prompt's last token pays to the image",
        loc="left",
        fontsize=SMALL + 1,
    )
    axes.legend(fontsize=SMALL - 1, frameon=False, loc="upper left", ncols=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _layers(axes: Axes, report: SinkReport) -> None:
    """Ticks of the layers, and a band over those that decide."""
    survey = report.survey
    axes.set_xticks(survey.layers[:: _step(len(survey.layers))])
    axes.set_xlabel("layer", fontsize=SMALL)
    ends = (survey.middle[0] - 0.3, survey.middle[-1] + 0.3)
    axes.axvspan(*ends, color="#eceff2", zorder=0, label="layers that decide")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _step(count: int) -> int:
    return max(1, -(-count // 16))
