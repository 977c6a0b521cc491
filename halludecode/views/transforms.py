"""RITUAL's second picture: one ordinary transform, drawn at random.

Woo et al., "RITUAL: Random Image Transformations as a Universal Anti-hallucination Lever in Large
Vision Language Models", arXiv 2405.17821. Six transforms, each as likely as the others, act on the
picture before the model's own preprocessing: horizontal flip, vertical flip, rotation by up to 180
degrees on black, colour jitter, Gaussian blur, and a random crop scaled to 336 x 336 pixels. Ranges
are those of the released code; the crop's are torchvision's defaults. The arithmetic is
torchvision's; the numbers come from the generator alone, so a picture is transformed alike
wherever it is asked about.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

KERNEL = 13  # pixels of the blur
SIGMA = (1.5, 2.0)
CROP = 336  # pixels a side, LLaVA-1.5's input
AREA = (0.08, 1.0)  # share of the picture that is cropped
RATIO = (3 / 4, 4 / 3)  # width over height of the crop
TRIES = 10


def transformed(image: Image, *, rng: torch.Generator) -> Image:
    """One of the six transforms of a picture.

    Args:
        image: RGB picture of any size.
        rng: Decides which transform, and its numbers.

    Returns:
        RGB picture; of the same size except after a crop.
    """
    return TRANSFORMS[_integer(rng, len(TRANSFORMS))](image, rng)


def mirror(image: Image, rng: torch.Generator) -> Image:
    """Left becomes right."""
    from PIL.ImageOps import mirror

    return mirror(image)


def flip(image: Image, rng: torch.Generator) -> Image:
    """Top becomes bottom."""
    from PIL.ImageOps import flip

    return flip(image)


def rotate(image: Image, rng: torch.Generator) -> Image:
    """Turned by up to 180 degrees either way; what comes in at the corners is black."""
    return image.rotate(_uniform(rng, -180, 180))


def jitter(image: Image, rng: torch.Generator) -> Image:
    """Brightness, contrast and saturation times 0 to 2, hue by up to half a turn, in any order."""
    import torch
    from torchvision.transforms import functional

    steps = (
        (functional.adjust_brightness, 0, 2),
        (functional.adjust_contrast, 0, 2),
        (functional.adjust_saturation, 0, 2),
        (functional.adjust_hue, -0.5, 0.5),
    )
    for i in torch.randperm(len(steps), generator=rng).tolist():
        adjust, low, high = steps[i]
        image = adjust(image, _uniform(rng, low, high))
    return image


def blur(image: Image, rng: torch.Generator) -> Image:
    """Gaussian blur of 13 x 13 pixels; less where the picture is smaller than that."""
    from torchvision.transforms import functional

    sigma = _uniform(rng, *SIGMA)
    kernel = [min(KERNEL, 2 * side - 1) for side in image.size]  # the edge is mirrored inwards
    return functional.gaussian_blur(image, kernel, [sigma, sigma])


def crop(image: Image, rng: torch.Generator) -> Image:
    """A random part of the picture, scaled to a square of 336 pixels."""
    from torchvision.transforms import functional

    return functional.resized_crop(image, *crop_box(*image.size, rng), [CROP, CROP])


def crop_box(width: int, height: int, rng: torch.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of torchvision's random resized crop; else the largest that fits.

    The fallback is centred, with the ratio of the picture cut to `RATIO`.
    """
    for _ in range(TRIES):
        area = width * height * _uniform(rng, *AREA)
        ratio = math.exp(_uniform(rng, math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return _integer(rng, height - h + 1), _integer(rng, width - w + 1), h, w
    w = min(width, max(1, round(height * RATIO[1])))
    h = min(height, max(1, round(width / RATIO[0])))
    return (height - h) // 2, (width - w) // 2, h, w


TRANSFORMS: tuple[Callable[[Image, torch.Generator], Image], ...] = (
    mirror,
    flip,
    rotate,
    jitter,
    blur,
    crop,
)


def _uniform(rng: torch.Generator, low: float, high: float) -> float:
    import torch

    return low + (high - low) * float(torch.rand((), generator=rng))


def _integer(rng: torch.Generator, count: int) -> int:
    """0 .. count - 1."""
    import torch

    return int(torch.randint(count, (), generator=rng))
