"""Paints a list of objects as a 120 x 120 picture with an id map, in whole numbers from one seed.

Sizes, opacities, blur, noise and contrast follow the testbed's world (see the model card). Hidden
objects and spoilt pictures occur only where a split asks for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from halludecode.testbed.atlas import load
from halludecode.testbed.categories import BANDS, COLOURS, SCALE, TINTED
from halludecode.testbed.raster import STEPS, premultiplied, resized, smoothed, tinted, turned
from halludecode.testbed.stream import SIGMA, Stream

SIZE = 120  # side of a picture in pixels
BACKDROPS = 24  # backgrounds a theme
SOLID = 90  # alpha from which a sprite's pixel belongs to the object

# Long side of a sprite, log-uniform between 13 and 46 pixels, in 1/16 pixel. No entry lies within
# 1e-4 of a rounding edge, so every maths library gives this table.
_SIDES = [round(16 * 13 * (46 / 13) ** ((2 * i + 1) / 512)) for i in range(256)]


@dataclass(frozen=True)
class Thing:
    """One painted object.

    Args:
        name: COCO category name.
        colour: Name of its tint; None for its own colours.
        box: What of its sprite lies on the canvas: x, y, width, height in pixels.
        area: Pixels still visible at the end.
        full: Pixels of the whole sprite, also those outside the canvas or covered.
        hidden: All but invisible on purpose (training split only).
    """

    name: str
    colour: str | None
    box: tuple[int, int, int, int]
    area: int
    full: int
    hidden: bool = False

    @property
    def middle(self) -> tuple[int, int]:
        """Twice the middle of the box, x and y, so that it is whole."""
        x, y, width, height = self.box
        return 2 * x + width, 2 * y + height


@dataclass
class Canvas:
    """A picture before its blur, noise and contrast.

    Args:
        paint: int32 [120, 120, 3] in 1/256 grey steps, not clipped.
        ids: int8 [120, 120]: which of ``things`` is on top; -1 is background.
        things: In painting order.
    """

    paint: np.ndarray
    ids: np.ndarray
    things: list[Thing]


class Renderer:
    """Paints scenes; keeps the sprites and the backgrounds it has made.

    Args:
        seed: Seed of the split; backgrounds depend on it.
        purpose: Stream purpose of the backgrounds, different for every split.
    """

    def __init__(self, seed: int, purpose: int) -> None:
        self._seed, self._purpose = seed, purpose
        self._atlas = load()
        self._sprites: dict[tuple[str, int, str | None], np.ndarray] = {}
        self._backdrops: dict[tuple[str, int], np.ndarray] = {}

    def paint(
        self, stream: Stream, theme: str, names: list[str], hide: int = 0, without: str = ""
    ) -> Canvas:
        """Places the objects on one of the theme's backgrounds, in random order.

        Args:
            stream: Where the draws come from.
            theme: Name of the theme.
            names: Category names, one an object.
            hide: Objects made all but invisible, in permille.
            without: Category left out where it would be laid down. Everything is drawn from the
                stream as if it were there, so that nothing else changes.

        Returns:
            The canvas with its id map.
        """
        paint = self._ground(stream, theme)
        ids = np.full((SIZE, SIZE), -1, np.int8)
        boxes: list[tuple[int, int, int, int]] = []
        parts = []
        for name in stream.shuffled(names):
            tint = name in TINTED and stream.chance(650)
            colour = stream.pick(tuple(COLOURS)) if tint else None
            hidden = stream.chance(hide)
            sprite, opacity = self._sprite(stream, name, colour, hidden)
            box = _place(stream, sprite.shape[1], sprite.shape[0], boxes)
            boxes.append(box)
            light = stream.between(-20, 20)
            if name == without:
                continue
            number = len(parts)
            shown = _blend(paint, ids, sprite, box, opacity, light, number)
            full = max(1, int((sprite[..., 3] >= SOLID).sum()))
            parts.append((name, colour, shown, full, hidden))
        areas = np.bincount(ids[ids >= 0], minlength=len(parts)).tolist()
        things = [
            Thing(name, colour, box, area, full, hidden)
            for (name, colour, box, full, hidden), area in zip(parts, areas, strict=True)
        ]
        return Canvas(paint, ids, things)

    def _ground(self, stream: Stream, theme: str) -> np.ndarray:
        number = stream.below(BACKDROPS)
        key = (theme, number)
        if key not in self._backdrops:
            index = list(BANDS).index(theme) * BACKDROPS + number
            self._backdrops[key] = backdrop(Stream(self._seed, self._purpose, index), theme)
        ground = self._backdrops[key]
        if stream.chance(500):
            ground = ground[:, ::-1]
        light, shift = stream.between(218, 287), stream.between(-15 * STEPS, 15 * STEPS)
        return (ground * light >> 8) + shift

    def _sprite(
        self, stream: Stream, name: str, colour: str | None, hidden: bool
    ) -> tuple[np.ndarray, int]:
        """Returns a sprite at its size and angle, premultiplied uint8, and its opacity in 1/256."""
        sprite = self._variant(name, stream.below(len(self._atlas[name])), colour)
        side = stream.pick(_SIDES) * SCALE.get(name, 100)  # in 1/1600 pixel
        opacity = stream.between(205, 256) if stream.chance(750) else stream.between(115, 205)
        if hidden and stream.chance(500):
            side = stream.between(4 * 1600, 7 * 1600)
        elif hidden:
            opacity = stream.between(10, 38)
        longest = 1600 * max(sprite.shape)
        height, width = (max(3, length * side // longest) for length in sprite.shape[:2])
        if stream.chance(500):
            sprite = sprite[:, ::-1]
        sprite = resized(sprite, width, height)
        angle = stream.normal() * 20 // SIGMA  # standard deviation 10 degrees
        return (turned(sprite, angle) if abs(angle) > 8 else sprite), opacity

    def _variant(self, name: str, number: int, colour: str | None) -> np.ndarray:
        key = (name, number, colour)
        if key not in self._sprites:
            rgba = np.asarray(self._atlas[name][number])
            if colour is not None:
                rgba = tinted(rgba, COLOURS[colour])
            self._sprites[key] = premultiplied(rgba)
        return self._sprites[key]


def backdrop(stream: Stream, theme: str) -> np.ndarray:
    """Makes a background: two bands, a slope of light, faint clutter and a coarse texture.

    Returns:
        int32 [120, 120, 3] in 1/256 grey steps.
    """
    bands = [
        [min(255, max(0, level + stream.normal() * 22 // SIGMA)) for level in band]
        for band in BANDS[theme]
    ]
    horizon = stream.between(SIZE // 4, 3 * SIZE // 4 - 1)
    image = np.empty((SIZE, SIZE, 3), np.int32)
    image[:horizon], image[horizon:] = np.array(bands) * STEPS
    slope = np.arange(SIZE) * 36 * STEPS // (SIZE - 1) - 18 * STEPS
    image += (slope if stream.chance(500) else -slope)[:, None, None].astype(np.int32)
    rows, columns = np.ogrid[:SIZE, :SIZE]
    for _ in range(stream.between(4, 11)):
        x, y = stream.below(SIZE), stream.below(SIZE)
        width, height = stream.between(5, 39), stream.between(5, 39)
        colour = np.array([stream.between(30, 230) for _ in range(3)], np.int32) * STEPS
        strength = stream.between(38, 154)
        if stream.chance(500):
            spot = (slice(y, y + height), slice(x, x + width))
        else:  # an ellipse with 0.4 of the squared half axes
            round_ = (columns - x) ** 2 * height**2 + (rows - y) ** 2 * width**2
            spot = 5 * round_ < 2 * width**2 * height**2
        image[spot] += (colour - image[spot]) * strength >> 8
    texture = stream.normals(SIZE // 4, SIZE // 4) * (9 * STEPS) // SIGMA
    return image + texture.repeat(4, 0).repeat(4, 1)[..., None]


def finish(stream: Stream, paint: np.ndarray, spoil: int = 0, worst: int = 140) -> np.ndarray:
    """Blurs some pictures, adds Gaussian noise and changes the contrast.

    Args:
        stream: Where the draws come from.
        paint: int32 [120, 120, 3] in 1/256 grey steps.
        spoil: Pictures whose noise or blur is heavy, in permille.
        worst: Largest standard deviation of heavy noise, in grey steps.

    Returns:
        uint8 [120, 120, 3].
    """
    paint = np.clip(paint, 0, 255 * STEPS)
    if stream.chance(300):
        paint = smoothed(paint, stream.between(19, 64))
    sigma = stream.between(2 * STEPS, 14 * STEPS)
    if stream.chance(spoil):
        if stream.chance(500):
            sigma = stream.between(40 * STEPS, worst * STEPS)
        else:
            paint = smoothed(paint, stream.between(96, 320))
    contrast = stream.between(192, 282)
    noise = stream.normals(*paint.shape) * (sigma * STEPS // SIGMA) >> 8
    paint = ((paint - 128 * STEPS) * contrast >> 8) + 128 * STEPS + noise
    return np.clip(paint >> 8, 0, 255).astype(np.uint8)


def _place(
    stream: Stream, width: int, height: int, boxes: list[tuple[int, int, int, int]]
) -> tuple[int, int, int, int]:
    """Tries eight places: the first that overlaps others by less than 12 %, else the best."""
    least, best = 1001, (0, 0)
    for _ in range(8):
        x = stream.between(-(width // 6), SIZE - width + width // 6)
        y = stream.between(-(height // 8), SIZE - height + height // 8)
        overlap = max((_overlap((x, y, width, height), box) for box in boxes), default=0)
        if overlap < least:
            least, best = overlap, (x, y)
        if overlap < 120:
            break
    return (*best, width, height)


def _overlap(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> int:
    """Shared area in permille of the smaller box."""
    across = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    down = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    return max(0, across) * max(0, down) * 1000 // min(first[2] * first[3], second[2] * second[3])


def _blend(
    paint: np.ndarray,
    ids: np.ndarray,
    sprite: np.ndarray,
    box: tuple[int, int, int, int],
    opacity: int,
    light: int,
    number: int,
) -> tuple[int, int, int, int]:
    """Lays a premultiplied sprite over ``paint`` and enters it in ``ids``, both in place.

    Returns:
        The part of the box that lies on the canvas.
    """
    x, y, width, height = box
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, SIZE), min(y + height, SIZE)
    cut = sprite[top - y : bottom - y, left - x : right - x].astype(np.int32)
    alpha = cut[..., 3:]
    cover = (alpha * opacity + 127) // 255  # in 1/256
    spot = paint[top:bottom, left:right]
    spot += ((cut[..., :3] * STEPS + light * alpha) * opacity - spot * cover) >> 8
    ids[top:bottom, left:right][alpha[..., 0] >= SOLID] = number
    return left, top, right - left, bottom - top
