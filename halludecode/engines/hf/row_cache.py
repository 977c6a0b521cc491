"""What rows have read, by layer: keys and values, or the states of a recurrent layer.

A recurrent layer's states are of all that was read and have no axis of tokens: they are copied with
their rows, and nothing is cut off them or put before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from halludecode.engines.hf.kept_rows import Prefix, right_aligned
from halludecode.engines.hf.unpadded import Unpadded

STATES = ("conv_states", "recurrent_states")  # of the first of a layer's mixers


class RowCache(DynamicCache):
    """A KV cache by rows, also while a forward's tokens are laid end to end.

    Args:
        text: Config of a decoder with recurrent layers; None where every layer attends.
    """

    unpadded: Unpadded | None = None

    def __init__(self, text: Any = None) -> None:
        super().__init__(config=text)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Put the keys and values of a layer after those that are there."""
        if self.unpadded is not None:
            key_states = self.unpadded.heads(key_states)
            value_states = self.unpadded.heads(value_states)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep or repeat rows."""
        for layer in self.layers:
            if is_recurrent(layer):
                layer.reorder_cache(indices)
            else:
                layer.batch_select_indices(indices)

    def row(self, i: int, own: Tensor) -> Prefix:
        """All that a row has read; bool [N] are the keys that are its own."""
        kept = Prefix({}, {})
        for number, layer in enumerate(self.layers):
            if is_recurrent(layer):  # the next forward writes into the tensors
                kept.states[number] = [state[i].clone() for state in _states(layer)]
            else:
                kept.keys[number] = layer.keys[i][:, own]
                kept.values[number] = layer.values[i][:, own]
        return kept

    def lay(self, prefixes: Sequence[Prefix | None], width: int) -> None:
        """Fill an empty cache, keys right-aligned to one width; a recurrent layer's are of all."""
        shown = next(prefix for prefix in prefixes if prefix is not None)
        for number in shown.keys:
            key = right_aligned([p.keys[number] if p else None for p in prefixes], width)
            value = right_aligned([p.values[number] if p else None for p in prefixes], width)
            self.update(key[:, :, :0], value[:, :, :0], number)
            layer = self.layers[number]
            if type(layer) is DynamicLayer:  # as its own update would, which copies them once more
                layer.keys, layer.values = key, value
            else:
                self.update(key, value, number)
        for number in shown.states:
            conv, *recurrent = _stacked([p for p in prefixes if p is not None], number)
            self.update_conv_state(conv, number)
            for state in recurrent:
                self.update_recurrent_state(state, number)

    def add(self, prefixes: Sequence[Prefix], width: int) -> None:
        """Further rows, all keys right-aligned to one width."""
        for number, layer in enumerate(self.layers):
            if is_recurrent(layer):
                for name, more in zip(STATES, _stacked(prefixes, number), strict=False):
                    own = getattr(layer, name)
                    own[0] = torch.cat([own[0], more])
                continue
            for name in ("keys", "values"):
                held: Tensor = getattr(layer, name)
                here = functional.pad(held, (0, 0, width - held.shape[2], 0))
                more = right_aligned([getattr(p, name)[number] for p in prefixes], width)
                setattr(layer, name, torch.cat([here, more]))


def is_recurrent(layer: Any) -> bool:
    """Whether a layer of a cache keeps states in place of keys."""
    return hasattr(layer, STATES[0])


def _states(layer: Any) -> list[Tensor]:
    """[rows, ..] each: the convolution's, then the recurrence's where there is one."""
    found = [getattr(layer, name)[0] for name in STATES]
    return [state for state in found if state is not None]


def _stacked(prefixes: Sequence[Prefix], number: int) -> list[Tensor]:
    return [torch.stack(own) for own in zip(*(p.states[number] for p in prefixes), strict=True)]
