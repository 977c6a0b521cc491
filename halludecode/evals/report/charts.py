"""Small charts as inline SVG: bars with intervals, labelled points, labelled curves.

Everything is drawn here, so a page that holds a chart needs no script, no library and no request.
Widths of words are estimated for the widest font the page asks for, so that no text is clipped and
labels keep clear of each other. Meaning never rests on colour alone: marks differ in shape too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

INK, SOFT, GRID, WHISKER = "#1b1f24", "#5b6570", "#e3e7eb", "#3a434c"
COLOURS = {"better": "#0b62a4", "worse": "#b3400a", "changed": "#1b1f24", "open": "#8a949e"}
FILLS = {"better": "#0b62a4", "worse": "#b3400a", "changed": "#5b6570", "open": "#c3ccd5"}
SIGNS = {"better": " ▲", "worse": " ▼", "changed": " ●", "open": ""}
# Okabe and Ito's palette without its yellow, which is too light for lines on white.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8c6d00")
DASHES = ("", "6 3", "2 3", "8 3 2 3")
WIDTH = 900  # of a full-width chart
SIZE = 11.5  # of all text
LINE = 14  # from one line of text to the next
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Value:
    """A number with its interval, in the units it is shown in."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """One set of bars.

    Args:
        title: Bold line above.
        subtitle: Line below it.
        bars: One value per row; None leaves the row empty.
        verdicts: Per row "better", "worse", "changed", "open" or "baseline".
        axis: Panels of one axis share their scale.
        floor: Where an axis starts when all its intervals lie above: what guessing gets. Else 0.
    """

    title: str
    subtitle: str
    bars: Sequence[Value | None]
    verdicts: Sequence[str]
    axis: str = ""
    floor: float = 0.0


@dataclass(frozen=True)
class Curve:
    """One labelled line through ``points`` (x, y), from left to right."""

    name: str
    points: Sequence[tuple[float, float]]
    baseline: bool = False


# Text and axes ----------------------------------------------------------------------------------


def text_width(text: str, size: float = SIZE) -> float:
    """Upper estimate of a text's width in pixels, for DejaVu Sans."""
    narrow, wide = "iljI.,:;'|!()[]ft ", "mwMW@%=+<>▲▼●…"
    share = sum(0.42 if c in narrow else 0.98 if c in wide else 0.66 for c in text)
    return share * size


def wrap(name: str, most: float, size: float = SIZE) -> list[str]:
    """Breaks a name into lines of at most ``most`` pixels, after ``+ , (`` or a space if it can."""
    lines = [""]
    for part in _parts(name, most, size):
        if lines[-1] and text_width(lines[-1] + part.rstrip(), size) > most:
            lines.append("")
        lines[-1] += part
    return [line.strip() for line in lines]


def _parts(name: str, most: float, size: float) -> list[str]:
    parts, start = [], 0
    for i, letter in enumerate(name, start=1):
        if letter in "+,( =_/" or text_width(name[start:i], size) > most - size:
            parts.append(name[start:i])
            start = i
    return [*parts, name[start:]] if start < len(name) else parts


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from at or below ``low`` to at or above ``high``, about ``count`` of them."""
    if high - low < 1e-6:  # a single value still needs an axis
        low, high = low - 0.5, high + 0.5
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power * count >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:g}"


def put(x: float, y: float, words: str, anchor: str = "start", extra: str = "") -> str:
    """Text with its baseline at ``y``; ``anchor`` start, middle or end; ``extra`` attributes."""
    more = f" {extra}" if extra else ""
    end = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}"{end}{more}>{escape(words)}</text>'


def rule(x1: float, y1: float, x2: float, y2: float, colour: str, extra: str = "") -> str:
    """A straight line."""
    more = f" {extra}" if extra else ""
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}"{more}/>'


def svg(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    """The whole drawing; ``label`` is what readers hear who cannot see it."""
    style = "chart wide" if width >= WIDTH else "chart"
    return (
        f'<svg class="{style}" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


# Bars -------------------------------------------------------------------------------------------


def bars(names: Sequence[str], panels: Sequence[Panel], label: str, across: int = 4) -> str:
    """Rows of bars, one row a name, one panel beside the other, at most ``across`` of them.

    Args:
        names: Row names, shared by all panels.
        panels: What to draw.
        label: What the chart shows, for readers that cannot see it.
        across: Panels side by side; more go below.
    """
    if not names or not panels:
        return ""
    rows = [wrap(name, 150) for name in names]
    left = max(text_width(line) for lines in rows for line in lines) + 12
    tops, at = [], 36.0
    for lines in rows:
        tops.append(at)
        at += max(19.0, LINE * len(lines) + 5)
    height = at + 24
    wide = (WIDTH - left) / min(across, len(panels))
    parts = []
    for i, panel in enumerate(panels):
        x, y = left + (i % across) * wide, (i // across) * (height + 10)
        parts.append(f'<g transform="translate({x:.1f} {y:.1f})">')
        scale = _scale(panels, panel.axis)
        parts += [*_panel(panel, scale, tops, at, wide - 18), "</g>"]
    deep = -(-len(panels) // across)
    for k in range(deep):
        for lines, top in zip(rows, tops, strict=True):
            for j, line in enumerate(lines):
                y = k * (height + 10) + top + 13 + j * LINE
                parts.append(put(left - 8, y, line, "end"))
    return svg(WIDTH, deep * (height + 10) - 10, label, parts)


def start(panels: Sequence[Panel], axis: str) -> float:
    """Where the bars of an axis start."""
    own = [panel for panel in panels if panel.axis == axis]
    least = min((bar.low for panel in own for bar in panel.bars if bar), default=0.0)
    return min(panel.floor for panel in own) if least >= own[0].floor else 0.0


def _scale(panels: Sequence[Panel], axis: str) -> tuple[float, float, list[float]]:
    """First and last value of an axis, and the round numbers on it."""
    first = start(panels, axis)
    highs = (bar.high for panel in panels if panel.axis == axis for bar in panel.bars if bar)
    last = max(max(highs, default=1.0), first + 1e-3)
    marks = (first + mark for mark in ticks(0.0, last - first, 4))
    return first, last, [mark for mark in marks if mark <= last]


def _panel(
    panel: Panel,
    scale: tuple[float, float, Sequence[float]],
    tops: Sequence[float],
    bottom: float,
    width: float,
) -> Iterable[str]:
    first, last, marks = scale
    room = width - 56  # for the number behind the longest bar

    def at(value: float) -> float:
        return (value - first) / (last - first) * room

    yield put(0, 12, panel.title, extra='class="head"')
    yield put(0, 26, panel.subtitle, extra='class="soft"')
    for mark in marks:
        yield rule(at(mark), 34, at(mark), bottom, GRID)
        yield put(at(mark), bottom + 14, _number(mark), "middle", 'class="soft"')
    for bar, verdict, top in zip(panel.bars, panel.verdicts, tops, strict=True):
        if not bar:
            yield put(2, top + 13, "none", extra='class="soft"')
            continue
        fill = FILLS.get(verdict, INK)
        middle = top + 9
        yield (
            f'<rect x="0" y="{top + 3:.1f}" width="{max(at(bar.value), 0):.1f}" height="12" '
            f'fill="{fill}"/>'
        )
        yield from _whisker(at(bar.low), at(bar.high), middle, verdict in ("baseline", "changed"))
        number = f"{bar.value:.1f}{SIGNS.get(verdict, '')}"
        colour = f'fill="{COLOURS.get(verdict, INK)}"' if verdict in ("better", "worse") else ""
        yield put(max(at(bar.high), at(bar.value)) + 6, top + 13, number, extra=colour)
    baseline = [b for b, v in zip(panel.bars, panel.verdicts, strict=True) if b and v == "baseline"]
    if baseline:
        x = at(baseline[0].value)
        yield rule(x, 34, x, bottom, INK, 'stroke-dasharray="2 3" stroke-width="1"')


def _whisker(low: float, high: float, y: float, dark: bool) -> Iterable[str]:
    if dark:  # a light rim, or the line would vanish on the bar
        yield rule(low, y, high, y, "#fff", 'stroke-width="3.5"')
    yield (
        f'<path d="M{low:.1f} {y - 4:.1f}v8M{low:.1f} {y:.1f}H{high:.1f}M{high:.1f} {y - 4:.1f}v8" '
        f'stroke="{WHISKER}" stroke-width="1.3" fill="none"/>'
    )


# Plots ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """Where a plot lies and how its numbers become pixels."""

    box: Box
    xs: Sequence[float]  # ticks
    ys: Sequence[float]

    def x(self, value: float) -> float:
        """Pixels from the left."""
        left, _, right, _ = self.box
        return left + (value - self.xs[0]) / (self.xs[-1] - self.xs[0]) * (right - left)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        _, top, _, bottom = self.box
        return bottom - (value - self.ys[0]) / (self.ys[-1] - self.ys[0]) * (bottom - top)

    def draw(self, x_title: str, y_title: str) -> Iterable[str]:
        """Axes, grid, numbers and titles."""
        left, top, right, bottom = self.box
        for value in self.xs:
            yield rule(self.x(value), top, self.x(value), bottom, GRID)
            yield put(self.x(value), bottom + 16, _number(value), "middle", 'class="soft"')
        for value in self.ys:
            yield rule(left, self.y(value), right, self.y(value), GRID)
            yield put(left - 6, self.y(value) + 4, _number(value), "end", 'class="soft"')
        yield rule(left, bottom, right, bottom, SOFT)
        yield rule(left, top, left, bottom, SOFT)
        yield put((left + right) / 2, bottom + 34, x_title, "middle")
        yield put(4, 13, y_title)


def framed(xs: Sequence[float], ys: Sequence[float], right: float, height: float) -> Frame:
    """The frame for these ticks in a drawing of this height; its numbers stay left of ``right``."""
    left = max(46.0, 10 + max(text_width(_number(y)) for y in ys))
    half = text_width(_number(xs[-1])) / 2
    return Frame((left, 24, right - half - 2, height - 42), xs, ys)


def curves(shown: Sequence[Curve], x_title: str, y_title: str, label: str) -> str:
    """Lines named at their right ends; lines that coincide share a label.

    Whatever the names, each is written in full beside its line, no label lies on another, and none
    reaches beyond the drawing: it grows with them.

    Args:
        shown: The lines; the baseline's is thick and dark.
        x_title: Below the axis.
        y_title: Above the axis.
        label: What the chart shows, for readers that cannot see it.
    """
    groups: dict[tuple[tuple[float, float], ...], list[Curve]] = {}
    for curve in sorted(shown, key=lambda c: not c.baseline):
        if curve.points:
            groups.setdefault(tuple(curve.points), []).append(curve)
    if not groups:
        return ""
    names = [wrap(", ".join(c.name for c in group), 170) for group in groups.values()]
    room = max(text_width(line) for lines in names for line in lines)
    width = WIDTH / 2 - 8 if room <= 120 and len(groups) <= 9 else float(WIDTH)
    height = max(300.0, stack_height(names))
    every = [point for line in groups for point in line]
    xs = ticks(min(x for x, _ in every), max(x for x, _ in every))
    ys = ticks(0.0, max(y for _, y in every))
    frame = framed(xs, ys, width - room - 26, height)
    parts = [*frame.draw(x_title, y_title)]
    sizes = [LINE * len(lines) for lines in names]
    ends = spread([frame.y(line[-1][1]) for line in groups], sizes, 0.0, height - 12)
    for i, (line, group) in enumerate(groups.items()):
        parts += _curve(line, frame, _style(i, group[0].baseline), ends[i])
        for j, words in enumerate(names[i]):
            y = ends[i] - LINE * (len(names[i]) - 1) / 2 + j * LINE + 4
            head = 'class="head"' if group[0].baseline else ""
            parts.append(put(frame.box[2] + 28, y, words, extra=head))
    return svg(width, height, label, parts)


def _curve(
    line: Sequence[tuple[float, float]], frame: Frame, style: str, end: float
) -> Iterable[str]:
    """A line, and a thin one of the same kind to its name."""
    path = "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in line)
    yield f'<path d="M{path}" fill="none" stroke-linejoin="round" {style}/>'
    last_x, last_y = frame.x(line[-1][0]), frame.y(line[-1][1])
    edge = frame.box[2] + 24
    yield (
        f'<path d="M{last_x:.1f} {last_y:.1f}H{frame.box[2] + 6:.1f}L{edge:.1f} {end:.1f}" '
        f'fill="none" opacity="0.55" {style}/>'
    )


def _style(number: int, baseline: bool) -> str:
    if baseline:
        return f'stroke="{INK}" stroke-width="2.6"'
    colour = LINES[(number - 1) % len(LINES)]
    dash = DASHES[(number - 1) // len(LINES) % len(DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="{colour}" stroke-width="1.8"{dashed}'


def spread(
    middles: Sequence[float], heights: Sequence[float], first: float, last: float
) -> list[float]:
    """Middles of labels stacked between ``first`` and ``last``, each near where it should be.

    Labels keep their order and never overlap; all lie inside if their heights and two pixels
    between each two fit in.
    """
    order = sorted(range(len(middles)), key=lambda i: middles[i])
    placed = list(middles)
    above = first
    for i in order:
        placed[i] = max(placed[i], above + heights[i] / 2)
        above = placed[i] + heights[i] / 2 + 2
    below = last
    for i in reversed(order):
        placed[i] = min(placed[i], below - heights[i] / 2)
        below = placed[i] - heights[i] / 2 - 2
    return placed


def stack_height(labels: Iterable[Sequence[str]]) -> float:
    """Height of a plot beside which labels of so many lines can be stacked."""
    return 80.0 + sum(LINE * len(lines) + 4 for lines in labels)
