"""Numbers of the loaded model: all that a strategy sees of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class VisionInfo:
    """Numbers of the vision tower; None in `ModelInfo` where the family has no plain one.

    Args:
        layers: Of the whole tower.
        heads: Attention heads of each.
        has_cls: Whether a CLS token stands before the patches.
        feature_layer: Whose leaving state is projected; counted from the end where negative.
        places: Tokens of a view, the CLS token among them, where all views have as many; else 0.
        cls_last: Whether it stands after them.
    """

    layers: int
    heads: int
    has_cls: bool
    feature_layer: int
    places: int = 0
    cls_last: bool = False

    @property
    def read_layers(self) -> int:
        """How many layers the projector's input has been through."""
        below = self.feature_layer if self.feature_layer >= 0 else self.layers + 1
        return below + min(self.feature_layer, 0)


@dataclass(frozen=True)
class ModelInfo:
    """Numbers of the loaded model; strategies see nothing else of it.

    Args:
        num_layers: Decoder layers.
        num_heads: Query heads.
        num_kv_heads: Key/value heads.
        hidden_size: Hidden size.
        vocab_size: Vocabulary size.
        head_dim: Head size.
        vision: The vision tower's numbers.
        mrope: Whether positions are three-dimensional.
        rope: How far each pair of dimensions of a head turns from one position to the next, where
            one rotation holds for all layers and lengths; else empty.
        recurrent: Decoder layers without attention: convolutions, gated delta rules.
        scheme: What the weights were trained with, see `Strategy.trained`; "" for nothing.
        artifact: Tensors made by `calibrate` for this model and strategy, if any.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    hidden_size: int
    vocab_size: int
    head_dim: int
    vision: VisionInfo | None = None
    mrope: bool = False
    rope: tuple[float, ...] = ()
    recurrent: tuple[int, ...] = ()
    scheme: str = ""
    artifact: Mapping[str, Tensor] | None = field(default=None, compare=False)

    def attending(self, layers: Iterable[int]) -> tuple[int, ...]:
        """Those of some layers that have attention; all of them where none has.

        A strategy whose layers have none is refused before any token.
        """
        asked = tuple(layers)
        return tuple(layer for layer in asked if layer not in self.recurrent) or asked

    def scaled(self, layer: int) -> int:
        """A layer number given for 32-layer models, scaled to this depth."""
        return round(layer * self.num_layers / 32)

    def scaled_range(self, start: int, stop: int) -> range:
        """Layers start..stop-1 of 32-layer models, scaled to this depth; one at least."""
        first = min(self.scaled(start), self.num_layers - 1)
        return range(first, max(self.scaled(stop), first + 1))
