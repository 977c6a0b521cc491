"""Where each row's keys and queries lie in the current forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from halludecode.core.attention_block import IMAGE, RowKeys
from halludecode.engines.hf.unpadded import Unpadded


@dataclass(frozen=True)
class RowPlacement:
    """The batch rows of one named row, one per request: a slice where they are contiguous.

    Main rows always are, so the usual case takes views and copies nothing. Two placements are the
    same if their rows are.
    """

    at: slice | Tensor = field(compare=False)
    rows: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[int]) -> RowPlacement:
        """From batch row numbers."""
        numbers, first = tuple(rows), rows[0]
        if numbers == tuple(range(first, first + len(numbers))):
            return cls(slice(first, first + len(numbers)), numbers)
        return cls(torch.tensor(numbers), numbers)

    def of_mask(self, mask: Tensor) -> Tensor:
        """Rows of a mask that may be shared by all."""
        return mask if mask.shape[0] == 1 else mask[self.at]


@dataclass
class AttentionMetadata:
    """Where keys and queries of every batch row lie in the current forward.

    Args:
        kind: int8 [rows, N], see `core.attention.RowKeys`.
        picture: int16 [rows, N].
        position: int64 [rows, Q], -1 for padding.
        length: int64 [rows], prompt lengths P.
        prompting: Whether any token of this forward belongs to a prompt.
        unpadded: How its rows are laid end to end outside of attention; None if they are not.
    """

    kind: Tensor
    picture: Tensor
    position: Tensor
    length: Tensor
    prompting: bool = True
    unpadded: Unpadded | None = None

    @property
    def width(self) -> int:
        """Queries of this forward."""
        return self.position.shape[1]

    def keys(self, place: RowPlacement, start: int, stop: int) -> RowKeys:
        """Keys of one named row, for the queries start..stop."""
        kind = self.kind[place.at]
        fresh = kind[:, kind.shape[1] - self.width :]
        return RowKeys(
            kind,
            self.picture[place.at],
            self.position[place.at, start:stop],
            fresh[:, start:stop],
            self.length[place.at],
        )


def image_columns(kind: Tensor, row: int) -> Tensor:
    """int64 [N_img]: where a batch row's image keys lie; ``kind`` is int8 [rows, N]."""
    return (kind[row] == IMAGE).nonzero().flatten()
