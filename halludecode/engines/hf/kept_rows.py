"""Rows of different lengths as blocks of one width, and the KV of one row outside a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass
class Prefix:
    """KV of the first tokens of one row, with the token masks that its layers computed.

    An image prefix ends with the last image token; a row that waits keeps all it has read. Layers
    without attention have states of all of it in place of keys.
    """

    keys: dict[int, Tensor]  # by layer [G, n, d]
    values: dict[int, Tensor]
    token_masks: dict[tuple[int, int, str], Tensor] = field(default_factory=dict)  # bool [n]
    states: dict[int, list[Tensor]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens."""
        return next(iter(self.keys.values())).shape[1]

    @property
    def size(self) -> float:
        """Bytes."""
        states = [state for own in self.states.values() for state in own]
        kept = (*self.keys.values(), *self.values.values(), *states)
        return sum(x.numel() * x.element_size() for x in kept)


def stacked(here: Tensor, more: Tensor, fill: Any) -> Tensor:
    """Two blocks of rows [.., N] of different widths, the shorter one filled on the left."""
    width = max(here.shape[1], more.shape[1])
    blocks = (functional.pad(x, (width - x.shape[1], 0), value=fill) for x in (here, more))
    return torch.cat(list(blocks))


def of_row(
    masks: Mapping[tuple[int, int, str], Tensor], row: int, pad: int
) -> dict[tuple[int, int, str], Tensor]:
    """The token masks of one batch row, without its ``pad`` columns of padding."""
    return {name: mask[row, pad:].clone() for name, mask in masks.items()}


def right_aligned(parts: Sequence[Tensor | None], width: int) -> Tensor:
    """[rows, G, width, d] with every part at the right end and zeros before it."""
    shown = next(part for part in parts if part is not None)
    out = shown.new_empty(len(parts), shown.shape[0], width, shown.shape[2])
    for i, part in enumerate(parts):
        pad = width - (0 if part is None else part.shape[1])
        out[i, :, :pad] = 0
        if part is not None:
            out[i, :, pad:] = part
    return out
