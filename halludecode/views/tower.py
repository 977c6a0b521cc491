"""What a row is shown of the vision tower when not all of its layers act, or act otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from halludecode.core.branch import Edit, TowerEdit
from halludecode.core.errors import UnsupportedStrategy
from halludecode.core.model_info import ModelInfo, VisionInfo

if TYPE_CHECKING:
    from torch import Tensor


def tower_of(m: ModelInfo) -> VisionInfo:
    """The vision tower's numbers.

    Raises:
        UnsupportedStrategy: The model has no plain one.
    """
    if m.vision is None:
        raise UnsupportedStrategy(
            "This model's config does not say how many layers its vision tower has, so none of "
            "them can be edited; use a strategy without 'edits the vision tower's layers'."
        )
    return m.vision


def held(x: Tensor, *, entering: Tensor, layer: int, layers: int, depth: int) -> Tensor:
    """What left a layer; from layer ``depth`` on what entered it, so that the state stays."""
    return x if layer < depth else entering


def shallow(depth: int, m: ModelInfo) -> TowerEdit | None:
    """The state after ``depth`` layers, to the end; None where the tower reads no deeper."""
    if depth >= tower_of(m).read_layers:
        return None
    return TowerEdit("layer", Edit(held, (("depth", depth),)))


def reversed_weights(weights: Tensor) -> Tensor:
    """[.., N]: the least attended key most, ``max w - w``, summing to 1; 0 where all are alike."""
    turned = weights.amax(-1, keepdim=True) - weights
    return turned / turned.sum(-1, keepdim=True).clamp_min(1e-12)


def counterfactual(
    q: Tensor,
    *,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    scaling: float,
    layer: int,
    layers: int,
    kind: str,
) -> Tensor:
    """[V, H, T, d]: heads' outputs of the tower under "uniform" or "reversed" attention."""
    import torch

    k, v = k.float(), v.float()
    if kind == "uniform" and visible is None:
        return v.mean(2, keepdim=True).expand(q.shape)
    blocks: list[Tensor] = []
    for at in range(0, q.shape[2], 256):  # no whole map
        rows = q[:, :, at : at + 256].float()
        scores = rows @ k.transpose(-1, -2) * (0 if kind == "uniform" else scaling)
        if visible is not None:
            seen = visible.expand(*visible.shape[:2], q.shape[2], -1)[:, :, at : at + 256]
            scores = scores.masked_fill(~seen, -torch.inf)
        weights = scores.softmax(-1)
        if kind == "reversed":
            weights = reversed_weights(weights)
            weights = weights if visible is None else weights * seen
            weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-12)
        blocks.append(weights @ v)
    return torch.cat(blocks, 2)
