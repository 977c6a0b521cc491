"""Labelled points as inline SVG: every point carries its name, and no label hides another.

Labels stand beside their points, clear of marks and of each other, as far as a search finds room.
Where it finds none, all labels move into a column at the right, a line leading from each to its
point: there they are apart whatever the names and the points, since the drawing grows with them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from halludecode.evals.report import charts
from halludecode.evals.report.charts import Value

LABEL = 150.0  # widest line of a label


@dataclass(frozen=True)
class Point:
    """One labelled point.

    Args:
        name: Its label.
        x: Across.
        y: Up.
        verdict: As for `charts.Panel`, about ``y``.
        moved: Where the point lies under a control, joined to it by a dotted line; None draws none.
    """

    name: str
    x: Value
    y: Value
    verdict: str = "open"
    moved: tuple[float, float] | None = None


def points(
    shown: Sequence[Point],
    x_title: str,
    y_title: str,
    label: str,
    mark: tuple[float, str] | None = None,
) -> str:
    """Points with crossed intervals, every one labelled; those that coincide share a label.

    Args:
        shown: The points; a verdict "baseline" is drawn as a diamond.
        x_title: Below the axis.
        y_title: Above the axis.
        label: What the chart shows, for readers that cannot see it.
        mark: A vertical line worth knowing: where, and what it is. Left out beyond the axis.
    """
    if not shown:
        return ""
    width = 442.0 if len(shown) <= 9 else float(charts.WIDTH)
    height = 300.0 if len(shown) <= 9 else 430.0
    layout = _beside(shown, width, height)
    if not _apart(layout):
        layout = _in_a_column(shown, width, height)
    frame = layout.frame
    parts = [*frame.draw(x_title, y_title)]
    if mark and frame.xs[0] <= mark[0] <= frame.xs[-1]:
        parts += _mark(*mark, frame)
    parts += [_cross(group[0], frame) for group in layout.groups]
    parts += [_trail(p, frame) for group in layout.groups for p in group if p.moved]
    for group, lines, box in zip(layout.groups, layout.texts, layout.boxes, strict=True):
        parts += _label(group, frame, lines, box)
    return charts.svg(layout.width, layout.height, label, parts)


# Where labels stand -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """Points that share a label, the lines of the label, and where it stands."""

    width: float
    height: float
    frame: charts.Frame
    groups: Sequence[Sequence[Point]]
    texts: Sequence[Sequence[str]]
    boxes: Sequence[charts.Box]


def _beside(shown: Sequence[Point], width: float, height: float) -> _Layout:
    """Labels near their points."""
    frame = _frame(shown, width, height)
    groups = _coinciding(shown, frame)
    texts = [_names(group) for group in groups]
    spots = [_spot(group[0], frame) for group in groups]
    crosses = [(frame.x(p.moved[0]), frame.y(p.moved[1])) for p in shown if p.moved]
    return _Layout(width, height, frame, groups, texts, _placed(spots, texts, crosses, frame.box))


def _in_a_column(shown: Sequence[Point], width: float, height: float) -> _Layout:
    """Labels one below the other at the right, in the order of their points."""
    width = max(width, charts.WIDTH / 2 + LABEL)
    right = width - LABEL - 16
    groups = _coinciding(shown, _frame(shown, right, height))
    texts = [_names(group) for group in groups]
    height = max(height, charts.stack_height(texts))
    frame = _frame(shown, right, height)
    sizes = [float(charts.LINE * len(lines)) for lines in texts]
    tops = [_spot(group[0], frame)[1] for group in groups]
    middles = charts.spread(tops, sizes, 16.0, height - 12)
    left = width - LABEL
    boxes = [
        (left, middle - size / 2, left + max(map(charts.text_width, lines)), middle + size / 2)
        for middle, size, lines in zip(middles, sizes, texts, strict=True)
    ]
    return _Layout(width, height, frame, groups, texts, boxes)


def _apart(layout: _Layout) -> bool:
    """Whether no label lies on another and none reaches beyond the drawing."""
    whole = (0.0, 0.0, layout.width, layout.height)
    return not any(_outside(box, whole) for box in layout.boxes) and not any(
        _overlap(a, b) for a, b in itertools.combinations(layout.boxes, 2)
    )


def _frame(shown: Sequence[Point], right: float, height: float) -> charts.Frame:
    moved = [point.moved for point in shown if point.moved]
    xs = [end for p in shown for end in (p.x.low, p.x.high)] + [x for x, _ in moved]
    ys = [end for p in shown for end in (p.y.low, p.y.high)] + [y for _, y in moved]
    across, up = charts.ticks(min(xs), max(xs)), charts.ticks(min(ys), max(ys))
    return charts.framed(across, up, right, height)


def _spot(point: Point, frame: charts.Frame) -> tuple[float, float]:
    return frame.x(point.x.value), frame.y(point.y.value)


def _coinciding(shown: Sequence[Point], frame: charts.Frame) -> list[list[Point]]:
    groups: list[list[Point]] = []
    for point in sorted(shown, key=lambda p: p.verdict != "baseline"):
        for group in groups:
            first = group[0]
            near = math.dist(_spot(first, frame), _spot(point, frame))
            alike = first.verdict == point.verdict or (first.verdict, point.verdict) == (
                "baseline",
                "open",
            )
            if near < 1.0 and alike:
                group.append(point)
                break
        else:
            groups.append([point])
    return groups


def _names(group: Sequence[Point]) -> list[str]:
    """Lines of a label; a baseline stands on its own line, above those that equal it."""
    names = [point.name for point in group]
    if group[0].verdict != "baseline":
        return charts.wrap(", ".join(names), LABEL)
    equal = charts.wrap("= " + ", ".join(names[1:]), LABEL) if names[1:] else []
    return [*charts.wrap(names[0], LABEL), *equal]


def _mark(at: float, name: str, frame: charts.Frame) -> Iterable[str]:
    _, top, right, bottom = frame.box
    x = frame.x(at)
    left_of = x + charts.text_width(name) + 6 > right
    yield charts.rule(x, top, x, bottom, charts.SOFT, 'stroke-dasharray="5 4"')
    yield charts.put(
        x - 5 if left_of else x + 5,
        bottom - 6,
        name,
        "end" if left_of else "start",
        'class="soft halo"',
    )


def _cross(point: Point, frame: charts.Frame) -> str:
    x, y = _spot(point, frame)
    across = charts.rule(frame.x(point.x.low), y, frame.x(point.x.high), y, "#c3ccd5")
    return across + charts.rule(x, frame.y(point.y.low), x, frame.y(point.y.high), "#c3ccd5")


def _trail(point: Point, frame: charts.Frame) -> str:
    to = point.moved or (point.x.value, point.y.value)
    x, y = frame.x(to[0]), frame.y(to[1])
    start = _spot(point, frame)
    cross = f"M{x - 3.5:.1f} {y - 3.5:.1f}l7 7m-7 0l7-7"
    return (
        charts.rule(*start, x, y, charts.SOFT, 'stroke-dasharray="1.5 3" stroke-width="1.3"')
        + f'<path d="{cross}" stroke="{charts.INK}" stroke-width="1.4" fill="none"/>'
    )


def _label(
    group: Sequence[Point], frame: charts.Frame, lines: Sequence[str], box: charts.Box
) -> Iterable[str]:
    first = group[0]
    x, y = _spot(first, frame)
    values = "; ".join(
        f"{p.name}: {p.x.value:.1f} [{p.x.low:.1f}, {p.x.high:.1f}] across, "
        f"{p.y.value:.1f} [{p.y.low:.1f}, {p.y.high:.1f}] up"
        for p in group
    )
    near_x, near_y = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
    yield f"<g><title>{escape(values)}</title>"
    if math.dist((x, y), (near_x, near_y)) > 13:
        yield charts.rule(x, y, near_x, near_y, charts.SOFT, 'stroke-width="0.8"')
    yield _marker(x, y, first.verdict)
    for i, line in enumerate(lines):
        weight = 'class="halo"' if i or first.verdict != "baseline" else 'class="halo head"'
        yield charts.put(box[0], box[1] + 11 + i * charts.LINE, line, extra=weight)
    yield "</g>"


def _marker(x: float, y: float, verdict: str) -> str:
    colour = charts.COLOURS.get(verdict, charts.INK)
    if verdict == "baseline":
        return f'<path d="M{x:.1f} {y - 6.5:.1f}l6.5 6.5-6.5 6.5-6.5-6.5z" fill="{charts.INK}"/>'
    if verdict == "worse":
        return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" fill="{colour}"/>'
    fill = "#fff" if verdict == "open" else colour
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{colour}" '
        'stroke-width="1.8"/>'
    )


def _placed(
    spots: Sequence[tuple[float, float]],
    texts: Sequence[Sequence[str]],
    crosses: Sequence[tuple[float, float]],
    area: charts.Box,
) -> list[charts.Box]:
    """A box for every label: near its point, inside the area, clear of marks and other labels."""
    sizes = [(max(map(charts.text_width, lines)), charts.LINE * len(lines)) for lines in texts]
    points_at = [(x - 6, y - 6, x + 6, y + 6) for x, y in [*spots, *crosses]]
    placed: list[charts.Box | None] = [None] * len(spots)
    for _ in range(3):  # later rounds see all other labels, the first only those before
        for i, (spot, size) in enumerate(zip(spots, sizes, strict=True)):
            taken = [b for j, b in enumerate(placed) if b and j != i] + points_at
            placed[i] = min(_candidates(spot, size), key=lambda box: _cost(box, spot, taken, area))
    return [box for box in placed if box]


def _candidates(spot: tuple[float, float], size: tuple[float, float]) -> Iterable[charts.Box]:
    (x, y), (wide, high) = spot, size
    for reach in (9.0, 18.0, 30.0, 45.0, 62.0, 80.0, 105.0):
        for step in range(16):
            angle = step * math.pi / 8
            dx, dy = math.cos(angle), math.sin(angle)
            middle_x, middle_y = x + dx * (reach + wide / 2), y + dy * (reach + high / 2)
            left, top = middle_x - wide / 2, middle_y - high / 2
            yield left, top, left + wide, top + high


def _cost(
    box: charts.Box, spot: tuple[float, float], taken: Iterable[charts.Box], area: charts.Box
) -> float:
    outside = _outside(box, (area[0] + 3, area[1], area[2], area[3] - 2))
    near = min(max(spot[0], box[0]), box[2]), min(max(spot[1], box[1]), box[3])
    return 100 * outside + 10 * sum(_overlap(box, other) for other in taken) + math.dist(spot, near)


def _overlap(a: charts.Box, b: charts.Box) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, wide) * max(0.0, high)


def _outside(box: charts.Box, area: charts.Box) -> float:
    """How far a box reaches beyond an area, over all sides."""
    return (
        max(0.0, area[0] - box[0])
        + max(0.0, box[2] - area[2])
        + max(0.0, area[1] - box[1])
        + max(0.0, box[3] - area[3])
    )
