"""What `steer` sees of one layer: the stream it may rewrite, for one named row of all requests.

Shapes: R requests, T tokens, D hidden size, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.model_info import ModelInfo


@dataclass
class ResidualStream:
    """One layer's stream as a strategy sees it; padded and unchosen positions are put back after.

    Args:
        layer: Decoder layer.
        m: The model's numbers.
        row: Local name of the row.
        x: The model's dtype, [R, T, D]: the residual leaving the layer, or with ``site="mlp"`` what
            its MLP puts out.
        inp: [R, T, D]: the residual entering the layer, or what its MLP is given.
        state: What `prepare` returned, stacked over requests.
        carry: From layer to later layer within one forward.
        decode: ``[R, D] -> float32 [R, V]``, the model's final norm and LM head.
    """

    layer: int
    m: ModelInfo
    row: str
    x: Tensor
    inp: Tensor
    decode: Callable[[Tensor], Tensor]
    state: Mapping[str, Any] = field(default_factory=dict[str, Any])
    carry: dict[str, Any] = field(default_factory=dict[str, Any])

    def logits(self) -> Tensor:
        """float32 [R, V]: what the last position of ``inp`` would say, norm included."""
        return self.decode(self.inp[:, -1])
