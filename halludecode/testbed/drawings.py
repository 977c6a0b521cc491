"""Our own pictures of the 17 COCO categories that have no emoji, on a 256-pixel square.

Each is a short list of shapes: kind, corners, fill, and optionally outline and stroke width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

SIDE = 256

_DARK = (42, 42, 46)
_STEEL = (150, 155, 165)
_PALE = (235, 238, 242)
_WOOD = (150, 95, 50)
_OAK = (205, 150, 90)
_LEATHER = (160, 85, 40)
_STITCH = (100, 50, 20)
_BRASS = (230, 190, 60)
_WINE = (150, 25, 25)
_RED = (210, 55, 45)
_CRUST = (150, 95, 40)
_TOAST = (225, 170, 95)
_PINK = (220, 70, 150)

Shape = tuple[Any, ...]


def _row(
    kind: str, xs: tuple[int, ...], box: tuple[int, int, int, int], *style: Any
) -> list[Shape]:
    """The same shape once at every x."""
    left, top, right, bottom = box
    return [(kind, (left + x, top, right + x, bottom), *style) for x in xs]


SHAPES: dict[str, list[Shape]] = {
    "fire hydrant": [
        ("rect", (92, 88, 164, 222), _RED),
        ("dome", (84, 42, 172, 130), _RED),
        ("rect", (118, 24, 138, 48), _WINE),
        ("rect", (70, 214, 186, 240), _WINE),
        *_row("rect", (0, 114), (52, 122, 92, 160), _BRASS),
        ("oval", (108, 121, 148, 161), _BRASS),
    ],
    "parking meter": [
        ("rect", (118, 116, 138, 250), _STEEL),
        ("round", (76, 10, 180, 140), (70, 80, 110), 40),
        ("dome", (94, 26, 162, 94), _PALE),
        ("line", (128, 60, 111, 36), (200, 30, 30), 6),
        ("rect", (114, 100, 142, 109), _DARK),
    ],
    "bench": [
        ("rect", (10, 68, 246, 89), _WOOD),
        ("rect", (10, 100, 246, 121), _WOOD),
        ("rect", (5, 140, 251, 164), (170, 110, 60)),
        *_row("rect", (0, 176), (30, 60, 46, 220), _DARK),
    ],
    "snowboard": [
        ("round", (6, 96, 250, 160), (110, 60, 190), 32),
        *_row("rect", (0, 106), (60, 88, 90, 168), _DARK),
        ("line", (100, 128, 156, 128), (90, 230, 200), 14),
    ],
    "baseball bat": [
        ("poly", (19, 227, 33, 241, 150, 142, 237, 51, 205, 19, 114, 106), _OAK),
        ("oval", (195, 10, 246, 61), _OAK),
        ("oval", (8, 211, 46, 249), _DARK),
    ],
    "baseball glove": [
        ("oval", (50, 90, 210, 245), _LEATHER),
        ("round", (40, 50, 80, 180), _LEATHER, 20, _STITCH, 5),
        ("round", (82, 20, 122, 150), _LEATHER, 20, _STITCH, 5),
        ("round", (126, 14, 166, 144), _LEATHER, 20, _STITCH, 5),
        ("round", (168, 34, 208, 164), _LEATHER, 20, _STITCH, 5),
        ("oval", (180, 110, 250, 180), _LEATHER, _STITCH, 5),
        ("oval", (95, 130, 165, 200), _PALE),
    ],
    "surfboard": [
        ("oval", (90, 4, 166, 252), (250, 200, 60), (230, 120, 40), 8),
        ("line", (128, 10, 128, 246), (30, 140, 200), 10),
    ],
    "tennis racket": [
        ("oval", (70, 8, 246, 150), (240, 240, 230, 140), (30, 120, 200), 14),
        *_row("line", tuple(range(0, 150, 22)), (90, 17, 90, 142), (200, 200, 200), 4),
        *[("line", (76, y, 240, y), (200, 200, 200), 4) for y in range(25, 140, 22)],
        ("line", (110, 135, 20, 240), _DARK, 22),
    ],
    "fork": [
        ("rect", (116, 110, 140, 250), _STEEL),
        ("round", (78, 80, 178, 130), _STEEL, 20),
        *_row("rect", (0, 34, 68, 84), (78, 6, 94, 100), _STEEL),
    ],
    "dining table": [
        ("poly", (50, 90, 206, 90, 250, 130, 6, 130), (190, 130, 75)),
        ("rect", (6, 130, 250, 148), (130, 80, 40)),
        *_row("rect", (0, 204), (18, 148, 34, 240), (130, 80, 40)),
        *_row("rect", (0, 106), (70, 148, 80, 200), (110, 70, 35)),
    ],
    "remote": [
        ("round", (90, 8, 166, 248), _DARK, 20),
        ("oval", (112, 20, 144, 52), (220, 40, 40)),
        *[
            button
            for y in range(70, 230, 32)
            for button in _row("rect", (0, 20, 40), (102, y, 114, y + 14), _PALE)
        ],
    ],
    "microwave": [
        ("round", (8, 60, 248, 200), _STEEL, 12),
        ("rect", (22, 76, 178, 184), (30, 40, 60)),
        ("oval", (196, 80, 232, 116), _PALE),
        ("rect", (196, 132, 232, 144), (60, 200, 120)),
        ("rect", (196, 156, 232, 168), (60, 200, 120)),
    ],
    "oven": [
        ("rect", (30, 20, 226, 245), _PALE, _STEEL, 6),
        *_row("oval", (0, 40, 80, 120), (50, 36, 78, 64), _DARK),
        ("rect", (60, 80, 196, 88), _STEEL),
        ("rect", (52, 100, 204, 210), (40, 30, 30)),
        ("rect", (60, 112, 196, 198), (250, 140, 40)),
    ],
    "toaster": [
        ("round", (20, 100, 236, 220), (200, 70, 60), 30),
        ("round", (60, 40, 120, 130), _TOAST, 16, _CRUST, 7),
        ("round", (136, 40, 196, 130), _TOAST, 16, _CRUST, 7),
        ("rect", (20, 112, 236, 190), (200, 70, 60)),
        ("rect", (226, 130, 250, 150), _DARK),
        *_row("rect", (0, 156), (30, 216, 70, 232), _DARK),
    ],
    "sink": [
        ("poly", (6, 120, 250, 120, 210, 220, 46, 220), _PALE, _STEEL),
        ("oval", (30, 104, 226, 140), (120, 180, 220), _STEEL, 5),
        ("arch", (100, 20, 170, 110), _STEEL, 16),
        ("rect", (100, 64, 116, 118), _STEEL),
        ("rect", (154, 60, 170, 86), _STEEL),
    ],
    "refrigerator": [
        ("round", (56, 6, 200, 250), (200, 215, 225), 12, _STEEL, 6),
        ("line", (56, 96, 200, 96), _DARK, 6),
        ("rect", (72, 40, 82, 84), _DARK),
        ("rect", (72, 112, 82, 180), _DARK),
    ],
    "hair drier": [
        ("oval", (110, 30, 240, 160), _PINK),
        ("poly", (14, 50, 14, 140, 150, 130, 150, 60), _PINK),
        ("rect", (6, 44, 24, 146), _DARK),
        ("poly", (150, 140, 205, 140, 190, 250, 145, 250), (160, 40, 110)),
        ("oval", (155, 70, 200, 115), _DARK),
    ],
}


def draw(name: str) -> Image.Image:
    """Draws a category as RGBA, 256 x 256, on a transparent ground.

    Raises:
        KeyError: There is no drawing of this name.
    """
    from PIL import Image, ImageDraw

    picture = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)
    for kind, corners, fill, *style in SHAPES[name]:
        if kind == "line":
            pen.line(corners, fill=fill, width=style[0])
        elif kind == "arch":
            pen.arc(corners, 180, 360, fill=fill, width=style[0])
        elif kind == "dome":
            pen.pieslice(corners, 180, 360, fill=fill)
        elif kind == "round":
            outline, width = style[1:] or (None, 1)
            pen.rounded_rectangle(corners, style[0], fill=fill, outline=outline, width=width)
        else:
            shape = {"rect": pen.rectangle, "oval": pen.ellipse, "poly": pen.polygon}[kind]
            outline, width = ((*style, 1)[:2]) if style else (None, 1)
            shape(corners, fill=fill, outline=outline, width=width)
    return picture
