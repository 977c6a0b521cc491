"""What a strategy keeps of one request between its hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


State = Mapping[str, Any]  # tensors of one fixed shape, PerImageToken, or strings


def stack(states: Sequence[State]) -> State:
    """State of one strategy over requests: equal-shaped tensors become [B, ...], the rest lists."""
    stacked: dict[str, Any] = {}
    for name in dict.fromkeys(name for state in states for name in state):
        values = [state.get(name) for state in states]
        shapes = {getattr(value, "shape", None) for value in values}
        same = len(shapes) == 1 and None not in shapes
        stacked[name] = _stacked(values) if same else values
    return stacked


def _stacked(values: list[Any]) -> Tensor:
    import torch

    return torch.stack(values)


@dataclass(frozen=True)
class PerImageToken:
    """State of floats per image token ([.., N_img]), seen by `attend` as ``a.key(name)``."""

    values: Tensor
