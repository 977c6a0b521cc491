"""In a worker: keeping what passes before the answer read, while their rows run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from halludecode.core.errors import HookNeverFired, UnsupportedStrategy
from halludecode.engines.vllm.worker import kv_cache as paged
from halludecode.engines.vllm.worker.attention import Layer
from halludecode.engines.vllm.worker.captured import Captured, keep_piece
from halludecode.engines.vllm.worker.step_batch import ScheduledRow
from halludecode.engines.vllm.worker.tensor_parallel import all_heads
from halludecode.models.families import family_of
from halludecode.models.tower_edit import states_of
from halludecode.models.vision_tower import VisionCapture


def keep_hidden(row: ScheduledRow, captured: Captured, layer: int, x: Tensor) -> None:
    """The residual leaving a layer: of the last prompt token, or of every prompt token."""
    capture = row.metadata.capture or {}
    if layer not in capture["hidden"] or row.start >= row.prompt:
        return
    stop = min(row.stop, row.prompt)
    start = row.start if capture["every_token"] else row.prompt - 1
    if start < stop:
        first = row.first + start - row.start
        piece = x[first : first + stop - start].detach().float().cpu()
        keep_piece(captured.hidden, layer, start, piece)


def keep_attention(row: ScheduledRow, captured: Captured, layer: Layer) -> None:
    """Head outputs and weights, on image keys or all, of the last prompt token.

    Those on image keys may be of every token of an answer's beginning, which may come in pieces.
    """
    capture, stop = row.metadata.capture or {}, min(row.stop, row.prompt)
    start = max(row.start, row.prompt - max(capture["answered"], 1))
    if start >= stop:
        return
    first, is_last = row.first - row.start, stop == row.prompt
    if layer.number in capture["heads"] and is_last:
        out = layer.out[first + stop - 1].detach().clone()
        captured.heads[layer.number] = all_heads(out, 0).float().cpu()
    on_keys = layer.number in capture["keys"] and is_last
    if layer.number in capture["image"] or on_keys:
        weights = _weights(row, layer, start, stop)
        if layer.number in capture["image"]:
            on_image = weights[..., row.picture[:stop] >= 0]
            keep_piece(captured.image, layer.number, start, on_image)
        if on_keys:
            captured.keys[layer.number] = weights[:, -1]


def _weights(row: ScheduledRow, layer: Layer, start: int, stop: int) -> Tensor:
    """float32 [H, stop - start, stop]: those of a prompt's tokens from ``start`` to ``stop``."""
    here = torch.tensor([row.index], device=layer.table.device)
    table = paged.tables(layer.table, here, stop, layer.cache.shape[2])
    keys, _ = layer.read(table, stop)
    first = row.first - row.start
    q = layer.query[first + start : first + stop].float()
    k = keys[0].float().repeat_interleave(q.shape[1] // keys.shape[1], 0)
    scores = torch.einsum("qhd,hnd->hqn", q, k) * layer.scaling
    place = torch.arange(stop, device=scores.device)
    ahead = place - place[start:, None]  # [stop - start, stop]
    unseen = (ahead > 0) | (ahead <= -(layer.window or stop))
    return all_heads(scores.masked_fill(unseen, -torch.inf).softmax(-1), 0).cpu()


def capture_tower(
    runner: Any, item: Any, capture: Mapping[str, Any], sizes: Mapping[str, Any]
) -> Tensor:
    """float32 [layers, Hv, N]: attention each image token of one picture receives in the tower.

    Args:
        runner: Whose model encodes the picture once more, by itself.
        item: vLLM's item of the picture.
        capture: ``vision`` layers, and ``full`` for queries and keys as one head.
        sizes: What the processor gave of the picture beside its pixels, as lists.

    Raises:
        HookNeverFired: The tower did not call vLLM's attention in one of the layers.
        UnsupportedStrategy: The family's tokens stand for no patches.
    """
    from vllm.multimodal.utils import group_and_batch_mm_kwargs

    config = runner.model_config.hf_config
    family = family_of(config)
    if family.patches is None:
        raise UnsupportedStrategy(
            f"Family {config.model_type!r} has no image token that stands for patches of the "
            "vision tower, so its attention cannot be laid onto tokens."
        )
    model, model_info = runner.get_model(), runner.hd_state.model_info
    layers = tuple(capture["vision"])
    cls = model_info.vision is not None and model_info.vision.has_cls
    last = model_info.vision is not None and model_info.vision.cls_last
    tower = VisionCapture(frozenset(layers), {}, cls, capture["full"], last)
    batches = group_and_batch_mm_kwargs([("image", item)], device=runner.device)
    with _shown_to(model, tower, model_info.vision.heads if model_info.vision is not None else 0):
        for _, _, inputs in batches:
            model.embed_multimodal(**inputs)
    silent = [layer for layer in layers if layer not in tower.kept]
    if silent:
        raise HookNeverFired(f"The vision tower kept nothing of layer(s) {silent}.")
    attention = torch.stack([torch.cat(tower.kept[layer], -1) for layer in layers])
    pixels = {name: torch.tensor(value) for name, value in sizes.items()}
    return family.patches(attention, pixels, config)


def capture_states(runner: Any, item: Any, layers: Sequence[int]) -> Tensor:
    """float32 [layers, P, Dv]: see `ActivationRequest.tower`, of one picture."""
    from vllm.multimodal.utils import group_and_batch_mm_kwargs

    model = runner.get_model()
    batches = group_and_batch_mm_kwargs([("image", item)], device=runner.device)
    runs = [partial(model.embed_multimodal, **inputs) for _, _, inputs in batches]
    return states_of(model, runner.hd_state.model_info, layers, runs)


@contextmanager
def _shown_to(model: Any, tower: VisionCapture, heads: int) -> Iterator[None]:
    """Within this block the tower's attention shows queries and keys of its heads to ``tower``."""
    handles: list[Any] = []
    places: dict[int, int] = {}
    for number, module in tower_attention(model):
        places[id(module)] = number
        handles.append(module.register_forward_pre_hook(_show(tower, heads), with_kwargs=True))
    tower.places = places  # type: ignore[misc]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tower_attention(model: nn.Module) -> Iterator[tuple[int, Any]]:
    """The attention modules of the vision tower, with their layers."""
    for name, module in model.named_modules():
        number = re.search(r"\.(\d+)\.", name)
        is_attention = type(module).__name__ == "MMEncoderAttention"
        if number is not None and is_attention and not name.startswith("language_model"):
            yield int(number[1]), module


def _show(tower: VisionCapture, heads: int) -> Any:
    def hook(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        given = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
        shape = (-1, module.head_size)
        q, k = (
            given[n].unflatten(-1, shape) if given[n].dim() == 3 else given[n]
            for n in ("query", "key")
        )
        q, k = q.transpose(1, 2), k.transpose(1, 2)  # [views, Hv, N, d]
        if q.shape[1] < heads:  # the tower is divided, too
            q, k = all_heads(q, 1), all_heads(k, 1)
        ends = given.get("cu_seqlens")
        cuts = ends.diff().tolist() if ends is not None else [q.shape[2]]
        for queries, keys in zip(q.split(cuts, 2), k.split(cuts, 2), strict=True):
            tower.see(module, queries, keys, module.scale)

    return hook
