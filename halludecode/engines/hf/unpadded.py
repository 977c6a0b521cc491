"""Rows of different lengths read as one sequence, so that padding passes through no layer.

A row without the picture is short beside its main row. Laid out as a block [rows, Q] it costs as
much; laid end to end, [1, T], all but attention costs what its tokens do. Attention needs rows: its
queries, keys and values are laid out as the block for its time, and the KV that is kept always is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PAYS = 7 / 8  # most tokens of a block for which the layouts are worth making


@dataclass(frozen=True)
class Unpadded:
    """Where the T tokens of a block [rows, Q] stand when they are laid end to end, row by row.

    Args:
        places: int64 [T], of every token in the flattened block.
        tokens: int64 [rows * Q], of every place's token; padding shows the first.
        last: int64 [rows], of every row's last token among the T.
        shape: Rows, and Q.
    """

    places: Tensor
    tokens: Tensor
    last: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, real: Tensor, device: torch.device) -> Unpadded | None:
        """For a block of which bool [rows, Q] is no padding; None where little is."""
        flat = real.flatten()
        places = flat.nonzero()[:, 0]
        if len(places) > PAYS * len(flat):
            return None
        tokens = (flat.cumsum(0) - 1).masked_fill(~flat, 0)
        last = real.sum(-1).cumsum(0) - 1
        rows, width = real.shape
        return cls(*(x.to(device) for x in (places, tokens, last)), (rows, width))

    def joined(self, block: Tensor) -> Tensor:
        """[1, T, ...] of [rows, Q, ...]."""
        return block.flatten(0, 1)[self.places.to(block.device)][None]

    def block(self, joined: Tensor) -> Tensor:
        """[rows, Q, ...] of [1, T, ...]."""
        return joined[0, self.tokens].unflatten(0, self.shape)

    def heads(self, joined: Tensor) -> Tensor:
        """[rows, H, Q, d] of [1, H, T, d]."""
        return joined[0].index_select(1, self.tokens).unflatten(1, self.shape).transpose(0, 1)

    def visible(self, mask: Tensor) -> Tensor:
        """Bool [rows, 1, Q, N]: the keys each query sees, of those that are no padding [rows, N].

        The queries are the last Q of the N; padding sees itself, so that nothing is undefined.
        """
        count, width = mask.shape[1], self.shape[1]
        key, query = torch.arange(count), torch.arange(count - width, count)[:, None]
        seen = (mask[:, None].bool() & (key <= query)) | (key == query)
        return seen[:, None].to(self.places.device)
