"""Whole-number picture arithmetic: tint, turn, smooth.

Pixels are int32 in steps of 1/256 unless noted. Sprites are kept with colour already multiplied by
alpha, as resizing and turning need it. Pillow's own resizing and turning are not used: they differ
by a grey level between its versions.
"""

from __future__ import annotations

import math

import numpy as np

STEPS = 256
_BITS = 16  # of the sine table
_FINE = 12  # bits of a blur weight: with pixels up to 2**16 the products stay below 2**31
# In half degrees. The nearest entry is 1e-4 away from a rounding edge, far more than two maths
# libraries differ.
_TURNS = [
    (
        round(math.cos(math.radians(i / 2)) * (1 << _BITS)),
        round(math.sin(math.radians(i / 2)) * (1 << _BITS)),
    )
    for i in range(181)
]


def premultiplied(rgba: np.ndarray) -> np.ndarray:
    """Multiplies colour by alpha; uint8 [height, width, 4] in and out."""
    alpha = rgba[..., 3:].astype(np.int32)
    colour = (rgba[..., :3] * alpha + 127) // 255
    return np.concatenate([colour, alpha], -1).astype(np.uint8)


def tinted(rgba: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Recolours a sprite: its stretched luminance, 0.35 to 1.1, times a colour.

    The 5th and 95th percentile of the opaque pixels become 0 and 1 before the stretch to 0.35..1.1.

    Args:
        rgba: uint8 [height, width, 4], colour not multiplied by alpha.
        colour: Red, green, blue.

    Returns:
        uint8 of the same shape.
    """
    light = rgba[..., :3].astype(np.int64) @ np.array([3, 5, 2])
    opaque = np.sort(light[rgba[..., 3] > 128])
    low, high = opaque[len(opaque) * 5 // 100], opaque[len(opaque) * 95 // 100]
    share = np.clip((light - low) * STEPS // max(high - low, 1), 0, STEPS)
    share = share * 75 + 35 * STEPS  # in steps of 1 / (100 * STEPS)
    shaded = share[..., None] * np.array(colour) // (100 * STEPS)
    return np.concatenate([np.clip(shaded, 0, 255), rgba[..., 3:]], -1).astype(np.uint8)


def resized(sprite: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resizes a premultiplied sprite with a triangle filter as wide as the reduction asks.

    Args:
        sprite: uint8 [old height, old width, 4].
        width: New width in pixels.
        height: New height in pixels.

    Returns:
        uint8 [height, width, 4].
    """
    return _shrunk(_shrunk(sprite, height).swapaxes(0, 1), width).swapaxes(0, 1)


def _shrunk(sprite: np.ndarray, size: int) -> np.ndarray:
    """Resizes the first axis."""
    old = sprite.shape[0]
    # Distance between the middles of old and new pixels, times twice both sizes.
    apart = (2 * np.arange(old) + 1) * size - ((2 * np.arange(size) + 1) * old)[:, None]
    weights = np.maximum(0, 2 * max(old, size) - abs(apart))
    # Whole numbers below 2**24: this float32 product is exact in whatever order it is added up.
    sums = weights.astype(np.float32) @ sprite.reshape(old, -1).astype(np.float32)
    total = weights.sum(1)[:, None]
    out = (2 * sums.astype(np.int32) + total) // (2 * total)
    return out.reshape(size, *sprite.shape[1:]).astype(np.uint8)


def turned(sprite: np.ndarray, half_degrees: int) -> np.ndarray:
    """Turns a premultiplied sprite anticlockwise, bilinearly, on a canvas that just holds it.

    Args:
        sprite: uint8 [height, width, 4].
        half_degrees: -180 to 180, that is a quarter turn at most.

    Returns:
        uint8 [new height, new width, 4].
    """
    height, width = sprite.shape[:2]
    cos, sin = _TURNS[abs(half_degrees)]
    sin = -sin if half_degrees < 0 else sin
    unit = 1 << _BITS
    wide = -(-(width * cos + height * abs(sin)) // unit)
    high = -(-(width * abs(sin) + height * cos) // unit)
    # Twice the offset of each pixel's middle from the canvas' middle keeps halves whole.
    across = 2 * np.arange(wide) + 1 - wide
    down = (2 * np.arange(high) + 1 - high)[:, None]
    x = (across * cos - down * sin + (width - 1) * unit) >> 1
    y = (across * sin + down * cos + (height - 1) * unit) >> 1
    inside = (2 * x >= -unit) & (2 * x < (2 * width - 1) * unit)
    inside &= (2 * y >= -unit) & (2 * y < (2 * height - 1) * unit)
    left, top = x >> _BITS, y >> _BITS
    fx = ((x & (unit - 1)) >> 8)[..., None].astype(np.int32)
    fy = ((y & (unit - 1)) >> 8)[..., None].astype(np.int32)
    x0, x1 = left.clip(0, width - 1), (left + 1).clip(0, width - 1)
    y0, y1 = top.clip(0, height - 1) * width, (top + 1).clip(0, height - 1) * width
    flat = sprite.reshape(-1, 4).astype(np.int32)
    upper = flat[y0 + x0] * (256 - fx) + flat[y0 + x1] * fx
    lower = flat[y1 + x0] * (256 - fx) + flat[y1 + x1] * fx
    mixed = (upper * (256 - fy) + lower * fy + (1 << 15)) >> 16
    return (mixed * inside[..., None]).astype(np.uint8)


def smoothed(image: np.ndarray, sigma: int) -> np.ndarray:
    """Blurs by repeated [k, 1 - 2k, k] averages, which together have the wanted variance.

    Args:
        image: int32 [height, width, 3].
        sigma: Standard deviation in 1/64 pixel; at least 1.

    Returns:
        int32 of the same shape; the border is repeated outwards.
    """
    # Each pass adds a variance of 2k per axis; k stays below 1/4, as a binomial kernel.
    passes = max(2, -(-sigma * sigma * 2 // 4096))
    k = (sigma * sigma << _FINE) // (4096 * 2 * passes)
    for _ in range(passes):
        for axis in (0, 1):
            edge = np.concatenate([image.take([0], axis), image, image.take([-1], axis)], axis)
            neighbours = edge.take(range(2, edge.shape[axis]), axis) + edge.take(
                range(image.shape[axis]), axis
            )
            image = image + (k * (neighbours - 2 * image) + (1 << _FINE - 1) >> _FINE)
    return image
