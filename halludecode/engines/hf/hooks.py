"""How a plan reaches the model: transformers' attention and mask registries, and layer hooks.

One attention function is registered under the name "halludecode". It runs the stock SDPA kernel for
every row and recomputes, exactly, only the queries a strategy edits, in blocks of rows; without an
active `ForwardContext` it is SDPA. Which one is active is kept in a context variable, so threads
never see each other's.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from halludecode.models.family import ModelFamily, decoder_layers
from halludecode.models.feed_forward import (
    Branch,
    Branched,
    branch_logits,
    final_norm,
    mlp_of,
    rows_of_head,
)

if TYPE_CHECKING:
    from halludecode.engines.hf.forward_context import ForwardContext

NAME, CAPPED = "halludecode", "halludecode_capped"
_ACTIVE: ContextVar[ForwardContext | None] = ContextVar("halludecode_run", default=None)
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


@dataclass
class _Uncompiled:
    """How many blocks want `torch.compile`d modules run as they are written."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    blocks: int = 0
    stance: Any = None


_UNCOMPILED = _Uncompiled()


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    caps: bool = False,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Stock SDPA, then the edits of the active context; shapes as transformers' are.

    Rows that are laid end to end are a block here alone. Gemma 2 bounds its scores (``softcap``),
    which transformers' SDPA either leaves out without a word (5.19) or refuses (5.24): it is done
    where the model does it without us (``caps``).

    Returns:
        Head outputs [rows, Q, H, d], and no weights.
    """
    context, layer = _ACTIVE.get(), getattr(module, "layer_idx", None)
    unpadded = context.unpadded if context is not None and layer is not None else None
    if unpadded is not None:  # the cache has laid out keys and values
        query = unpadded.heads(query)
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    cap = softcap if caps else None
    if cap is None:
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    else:
        out = _capped(module, query, key, value, attention_mask, scaling, cap)
    if context is not None and layer is not None:
        context.attention(layer, query, key, value, attention_mask, scaling, out, cap)
    return (out if unpadded is None else unpadded.joined(out)), None


def _capped(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *how: float
) -> Tensor:
    """Gemma 2's own attention, for a mask as SDPA takes it: bool, or None for a causal one."""
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

    width, count = q.shape[2], k.shape[2]
    if mask is None:
        mask = torch.ones(width, count, dtype=torch.bool, device=q.device).tril(count - width)
    shut = torch.zeros(mask.shape, dtype=q.dtype, device=q.device)
    shut = shut.masked_fill(~mask, torch.finfo(q.dtype).min)
    return eager_attention_forward(module, q, k, v, shut, 0.0, *how)[0]


for _name, _caps in ((NAME, False), (CAPPED, True)):
    AttentionInterface.register(_name, partial(_attention, caps=_caps))
    AttentionMaskInterface.register(_name, sdpa_mask)  # without it padded rows are silently wrong


def lock_of(model: nn.Module) -> threading.RLock:
    """The model's lock: its attention implementation is state, so threads take turns."""
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, threading.RLock())


def running() -> bool:
    """Whether this thread is in a forward under a context."""
    return _ACTIVE.get() is not None


@contextmanager
def uncompiled() -> Iterator[None]:
    """Within this block `torch.compile`d modules run eagerly: their graphs know no hooks of ours.

    The stance is the process's, so the first block sets it and the last one sets it back.
    """
    shared = _UNCOMPILED
    with shared.lock:
        if shared.blocks == 0:
            shared.stance = torch.compiler.set_stance("force_eager")
        shared.blocks += 1
    try:
        yield
    finally:
        with shared.lock:
            shared.blocks -= 1
            if shared.blocks == 0:
                shared.stance.__exit__(None, None, None)


def decode(
    model: Any, family: ModelFamily, x: Tensor, *, norm: bool, tokens: Tensor | None = None
) -> Tensor:
    """float32 [.., V]: the model's LM head on residuals [.., D], after its final norm or not.

    Of some tokens (int64 [K]) alone it is [.., K], and x may be of any dtype and device.
    """
    head = model.get_output_embeddings()
    x = x if tokens is None else x.to(head.weight)
    if norm:
        parent = model.get_submodule(family.layers.rpartition(".")[0])
        x = final_norm(parent)(x)
    made = (head(x) if tokens is None else rows_of_head(head, x, tokens)).float()
    most = model.config.get_text_config().final_logit_softcapping if family.capped else None
    return made if most is None else most * (made / most).tanh()


def branch(model: Any, family: ModelFamily, kept: Branch | None) -> Branched | None:
    """What `core.step.Step.branch` gives of what a forward kept."""
    if kept is None:
        return None
    norm = final_norm(model.get_submodule(family.layers.rpartition(".")[0]))
    parts = decoder_layers(model, family), norm, model.get_output_embeddings()
    wide = kept[0], kept[1][None], kept[2][None], kept[3][None]
    return lambda *how: branch_logits(*parts, wide, *how)[0]


@contextmanager
def hooked(model: Any, family: ModelFamily, context: ForwardContext) -> Iterator[None]:
    """Within this block the model's forward passes obey ``context``; afterwards it is as it was."""
    handles: list[Any] = []
    token = _ACTIVE.set(context)
    try:
        layers = decoder_layers(model, family)
        for i in context.input_layers:
            handles.append(
                layers[i].register_forward_pre_hook(_on_input(context, i), with_kwargs=True)
            )
        for i in context.output_layers:
            handles.append(layers[i].register_forward_hook(_on_output(context, i)))
        for i in sorted(context.steered("mlp")):
            handles.append(
                mlp_of(layers[i]).register_forward_hook(_on_mlp(context, i), with_kwargs=True)
            )
        with uncompiled(), attention_set(model, context.needs_attention):
            yield
    finally:
        for handle in handles:
            handle.remove()
        _ACTIVE.reset(token)


@contextmanager
def attention_set(model: Any, needed: bool) -> Iterator[None]:
    """Within this block the decoder calls our attention function; then its own again.

    Switching walks over all modules, so a batch switches once around all its steps; inner uses of
    this block then find it done.
    """
    before = model.config.get_text_config()._attn_implementation
    if not needed or attention_is_ours(model):
        yield
        return
    model.set_attn_implementation({"text_config": NAME if before == "sdpa" else CAPPED})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": before})


@contextmanager
def last_token(model: Any) -> Iterator[None]:
    """Within this block a model decodes the last token alone, if it takes no `logits_to_keep`.

    One that keeps its head elsewhere hands the argument on.
    """
    taken = inspect.signature(type(model).forward).parameters
    if "logits_to_keep" in taken or not hasattr(model, "lm_head"):
        yield
        return

    def cut(module: nn.Module, args: Any, output: Any) -> None:
        output.last_hidden_state = output.last_hidden_state[:, -1:]

    handle = model.model.register_forward_hook(cut)
    try:
        yield
    finally:
        handle.remove()


def attention_is_ours(model: Any) -> bool:
    """Whether the decoder took our attention function when it was told to."""
    return model.config.get_text_config()._attn_implementation in (NAME, CAPPED)


def _on_input(context: ForwardContext, layer: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        context.layer_input(layer, _stream(args[0] if args else kwargs["hidden_states"]))

    return hook


def _on_output(context: ForwardContext, layer: int) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (context.layer_output(layer, output[0]), *output[1:])
        if output.dim() == 4:  # which nothing steers
            context.layer_output(layer, _stream(output))
            return output
        return context.layer_output(layer, output)

    return hook


def _stream(x: Tensor) -> Tensor:
    """[rows, Q, D]: the residual; of Gemma 3n's streams the one that layers read and write."""
    return x[0] if x.dim() == 4 else x


def _on_mlp(context: ForwardContext, layer: int) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        inp = args[0] if args else next(iter(kwargs.values()))
        if isinstance(output, tuple):  # of experts, beside their router's logits
            return (context.mlp_output(layer, output[0].view_as(inp), inp), *output[1:])
        return context.mlp_output(layer, output, inp)

    return hook
