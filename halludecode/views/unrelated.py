"""CICD's other picture: a file, or a drawing that shows nothing in particular.

Zhao et al., "Cross-Image Contrastive Decoding", EMNLP 2025, arXiv 2505.10634, take another image of
the benchmark for every question. A drawing needs no data and is the same everywhere: soft patches
of colour, four waves a channel, from a generator seeded with the drawing's number alone.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from halludecode.core.errors import InvalidParameter

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 336  # pixels of a drawing
WAVES = 4


def unrelated(image: Image, *, file: str | None, number: int) -> Image:
    """Another picture in the place of ``image``, which only gives its size to a drawing.

    Args:
        image: The picture asked about.
        file: Path of the other picture, taken at its own size; None draws one.
        number: Which drawing.

    Returns:
        RGB picture.

    Raises:
        InvalidParameter: The file is missing or no picture.
    """
    if file is not None:
        return _read(file)
    return drawing(number).resize(image.size)


@lru_cache(maxsize=8)
def drawing(number: int) -> Image:
    """Soft patches of colour, RGB of `SIDE` x `SIDE` pixels; the same for the same number."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(number)
    y, x = np.mgrid[0 : 1 : SIDE * 1j, 0 : 1 : SIDE * 1j]
    frequency, phase = rng.uniform(-3, 3, (3, WAVES, 2)), rng.uniform(0, 2 * np.pi, (3, WAVES))
    angle = (
        2 * np.pi * (frequency[..., 0, None, None] * y + frequency[..., 1, None, None] * x)
        + phase[..., None, None]
    )
    level = 127.5 + 127.5 / WAVES * np.cos(angle).sum(1)  # [3, SIDE, SIDE]
    return Image.fromarray(level.round().astype(np.uint8).transpose(1, 2, 0))


@lru_cache(maxsize=8)
def _read(file: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(Path(file).expanduser()).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise InvalidParameter(
            f"cicd(picture={file!r}): not a picture that can be read ({error}); give the path of "
            "an image file, or leave it out for a drawing."
        ) from None
