"""What `steer` sees of one layer: the stream it may rewrite, for one named row of all requests.

Shapes: R requests, T tokens, D hidden size, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from halludecode.core.errors import HookNeverFired

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
        entering: [R, T, D], the residual entering the layer; None where that is ``inp``.
        chosen: Bool [R, T], positions that are rewritten; None is all.
        pictured: Bool [R], requests with a picture; the others are to be left alone.
        pictures: What `features` gives.
        reads: While compiling: needs, for what of `logits` and `features` was asked for.
    """

    layer: int
    m: ModelInfo
    row: str
    x: Tensor
    inp: Tensor
    decode: Callable[[Tensor], Tensor]
    state: Mapping[str, Any] = field(default_factory=dict[str, Any])
    carry: dict[str, Any] = field(default_factory=dict[str, Any])
    entering: Tensor | None = None
    chosen: Tensor | None = None
    pictured: Tensor | None = None
    pictures: Callable[[], Sequence[Tensor]] | None = None
    reads: set[str] = field(default_factory=set[str])

    def logits(self) -> Tensor:
        """float32 [R, V]: what the last token of the residual entering the layer would say.

        The final norm is included. Of a prompt it is the last token's, so the prompt starts whole.
        """
        self.reads.add("logits")
        return self.decode((self.inp if self.entering is None else self.entering)[:, -1])

    @property
    def features(self) -> Sequence[Tensor]:
        """Per request, float32 [N_img, D]: the main row's image tokens as they entered layer 0.

        Kept from the prompt, which starts whole; N_img is 0 without a picture.
        """
        self.reads.add("image_features")
        if self.pictures is None:
            raise HookNeverFired("steer: this engine keeps no image features for `features`.")
        return self.pictures()


def steered(x: Tensor, v: Tensor, lam: float) -> Tensor:
    """``x + lam * v`` at the length of x; x and v are [.., D]."""
    return _at_length(x, x.float() + lam * v.float())


def leaned(x: Tensor, v: Tensor, lam: float) -> Tensor:
    """``n(n(x) + lam * n(v))`` at the length of x, with n(y) = y / ||y||; x and v are [.., D]."""
    return _at_length(x, _unit(x.float()) + lam * _unit(v.float()))


def turned(x: Tensor, v: Tensor, lam: float) -> Tensor:
    r"""X turned towards v at its own length, further where it points away; x and v are [.., D].

    .. math:: x' = \lVert x \rVert\, n\bigl(n(x) + \lambda\,
       (1 + \max(0, \cos(x, -v)))\, n(v)\bigr), \qquad n(y) = y / \lVert y \rVert

    The released code of VISTA (LzVv123456/VISTA llm_layers.py); that of VTI, from which it comes,
    has the factor of cos commented out (`leaned`). A v of zeros changes nothing.
    """
    unit, way = (_unit(y.float()) for y in (x, v))
    away = 1 + (-unit * way).sum(-1, keepdim=True).clamp_min(0)
    return _at_length(x, unit + lam * away * way)


def _unit(y: Tensor) -> Tensor:
    return y / y.square().sum(-1, keepdim=True).sqrt().clamp_min(1e-12)


def _at_length(x: Tensor, moved: Tensor) -> Tensor:
    """``moved`` at the length of x."""
    sizes = [y.float().square().sum(-1, keepdim=True) for y in (x, moved)]
    return moved * (sizes[0] / sizes[1].clamp_min(1e-12)).sqrt()
