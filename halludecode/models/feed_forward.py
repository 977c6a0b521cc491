"""What follows attention in a decoder layer, for a state that did not come from it.

The modules have the same names in transformers, whose mixtures of experts want [1, B, D], and in
vLLM, whose want [B, D]. Shapes: B states, D hidden size, H heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Branch = tuple[int, Tensor, Tensor, Tensor]
Branched = Callable[[float, float, bool], Tensor]  # `branch_logits` of one branch


def branch_logits(
    layers: Sequence[Any],
    norm: Any,
    head: Callable[[Tensor], Tensor],
    kept: Branch,
    residual: float,
    last: float,
    normed: bool,
) -> Tensor:
    """float32 [B, V], see `core.step.Step.branch`.

    Args:
        layers: The decoder's.
        norm: Its final norm.
        head: Its LM head.
        kept: Number of a layer, its head outputs [B, H, d], and [B, D] twice: the residual entering
            the last layer, and leaving it.
        residual: Share of the former.
        last: Share of the latter, after the final norm.
        normed: Whether the last layer's input norm comes first.
    """
    number, heads, entering, leaving = kept
    made = projected(layers[number], heads.to(entering.dtype))
    h = (_entry(layers[-1])(made) if normed else made) + residual * entering
    return head(norm(feed_forward(layers[-1], h)) + last * norm(leaving)).float()


def rows_of_head(head: Any, x: Tensor, tokens: Tensor) -> Tensor:
    """[.., K]: an LM head's logits of some tokens (int64 [K]) alone, for states [.., D]."""
    made = x @ head.weight[tokens.to(head.weight.device)].T
    bias = getattr(head, "bias", None)
    return made if bias is None else made + bias[tokens.to(bias.device)]


def projected(layer: Any, heads: Tensor) -> Tensor:
    """[B, D]: a layer's output projection of head outputs [B, H, d]."""
    return _single(_first(layer.self_attn, "o_proj", "out_proj")(heads.flatten(-2)))


def mlp_of(layer: Any) -> Any:
    """A decoder layer's FFN; None where it has none of its own."""
    return _first(layer, "mlp", "feed_forward")


def final_norm(decoder: Any) -> Any:
    """What a decoder's last residual goes through before the LM head."""
    return _first(decoder, "norm", "embedding_norm")


def feed_forward(layer: Any, h: Tensor) -> Tensor:
    """[B, D]: ``h + FFN(norm(h))`` of a layer, with the norm after the FFN where it has one."""
    before = _first(layer, "pre_feedforward_layernorm", "post_attention_layernorm", "ffn_norm")
    before = before or _entry(layer)  # Cohere's FFN stands beside attention, reads what it reads
    after = _first(layer, "post_feedforward_layernorm", "post_mlp_layernorm")
    made = _single(mlp_of(layer)(before(h)))
    return h + (made if after is None else after(made))


def _entry(layer: Any) -> Any:
    return _first(layer, "input_layernorm", "operator_norm")


def _first(layer: Any, *names: str) -> Any:
    return next((own for name in names if (own := getattr(layer, name, None)) is not None), None)


def _single(output: Any) -> Tensor:
    """A module's tensor, where it gives something beside it."""
    return output[0] if isinstance(output, tuple) else output
