"""What the vision tower attends to, as received by each image token.

The tower runs once more, picture by picture, with an attention function that keeps queries and keys
of the layers asked for: a row of weights from the CLS token where the tower has one, else the mean
over all rows, in blocks, so that no whole map exists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from halludecode.core.errors import HookNeverFired, UnsupportedStrategy
from halludecode.engines.hf.model import HFModel
from halludecode.engines.inputs.rows import ImageInput

NAME = "halludecode_vision"
BLOCK = 256  # query rows at a time where all of them count


@dataclass
class VisionCapture:
    """Attention received in the layers asked for: [views, Hv, patches] each."""

    layers: frozenset[int]
    places: Mapping[int, int]  # id of an attention module -> its layer
    has_cls: bool
    fullwidth: bool
    kept: dict[int, list[Tensor]] = field(default_factory=dict)

    def see(self, module: nn.Module, q: Tensor, k: Tensor, scaling: float) -> None:
        """Notes one layer's attention; ``q`` and ``k`` are [views, Hv, tokens, d]."""
        layer = self.places.get(id(module), -1)
        if layer not in self.layers:
            return
        q, k = q.float(), k.float()
        if self.fullwidth:
            q, k = (x.transpose(1, 2).flatten(2)[:, None] for x in (q, k))
            scaling = q.shape[-1] ** -0.5
        if self.has_cls:
            weights = (q[:, :, :1] @ k.transpose(-1, -2) * scaling).softmax(-1)[:, :, 0, 1:]
        else:
            rows = q.split(BLOCK, dim=2)
            sums = [(x @ k.transpose(-1, -2) * scaling).softmax(-1).sum(2) for x in rows]
            weights = torch.stack(sums).sum(0) / q.shape[2]
        self.kept.setdefault(layer, []).append(weights.cpu())


_ACTIVE: ContextVar[VisionCapture | None] = ContextVar("halludecode_vision", default=None)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Stock SDPA; queries and keys are [views, Hv, N, d]."""
    keeper = _ACTIVE.get()
    if keeper is not None:
        keeper.see(module, query, key, kwargs.get("scaling") or query.shape[-1] ** -0.5)
    out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return out, None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@torch.no_grad()
def received(
    net: HFModel, feeds: Sequence[ImageInput], layers: tuple[int, ...], *, fullwidth: bool
) -> Tensor:
    """float32 [layers, Hv, N_img]: attention each image token of a prompt receives in the tower.

    Args:
        net: The model; its layout must say which token a patch belongs to.
        feeds: Pictures of the prompt.
        layers: Layers of the tower.
        fullwidth: Take queries and keys as one head: Hv is 1.

    Raises:
        HookNeverFired: The tower did not call the attention function in one of the layers.
    """
    found: list[Tensor] = []
    vision = net.model_info().vision
    places = _places(net.model)
    with _tower_set(net.model):
        for feed in feeds:
            has_cls = vision is not None and vision.has_cls
            keeper = VisionCapture(frozenset(layers), places, has_cls, fullwidth)
            token = _ACTIVE.set(keeper)
            try:
                net.encode([feed])
            finally:
                _ACTIVE.reset(token)
            silent = [layer for layer in layers if layer not in keeper.kept]
            if silent:
                raise HookNeverFired(f"The vision tower kept nothing of layer(s) {silent}.")
            # One call for all views of a picture, or one for each window of its patches.
            made = torch.stack([torch.cat(keeper.kept[layer], -1) for layer in layers])
            found.append(_patches(net, made, feed))
    return torch.cat(found, -1)


def _patches(net: HFModel, values: Tensor, feed: ImageInput) -> Tensor:
    if net.layout.patches is None:
        raise UnsupportedStrategy(
            f"Family {net.model.config.model_type!r} has no image token that stands for patches of "
            "the vision tower, so its attention cannot be laid onto tokens."
        )
    return net.layout.patches(values, feed.pixels, net.model.config)


def _places(model: Any) -> dict[int, int]:
    """Which layer of the tower an attention module belongs to, by the module's name."""
    places: dict[int, int] = {}
    for name, module in model.named_modules():
        number = re.search(r"\.(\d+)\.", name)
        if number:
            places[id(module)] = int(number[1])
    return places


@contextmanager
def _tower_set(model: Any) -> Iterator[None]:
    """Within this block the vision tower calls our attention function."""
    before = model.config.vision_config._attn_implementation
    model.set_attn_implementation({"vision_config": NAME})
    try:
        yield
    finally:
        model.set_attn_implementation({"vision_config": before})
