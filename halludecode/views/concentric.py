"""Concentric order of a picture's tokens: rings from the border inwards, numbered from 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def rings(square: Tensor) -> Tensor:
    """int64 [..]: the ring of each token; ``square`` [.., 4] as `Attention.square` gives it.

    Tokens of no picture have -1 or less.
    """
    row, column, side = square[..., 1], square[..., 2], square[..., 3]
    across = row.minimum(side - 1 - row)
    return across.minimum(column).minimum(side - 1 - column)


def positions(square: Tensor, tokens: Tensor) -> Tensor:
    """float32 [R, N]: a picture takes as many positions as it has rings, a word one.

    Args:
        square: int64 [R, N, 4], see `Attention.square`.
        tokens: bool [R, N], keys that are not padding.
    """
    pictured = square[..., 0] >= 0
    count = (square[..., 3] + 1) // 2  # rings of the picture
    opens = pictured & (square[..., 1] == 0) & (square[..., 2] == 0)
    steps = (tokens & ~pictured).long() + count * opens
    before = steps.cumsum(-1) - steps  # of what stands before a token
    inside = before - count * (pictured & ~opens) + rings(square)
    return inside.where(pictured, before).float()
