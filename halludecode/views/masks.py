"""AGLA's masked picture: what does not matter for the question turns black.

An et al., "AGLA: Mitigating Object Hallucinations in Large Vision-Language Models with Assembly of
Global and Local Attention", CVPR 2025, arXiv 2406.12718. A relevance map on the patch grid is
scaled to [0, 1], enlarged bicubically to the picture, blurred (Gaussian, sigma = 0.02 of the longer
side) and scaled again; the pixels below a threshold become black before the model's own
preprocessing.

`agla_mask` is the paper's: a 384 x 384 picture, of which the image-text similarity decides the
share that is masked. `blackout` keeps the picture's own size and masks a fixed share.

Both follow the official code's libraries (scikit-image's ``resize`` with order 3 and zeros beyond
the border, scipy's Gaussian, cut at 4 sigma, edges mirrored with the edge pixel repeated) to the
last pixel of the mask, as one product of matrices a side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from halludecode.core.errors import InvalidParameter

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

SIZE = 384  # pixels, BLIP's input, on which the paper masks
BLUR = 0.02  # sigma as a share of the longer side
TRUNCATE = 4.0  # the kernel ends at this many sigma
REACH = 14  # knots beyond the border whose coefficients are not nothing in float64
MOST = 1 - 1e-5  # the share kept when picture and text have nothing in common


def blackout(image: Image.Image, *, drop: float, relevance: Tensor) -> Image.Image:
    """Blacken the least relevant pixels of a picture at its own size.

    Args:
        image: Any PIL picture.
        drop: Share of pixels to blacken, in [0, 1). Pixels that tie with the threshold stay, so a
            map without contrast blackens nothing.
        relevance: ``[h, w]``, a value per patch, of any scale.

    Returns:
        RGB picture of the same size.

    Raises:
        InvalidParameter: ``drop`` is out of bounds or the map is not a finite matrix.
    """
    if not 0 <= drop < 1:
        raise InvalidParameter(f"drop={drop}: the share of pixels to blacken must be in [0, 1).")
    width, height = image.size
    return _blacken(image, keep_mask(smooth(relevance, height, width), 1 - drop))


def agla_mask(image: Image.Image, *, relevance: Tensor, similarity: float) -> Image.Image:
    """Blacken a picture as the paper does.

    Args:
        image: Any PIL picture.
        relevance: ``[h, w]``, the matcher's map on its patch grid (24 x 24 for BLIP at 384 pixels).
        similarity: Image-text cosine similarity; the better the match, the more is masked.

    Returns:
        RGB picture of 384 x 384 pixels.

    Raises:
        InvalidParameter: The map is not a finite matrix.
    """
    from PIL.Image import Resampling

    small = image.convert("RGB").resize((SIZE, SIZE), Resampling.BICUBIC)
    return _blacken(small, keep_mask(smooth(relevance, SIZE, SIZE), keep_share(similarity)))


def keep_share(similarity: float) -> float:
    """Share of pixels AGLA keeps at an image-text similarity: half the similarity is masked."""
    return min(1 - similarity / 2, MOST)


def keep_mask(relevance: Tensor, share: float) -> Tensor:
    """Mark the pixels that stay.

    Args:
        relevance: ``[h, w]``.
        share: Share of pixels to keep, in (0, 1].

    Returns:
        bool ``[h, w]``: at least the value at place ``int(h w share)`` of the descending order;
        that place is included, and so is everything that ties with it.
    """
    order = relevance.flatten().sort(descending=True).values
    threshold = order[min(int(order.numel() * share), order.numel() - 1)]
    return relevance >= threshold


def smooth(relevance: Tensor, height: int, width: int) -> Tensor:
    """Enlarge a map to a picture: scaled, bicubic, blurred, scaled again.

    Args:
        relevance: ``[h, w]``, of any scale.
        height: Rows of the picture.
        width: Columns of the picture.

    Returns:
        float64 ``[height, width]`` in [0, 1]; zeros where the map has no contrast.

    Raises:
        InvalidParameter: The map is not a finite matrix.
    """
    if relevance.ndim != 2 or not relevance.isfinite().all():
        raise InvalidParameter(
            f"relevance map of shape {list(relevance.shape)}: expected finite values [h, w]."
        )
    scaled = _min_max(relevance.detach().double().cpu())
    rows, columns = cubic(scaled.shape[0], height), cubic(scaled.shape[1], width)
    large = (rows @ scaled @ columns.T).clamp(0, 1)
    return _min_max(blur(large, BLUR * max(height, width)))


def cubic(count: int, size: int) -> Tensor:
    """float64 [size, count]: values at pixel centres of the cubic spline through ``count`` cells.

    Beyond the cells the spline runs through zeros: its coefficients are those of an endless signal,
    sqrt(3) z^|i - j| of value j at knot i with z = sqrt(3) - 2.
    """
    import torch

    at = (torch.arange(size, dtype=torch.float64) + 0.5) * count / size - 0.5
    knots = torch.arange(-REACH, count + REACH, dtype=torch.float64)
    far = (at[:, None] - knots).abs()
    near = 2 / 3 - far.square() * (2 - far) / 2
    bumps = torch.where(far < 1, near, (2 - far).clamp_min(0) ** 3 / 6)
    return bumps @ (3**0.5 * (3**0.5 - 2) ** (knots[:, None] - torch.arange(count)).abs())


def blur(values: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of ``[h, w]`` values, sigma in pixels, edges mirrored."""
    import torch
    from torch.nn.functional import conv1d

    radius = int(TRUNCATE * sigma + 0.5)
    if radius == 0:
        return values
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = (-0.5 * (offsets / sigma) ** 2).exp()
    kernel = (kernel / kernel.sum()).to(values.dtype)
    for _ in range(2):  # along the rows, transpose, along the columns, transpose back
        padded = values[:, _mirrored(values.shape[1], radius)]
        values = conv1d(padded[:, None], kernel[None, None])[:, 0].T
    return values


def _mirrored(length: int, radius: int) -> Tensor:
    """Indices -radius .. length + radius - 1, folded: ... 1 0 | 0 1 ... n-1 | n-1 n-2 ..."""
    import torch

    place = torch.arange(-radius, length + radius) % (2 * length)
    return torch.minimum(place, 2 * length - 1 - place)


def _min_max(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return (values - low) / (high - low if high > low else 1)


def _blacken(image: Image.Image, keep: Tensor) -> Image.Image:
    import numpy as np
    from PIL.Image import fromarray

    pixels = np.array(image.convert("RGB"))
    pixels[~keep.numpy()] = 0
    return fromarray(pixels)
