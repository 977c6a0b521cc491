"""Labelled points as inline SVG: every point carries its name, and no label hides another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from halludecode.evals import charts
from halludecode.evals.charts import Value


@dataclass(frozen=True)
class Point:
    """One labelled point.

    Args:
        name: Its label.
        x: Across.
        y: Up.
        verdict: As for `Panel`, about ``y``.
    """

    name: str
    x: Value
    y: Value
    verdict: str = "open"


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
    height = 330.0 if len(shown) <= 9 else 430.0
    frame = charts.Frame(
        (46, 24, width - 14, height - 42),
        charts.ticks(min(p.x.low for p in shown), max(p.x.high for p in shown)),
        charts.ticks(min(p.y.low for p in shown), max(p.y.high for p in shown)),
    )
    groups = _coinciding(shown, frame)
    spots = [(frame.x(g[0].x.value), frame.y(g[0].y.value)) for g in groups]
    texts = [charts.wrap(", ".join(p.name for p in group), 150) for group in groups]
    boxes = _placed(spots, texts, frame.box)
    parts = [*frame.draw(x_title, y_title)]
    if mark and frame.xs[0] <= mark[0] <= frame.xs[-1]:
        x, anchor = frame.x(mark[0]), "start"
        if x + charts.text_width(mark[1]) + 6 > frame.box[2]:
            anchor = "end"
        parts.append(charts.rule(x, 24, x, height - 42, charts.SOFT, 'stroke-dasharray="5 4"'))
        shift = 5 if anchor == "start" else -5
        parts.append(charts.put(x + shift, height - 48, mark[1], anchor, 'class="soft halo"'))
    parts += [_cross(group[0], frame) for group in groups]
    for group, spot, lines, box in zip(groups, spots, texts, boxes, strict=True):
        parts += _label(group, spot, lines, box)
    return charts.svg(width, height, label, parts)


def _coinciding(shown: Sequence[Point], frame: charts.Frame) -> list[list[Point]]:
    groups: list[list[Point]] = []
    for point in sorted(shown, key=lambda p: p.verdict != "baseline"):
        for group in groups:
            near = math.dist(
                (frame.x(group[0].x.value), frame.y(group[0].y.value)),
                (frame.x(point.x.value), frame.y(point.y.value)),
            )
            if near < 1.0:
                group.append(point)
                break
        else:
            groups.append([point])
    return groups


def _cross(point: Point, frame: charts.Frame) -> str:
    x, y = frame.x(point.x.value), frame.y(point.y.value)
    across = charts.rule(frame.x(point.x.low), y, frame.x(point.x.high), y, "#c3ccd5")
    return across + charts.rule(x, frame.y(point.y.low), x, frame.y(point.y.high), "#c3ccd5")


def _label(
    group: Sequence[Point], spot: tuple[float, float], lines: Sequence[str], box: charts.Box
) -> Iterable[str]:
    (x, y), first = spot, group[0]
    told = "; ".join(
        f"{p.name}: {p.x.value:.1f} [{p.x.low:.1f}, {p.x.high:.1f}] across, "
        f"{p.y.value:.1f} [{p.y.low:.1f}, {p.y.high:.1f}] up"
        for p in group
    )
    near_x, near_y = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
    yield f"<g><title>{escape(told)}</title>"
    if math.dist((x, y), (near_x, near_y)) > 13:
        yield charts.rule(x, y, near_x, near_y, charts.SOFT, 'stroke-width="0.8"')
    yield _marker(x, y, first.verdict)
    weight = 'class="halo head"' if first.verdict == "baseline" else 'class="halo"'
    for i, line in enumerate(lines):
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
    spots: Sequence[tuple[float, float]], texts: Sequence[Sequence[str]], area: charts.Box
) -> list[charts.Box]:
    """A box for every label: near its point, inside the area, clear of points and other labels."""
    sizes = [(max(map(charts.text_width, lines)), charts.LINE * len(lines)) for lines in texts]
    points_at = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots]
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
    outside = (
        max(0.0, area[0] + 3 - box[0])
        + max(0.0, box[2] - area[2])
        + max(0.0, area[1] - box[1])
        + max(0.0, box[3] - area[3] + 2)
    )
    near = min(max(spot[0], box[0]), box[2]), min(max(spot[1], box[1]), box[3])
    return 100 * outside + 10 * sum(_overlap(box, other) for other in taken) + math.dist(spot, near)


def _overlap(a: charts.Box, b: charts.Box) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, wide) * max(0.0, high)
