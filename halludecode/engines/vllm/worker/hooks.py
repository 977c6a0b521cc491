"""In a worker: hooks on its model, where `WorkerForward` meets vLLM's forward, eager or compiled.

Compiled code would keep what Python did while it was traced. So there the hooks leave operations of
our own in the graph, which it calls in every forward and cannot look into. vLLM's attention is
such an operation already.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from halludecode.core.errors import HalluDecodeError
from halludecode.engines.vllm.worker import attention
from halludecode.engines.vllm.worker.forward_context import Decode, OfBranch, WorkerForward
from halludecode.engines.vllm.worker.tensor_parallel import divided, own_heads
from halludecode.models.feed_forward import (
    Branch,
    branch_logits,
    final_norm,
    mlp_of,
    rows_of_head,
)

# The runner whose forward runs: operations of a compiled graph can hold no reference to it.
current_runner: ContextVar[Any] = ContextVar("halludecode_runner", default=None)


def _current() -> WorkerForward | None:
    runner = current_runner.get()
    return None if runner is None else runner.hd_forward()


def _entering(hidden: Tensor, residual: Tensor | None, layer: int) -> None:
    forward = _current()
    if forward is not None:  # a graph uses its memory again
        forward.layer_input(layer, hidden.clone() if residual is None else hidden, residual)


def _leaving(hidden: Tensor, residual: Tensor, layer: int) -> None:
    forward = _current()
    edited = None if forward is None else forward.layer_output(layer, hidden, residual)
    if edited is not None:
        hidden.copy_(edited[0])
        residual.copy_(edited[1])


def _mlp(output: Tensor, given: Tensor, layer: int) -> None:
    forward = _current()
    edited = None if forward is None else forward.mlp_output(layer, output, given)
    if edited is not None:
        output.copy_(edited)


def _register(library: torch.library.Library, function: Callable[..., None], *written: str) -> None:
    """An operation that a compiled graph calls, not by `custom_op`: that takes ten times as long.

    Args:
        library: Of all of ours.
        function: Its code, in every forward that somebody waits for.
        *written: What it declares as changed; one that only reads would be left out.
    """
    name = function.__name__.lstrip("_")
    library.define(name + torch.library.infer_schema(function, mutates_args=written))
    library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"halludecode::{name}", lambda *given: None, lib=library)


_LIBRARY = torch.library.Library("halludecode", "FRAGMENT")
_register(_LIBRARY, _entering, "hidden")
_register(_LIBRARY, _leaving, "hidden", "residual")
_register(_LIBRARY, _mlp, "output")


def install(runner: Any) -> None:
    """Put hooks on a loaded runner's model; they ask ``runner.hd_forward()`` in every forward."""
    layers = decoder_layers(runner.get_model())
    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(_on_input(runner, number), with_kwargs=True)
        layer.register_forward_hook(_on_output(runner, number))
        if mlp_of(layer) is not None:
            mlp_of(layer).register_forward_hook(_on_mlp(runner, number), with_kwargs=True)
    _wrap_attention(runner)


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder's layers of a vLLM model, see `_decoder_of`."""
    return _decoder_of(model).layers


def _decoder_of(model: Any) -> Any:
    """What holds the decoder's layers and its final norm in a vLLM model.

    Raises:
        HalluDecodeError: There are no layers where they are looked for.
    """
    text = model.get_language_model() if hasattr(model, "get_language_model") else model
    for module in text.modules():
        if isinstance(getattr(module, "layers", None), nn.ModuleList):
            return module
    raise HalluDecodeError(
        f"{type(model).__name__}: vLLM's model has no list of decoder layers where halludecode "
        "looks for it."
    )


def decoder(runner: Any) -> Decode:
    """The model's LM head, after its final norm or not."""
    model = runner.get_model()
    text = model.get_language_model() if hasattr(model, "get_language_model") else model
    final = final_norm(_decoder_of(model))
    head = next((m.lm_head for m in text.modules() if hasattr(m, "lm_head")), None)

    def decode(x: Tensor, norm: bool, tokens: Tensor | None = None) -> Tensor:
        x = x if tokens is None else x.to(next(final.parameters()))
        x = final(x) if norm else x
        # A head that is quantized, or divided among ranks, is read whole.
        if tokens is not None and _plain(head, x) and not divided():
            return rows_of_head(head, x, tokens).float()
        logits = model.compute_logits(x).float()
        return logits if tokens is None else logits[..., tokens]

    return decode


def _plain(head: Any, x: Tensor) -> bool:
    weight = getattr(head, "weight", None)
    return weight is not None and weight.dtype == x.dtype and weight.shape[-1] == x.shape[-1]


def brancher(runner: Any) -> OfBranch:
    """Logits of what a strategy carried past the layers, computed after the forward."""
    from vllm.forward_context import set_forward_context

    model = runner.get_model()
    final, layers = final_norm(_decoder_of(model)), decoder_layers(model)

    def branched(kept: Branch, residual: float, last: float, normed: bool) -> Tensor:
        own = (kept[0], own_heads(kept[1], 1), *kept[2:])
        with set_forward_context(None, runner.vllm_config):  # experts look themselves up there
            return branch_logits(layers, final, model.compute_logits, own, residual, last, normed)

    return branched


def _on_input(runner: Any, number: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[1]
        residual = kwargs["residual"] if "residual" in kwargs else args[2]
        if torch.compiler.is_compiling():
            torch.ops.halludecode.entering(hidden, residual, number)
            return
        forward = runner.hd_forward()
        if forward is not None:
            forward.layer_input(number, hidden, residual)

    return hook


def _on_output(runner: Any, number: int) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if torch.compiler.is_compiling():
            torch.ops.halludecode.leaving(*output, number)
            return None
        forward = runner.hd_forward()
        return None if forward is None else forward.layer_output(number, *output)

    return hook


def _on_mlp(runner: Any, number: int) -> Callable[..., Any]:
    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        given = args[0] if args else next(iter(kwargs.values()))
        if torch.compiler.is_compiling():
            torch.ops.halludecode.mlp(output, given, number)
            return None
        forward = runner.hd_forward()
        return None if forward is None else forward.mlp_output(number, output, given)

    return hook


def _wrap_attention(runner: Any) -> None:
    from vllm.model_executor.layers.attention import Attention
    from vllm.v1.attention.backend import AttentionType

    context = runner.vllm_config.compilation_config.static_forward_context
    for name, layer in context.items():
        number = re.search(r"layers\.(\d+)\.", name)
        if not isinstance(layer, Attention) or number is None:
            continue
        if layer.attn_type == AttentionType.DECODER:
            impl = layer.impl
            # vLLM's attention operation looks its layer's `impl` up in every forward and calls
            # `impl.forward`, compiled or not. A wrapper in its place would have to pass through all
            # the flags that vLLM reads of it; the object itself, of a subclass, has them.
            impl.__class__ = _editing(type(impl))
            impl.hd_runner, impl.hd_layer = runner, int(number[1])


def _editing(cls: type) -> type:
    """A backend's class whose forward is followed by our edits."""

    def forward(
        self: Any,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        result = cls.forward(
            self, layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs
        )
        context = self.hd_runner.hd_forward() if attn_metadata is not None else None
        if context is not None:
            shape = (-1, self.num_heads, self.head_size)
            context.attention(
                attention.Layer(
                    self.hd_layer,
                    query.view(shape),
                    kv_cache,
                    getattr(attn_metadata, "block_table", None),
                    self.scale,
                    output.view(shape),
                    window=layer.sliding_window,
                )
            )
        return result

    # The class must be the only base: another layout of objects cannot be swapped in.
    return type("Hallu" + cls.__name__, (cls,), {"forward": forward})
