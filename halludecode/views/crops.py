"""ViCrop's crop: the window of a picture in which a relevance map is sharpest.

Zhang et al., "MLLMs Know Where to Look: Training-free Perception of Small Visual Details with
Multimodal LLMs", ICLR 2025, arXiv 2502.17422.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from halludecode.core.errors import InvalidParameter
from halludecode.core.prompt import Part, Picture, Prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


STEP = 0.2  # by which windows grow, as a share of the smallest


def sharpest_box(relevance: Tensor, size: tuple[int, int], base: int, sizes: int) -> Box:
    """The square window that stands out most from those one patch beside it.

    For each side ``base * (1 + 0.2 i)`` the window with the largest sum is found; of these the one
    wins whose sum exceeds the mean of its neighbours' most, per patch; the first of equals.

    Args:
        relevance: ``[h, w]``, a value per patch, of any scale.
        size: Width and height of the picture in pixels.
        base: Side of the smallest window in pixels, 2 or more.
        sizes: How many sides are tried, smallest first. The whole picture is returned where the
            first covers it; later ones that do are left out.

    Returns:
        The box, of that side where the picture is large enough.

    Raises:
        InvalidParameter: The map is not a finite matrix, or ``sizes`` is below 1.
    """
    if relevance.ndim != 2 or not relevance.isfinite().all() or sizes < 1:
        raise InvalidParameter(
            f"relevance map of shape {list(relevance.shape)} and {sizes} window sizes: "
            "expected finite values [h, w] and one size or more."
        )
    grid = relevance.detach().double().cpu()
    rows, columns = grid.shape
    cell_x, cell_y = size[0] / columns, size[1] / rows
    found = list[tuple[float, float, float, float]]()  # sharpness, side, centre x and y
    for i in range(sizes):
        side = base * round(1 + STEP * i, 6)  # as decimals are written
        wide = min(max(int(side / cell_x), 1), columns)
        high = min(max(int(side / cell_y), 1), rows)
        if wide == columns and high == rows:
            if not found:
                return (0, 0, *size)
            continue
        sharpness, x, y = _best_window(grid, wide, high)
        found.append((sharpness, side, (x + wide / 2) * cell_x, (y + high / 2) * cell_y))
    top = max(sharpness for sharpness, *_ in found)
    near = 1e-12 * max(abs(sharpness) for sharpness, *_ in found)  # rounding alone is no difference
    _, side, x, y = next(window for window in found if window[0] >= top - near)
    (left, right), (top, bottom) = _span(int(x), side, size[0]), _span(int(y), side, size[1])
    return left, top, right, bottom


def beside(prompt: Prompt, boxes: Sequence[Box]) -> Prompt:
    """The prompt with a crop of each picture right after it."""
    crops = iter(
        Picture.of(picture.image.crop(box))
        for picture, box in zip(prompt.pictures, boxes, strict=True)
    )

    def doubled(parts: tuple[Part, ...]) -> tuple[Part, ...]:
        pairs = [(part, next(crops)) if isinstance(part, Picture) else (part,) for part in parts]
        return tuple(part for pair in pairs for part in pair)

    return replace(prompt, turns=tuple(replace(t, parts=doubled(t.parts)) for t in prompt.turns))


def _best_window(grid: Tensor, wide: int, high: int) -> tuple[float, int, int]:
    """Sharpness and place (column, row) of the largest sum; the leftmost, then topmost, of equals.

    Sums that differ by rounding alone are equal.
    """
    sums = grid.unfold(0, high, 1).unfold(1, wide, 1).sum((-1, -2))
    flat = sums.T.flatten()
    place = int((flat >= flat.max() - 1e-9 * flat.abs().max()).nonzero()[0])
    x, y = divmod(place, sums.shape[0])
    near = [
        float(sums[j, i])
        for i, j in ((x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1))
        if 0 <= i < sums.shape[1] and 0 <= j < sums.shape[0]
    ]
    return (float(sums[y, x]) - sum(near) / len(near)) / (wide * high), x, y


def _span(centre: float, side: float, length: int) -> tuple[int, int]:
    """First and last pixel of a window that is moved inside an axis and cut to it."""
    half = side // 2
    centre = min(max(centre, half), length - half)
    return round(max(0, centre - half)), round(min(length, centre + half))
