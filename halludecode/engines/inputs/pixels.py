"""Pixels of any depth and arrangement as 8-bit RGB: scaled to 0..255, put on one ground.

Pillow's own `convert("RGB")` clips: a 16-bit picture becomes a white page, one of floats a black
one, and what is transparent shows whatever colour lies below.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from halludecode.core.errors import InvalidRequest

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image

DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # Pillow's modes of more than 8 bits
CHANNELS = (1, 2, 3, 4)  # grey, grey and alpha, RGB, RGB and alpha


def as_rgb(image: Image, name: str, background: Any = "white") -> Image:
    """A decoded PIL image in RGB.

    16-bit greys are divided by 257; 32-bit integers are read as 8-bit values where none is above
    255, else as 16-bit ones; floats as 0..1, or as 0..255 where one is above 1.

    Args:
        image: Of any mode.
        name: How messages name it.
        background: What transparent pixels are put on, see `colour`.

    Raises:
        InvalidRequest: The range of its values cannot be told, or the ground is no colour.
    """
    from PIL import Image

    if image.mode in DEEP:
        import numpy as np

        sixteen = image.mode.startswith("I;16")
        values = np.asarray(image)
        image = Image.fromarray(_eight_bits(values.astype("uint16") if sixteen else values, name))
    if image.has_transparency_data:
        layer = image.convert("LA" if image.mode == "La" else "RGBA")
        ground = Image.new("RGBA", image.size, colour(background))
        return Image.alpha_composite(ground, layer.convert("RGBA")).convert("RGB")
    if image.mode == "LAB":
        raise InvalidRequest(f"{name} is in the colour space LAB; convert it to RGB first.")
    return image.convert("RGB")


def colour(background: Any) -> tuple[int, int, int]:
    """A ground as three integers in 0..255.

    Raises:
        InvalidRequest: It is neither those, nor a colour's name, nor "#rrggbb".
    """
    from PIL import ImageColor

    try:
        given = ImageColor.getrgb(background) if isinstance(background, str) else background
        red, green, blue = given
    except (TypeError, ValueError):
        red = green = blue = None
    if any(type(part) is not int or not 0 <= part <= 255 for part in (red, green, blue)):
        raise InvalidRequest(
            f"background={background!r}: give a colour's name, '#rrggbb', or three integers in "
            "0..255."
        )
    return (red, green, blue)  # type: ignore[return-value]


def is_array(source: Any) -> bool:
    """Whether it is a numpy array or a tensor; neither library is imported for the question."""
    kinds = [("numpy", "ndarray"), ("torch", "Tensor")]
    modules = [(sys.modules.get(module), kind) for module, kind in kinds]
    return any(isinstance(source, getattr(module, kind)) for module, kind in modules if module)


def from_array(source: Any, name: str) -> Image:
    """A PIL image of an array's pixels.

    Args:
        source: [H, W], [H, W, C] or [C, H, W] with C of grey, grey and alpha, RGB, or RGB and
            alpha; where both could be, channels are last in an array and first in a tensor. One
            more axis of size 1 before them is dropped. Bool; integers in 0..255, or 16-bit ones
            in 0..65535; floats in 0..1, or in 0..255 where one is above 1.
        name: How messages name it.

    Raises:
        InvalidRequest: Of another shape, type or range.
    """
    from PIL import Image

    tensor = not type(source).__module__.startswith("numpy")
    if tensor:
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
    shape = list(source.shape)
    if source.ndim == 4 and shape[0] == 1:
        source = source[0]
    if source.ndim == 3:
        first, last = source.shape[0] in CHANNELS, source.shape[-1] in CHANNELS
        if first and (tensor or not last):
            source = source.transpose(1, 2, 0)
    channels = source.shape[-1] if source.ndim == 3 else 1
    if source.ndim not in (2, 3) or channels not in CHANNELS:
        raise InvalidRequest(
            f"{name}: an array of shape {shape} is no single picture; give [H, W], [H, W, 3] or "
            "[3, H, W], one picture at a time."
        )
    if 0 in source.shape:
        raise InvalidRequest(f"{name}: an array of shape {shape} has no pixels.")
    pixels = _eight_bits(source, name)
    return Image.fromarray(pixels[..., 0] if source.ndim == 3 and channels == 1 else pixels)


def _eight_bits(values: ndarray, name: str) -> ndarray:
    """uint8 of the same shape."""
    import numpy as np

    kind = values.dtype.kind
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if kind == "b":
        return values.astype(np.uint8) * 255
    if kind not in "iuf":
        raise InvalidRequest(f"{name}: pixels of type {values.dtype} are no numbers.")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    most = 65535 if kind in "iu" and values.dtype.itemsize > 1 else 255
    if not (low >= 0 and high <= most):  # not a number, too
        raise InvalidRequest(
            f"{name}: its pixels lie in {low:g}..{high:g}, which may mean anything; scale them to "
            "0..255, or to 0..1 as floats."
        )
    if kind == "f":
        return np.rint(values * (255.0 if high <= 1 else 1.0)).astype(np.uint8)
    if values.dtype.itemsize == 2 or high > 255:
        return ((values.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)
    return values.astype(np.uint8)
