"""What the vision tower attends to, as received by each image token.

The tower runs once more, picture by picture, with an attention function that keeps queries and keys
of the layers asked for: a row of weights from the CLS token where the tower has one, else the mean
over all rows, in blocks, so that no whole map exists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from halludecode.core.branch import TowerEdit
from halludecode.core.errors import HookNeverFired, UnsupportedStrategy
from halludecode.core.model_info import ModelInfo
from halludecode.models.family import ModelFamily
from halludecode.models.info import vision_info
from halludecode.models.tower_edit import call, hooked

NAME = "halludecode_vision"
BLOCK = 256  # query rows at a time where all of them count


class Pictured(Protocol):
    """One picture of a prompt, ready for the tower."""

    @property
    def pixels(self) -> Mapping[str, Tensor]:
        """What the model's processor made of it."""
        ...


P = TypeVar("P", bound=Pictured)


@dataclass
class VisionCapture:
    """Attention received in the layers asked for: [views, Hv, patches] each."""

    layers: frozenset[int]
    places: Mapping[int, int]  # id of an attention module -> its layer
    has_cls: bool
    fullwidth: bool
    cls_last: bool = False
    kept: dict[int, list[Tensor]] = field(default_factory=dict)

    def see(
        self, module: nn.Module, q: Tensor, k: Tensor, scaling: float, mask: Tensor | None = None
    ) -> None:
        """Notes one layer's attention; ``q`` and ``k`` are [views, Hv, tokens, d].

        ``mask`` [views, 1, tokens, tokens], 0 or True where seen, tells views that are filled up.
        """
        layer = self.places.get(id(module), -1)
        if layer not in self.layers:
            return
        q, k = q.float(), k.float()
        if self.fullwidth:
            q, k = (x.transpose(1, 2).flatten(2)[:, None] for x in (q, k))
            scaling = q.shape[-1] ** -0.5
        if self.has_cls or self.cls_last:
            at, patches = (-1, slice(-1)) if self.cls_last else (0, slice(1, None))
            cls = q[:, :, at, None]
            weights = (cls @ k.transpose(-1, -2) * scaling).softmax(-1)[:, :, 0, patches]
        else:
            real = q.new_ones(len(q), 1, q.shape[2]) if mask is None else _seen(mask)[:, :, 0]
            hidden = real[:, :, None] == 0
            sums = list[Tensor]()
            for x, own in zip(q.split(BLOCK, 2), real.split(BLOCK, 2), strict=True):
                paid = (x @ k.transpose(-1, -2) * scaling).masked_fill(hidden, -torch.inf)
                sums.append((paid.softmax(-1) * own[..., None]).sum(2))
            weights = torch.stack(sums).sum(0) / real.sum(-1, keepdim=True)
        self.kept.setdefault(layer, []).append(weights.cpu())


@dataclass
class AttentionEdit:
    """An edit of the tower's attention, and the layers in which it was called."""

    edit: TowerEdit
    places: Mapping[int, int]
    layers: int
    fired: set[int]

    def output(
        self,
        module: nn.Module,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scaling: float,
        mask: Tensor | None,
    ) -> Tensor | None:
        """[views, Hv, tokens, d] in place of the heads' outputs; None in other layers."""
        layer = self.places.get(id(module), self.layers)
        if layer >= self.layers:
            return None
        self.fired.add(layer)
        seen = None if mask is None else _seen(mask)
        known = {"k": k, "v": v, "visible": seen, "scaling": scaling}
        known |= {"layer": layer, "layers": self.layers}
        return call(self.edit, q, **known)


_ACTIVE: ContextVar[VisionCapture | AttentionEdit | None] = ContextVar(
    "halludecode_vision", default=None
)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Stock SDPA; queries and keys are [views, Hv, N, d]."""
    active, scaling = _ACTIVE.get(), kwargs.get("scaling") or query.shape[-1] ** -0.5
    if isinstance(active, VisionCapture):
        active.see(module, query, key, scaling, attention_mask)
    if isinstance(active, AttentionEdit):
        edited = active.output(module, query, key, value, scaling, attention_mask)
        if edited is not None:
            return edited.transpose(1, 2).contiguous(), None
    out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return out, None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _seen(mask: Tensor) -> Tensor:
    """Bool, of a mask that is added to scores or tells what is seen."""
    return mask == 0 if mask.is_floating_point() else mask


@torch.no_grad()
def received(
    model: Any,
    family: ModelFamily,
    images: Sequence[P],
    encode: Callable[[P], object],
    layers: tuple[int, ...],
    *,
    fullwidth: bool,
) -> Tensor:
    """float32 [layers, Hv, N_img]: attention each image token of a prompt receives in the tower.

    Args:
        model: The transformers model.
        family: Says which token a patch belongs to.
        images: Pictures of the prompt.
        encode: Runs the tower on one of them.
        layers: Layers of the tower.
        fullwidth: Take queries and keys as one head: Hv is 1.

    Raises:
        HookNeverFired: The tower did not call the attention function in one of the layers.
    """
    by_image: list[Tensor] = []
    vision = vision_info(model.config)
    has_cls = vision is not None and vision.has_cls
    last = vision is not None and vision.cls_last
    places = _places(model)
    with _tower_set(model):
        for image in images:
            capture = VisionCapture(frozenset(layers), places, has_cls, fullwidth, last)
            token = _ACTIVE.set(capture)
            try:
                encode(image)
            finally:
                _ACTIVE.reset(token)
            silent = [layer for layer in layers if layer not in capture.kept]
            if silent:
                raise HookNeverFired(f"The vision tower kept nothing of layer(s) {silent}.")
            # One call for all views of a picture, or one for each window of its patches.
            patches = torch.stack([torch.cat(capture.kept[layer], -1) for layer in layers])
            by_image.append(_on_tokens(model.config, family, patches, image.pixels))
    return torch.cat(by_image, -1)


@contextmanager
def edited(model: Any, m: ModelInfo, edit: TowerEdit | None) -> Iterator[None]:
    """Within this block the tower of a transformers model obeys ``edit``; then it is as it was.

    Raises:
        HookNeverFired: It did not come to the edit in every layer.
    """
    if edit is None:
        yield
        return
    with hooked(model, m, edit) as fired:
        if edit.at != "attention":
            yield
            return
        layers = m.vision.read_layers if m.vision is not None else 0
        token = _ACTIVE.set(AttentionEdit(edit, _places(model), layers, fired))
        try:
            with _tower_set(model):
                yield
        finally:
            _ACTIVE.reset(token)


def _on_tokens(
    config: Any, family: ModelFamily, patches: Tensor, pixels: Mapping[str, Tensor]
) -> Tensor:
    if family.patches is None:
        raise UnsupportedStrategy(
            f"Family {config.model_type!r} has no image token that stands for patches of the "
            "vision tower, so its attention cannot be laid onto tokens."
        )
    return family.patches(patches, pixels, config)


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
