"""Reads the charts' SVG back: where every text lies."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from halludecode.evals.report import charts


def size(svg: str) -> tuple[float, float]:
    root = ElementTree.fromstring(svg)
    return tuple(map(float, root.attrib["viewBox"].split()[2:]))


def texts(svg: str) -> list[tuple[str, charts.Box]]:
    """Every text with its box, left top right bottom, by the module's own widths."""
    found = []

    def walk(node, dx, dy):
        moved = re.match(r"translate\((\S+) (\S+)\)", node.attrib.get("transform", ""))
        if moved:
            dx, dy = dx + float(moved[1]), dy + float(moved[2])
        if node.tag == "text":
            wide = charts.text_width(node.text or "")
            x, y = float(node.attrib["x"]) + dx, float(node.attrib["y"]) + dy
            x -= {"end": wide, "middle": wide / 2}.get(node.attrib.get("text-anchor"), 0)
            found.append((node.text or "", (x, y - 10, x + wide, y + 3)))
        for child in node:
            walk(child, dx, dy)

    walk(ElementTree.fromstring(svg), 0.0, 0.0)
    return found


def labels(svg: str) -> list[tuple[str, list[tuple[str, charts.Box]]]]:
    """Every titled group: its title, and its texts with their boxes."""
    found = []
    for group in ElementTree.fromstring(svg).iter("g"):
        title = group.findtext("title")
        if title is not None:
            found.append((title, texts(ElementTree.tostring(group, "unicode"))))
    return found


def assert_inside(svg: str) -> None:
    """No text reaches beyond the drawing."""
    width, height = size(svg)
    for text, (left, top, right, bottom) in texts(svg):
        assert left >= -1 and right <= width + 1 and top >= -1 and bottom <= height + 1, text


def overlap(a: charts.Box, b: charts.Box) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, wide) * max(0.0, high)
