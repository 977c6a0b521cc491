"""What passes before the answer keep, taken while their rows run, and made into `Activations`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from halludecode.core.activations import Activations
from halludecode.core.errors import HookNeverFired, UnsupportedStrategy
from halludecode.engines.vllm.worker import kv_cache as paged
from halludecode.engines.vllm.worker.tensor_parallel import all_heads
from halludecode.models.families import family_of
from halludecode.models.vision_tower import VisionCapture

if TYPE_CHECKING:
    from halludecode.engines.vllm.worker.attention import Layer
    from halludecode.engines.vllm.worker.step_batch import ScheduledRow


@dataclass
class Captured:
    """What one pass kept so far; a row that runs again after preemption writes it anew."""

    hidden: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # (layer, start): [t, D]
    heads: dict[int, Tensor] = field(default_factory=dict)  # layer: [H, d]
    image: dict[int, Tensor] = field(default_factory=dict)  # layer: [H, N_img]
    logits: dict[int, Tensor] = field(default_factory=dict)  # step: [V]
    vision: dict[int, Tensor] = field(default_factory=dict)  # picture: [layers, Hv, N]
    mask: Tensor | None = None  # bool [T]


def keep_hidden(row: ScheduledRow, kept: Captured, layer: int, x: Tensor) -> None:
    """The residual leaving a layer: of the last prompt token, or of every prompt token."""
    capture = row.tag.capture or {}
    if layer not in capture["hidden"] or row.start >= row.prompt:
        return
    stop = min(row.stop, row.prompt)
    start = row.start if capture["every_token"] else row.prompt - 1
    if start < stop:
        first = row.first + start - row.start
        kept.hidden[layer, start] = x[first : first + stop - start].detach().float().cpu()


def keep_attention(row: ScheduledRow, kept: Captured, layer: Layer) -> None:
    """Head outputs and weights on image keys of the last prompt token."""
    capture = row.tag.capture or {}
    if not row.start < row.prompt <= row.stop:
        return
    at = row.first + row.prompt - 1 - row.start
    if layer.number in capture["heads"]:
        kept.heads[layer.number] = all_heads(layer.out[at].detach().clone(), 0).float().cpu()
    if layer.number in capture["image"]:
        here = torch.tensor([row.index], device=layer.table.device)
        table = paged.tables(layer.table, here, row.prompt, layer.cache.shape[2])
        keys, _ = layer.read(table, row.prompt)
        q = layer.query[at].float()
        k = keys[0].float().repeat_interleave(q.shape[0] // keys.shape[1], 0)
        weights = (torch.einsum("hd,hnd->hn", q, k) * layer.scaling).softmax(-1)
        kept.image[layer.number] = all_heads(weights, 0).cpu()[:, row.picture >= 0]


def activations_of(
    kept: Captured, capture: Mapping[str, Any], told: Mapping[str, Any]
) -> Activations:
    """What `prepare` gets.

    Args:
        kept: See `Captured`.
        capture: What was wanted.
        told: What the front end knows: counts, spans, text, token_ids, mask.

    Raises:
        HookNeverFired: The model did not show something that was wanted.
    """
    starts = sorted({start for _, start in kept.hidden})

    def hidden(layer: int) -> Tensor:
        pieces = torch.cat([kept.hidden[layer, start] for start in starts])
        return pieces if capture["every_token"] else pieces[-1]

    def stacked(name: str, found: Mapping[int, Tensor]) -> Tensor | None:
        silent = [layer for layer in capture[name] if layer not in found]
        if silent:
            raise HookNeverFired(
                f"A pass before the answer kept nothing ({name}) of layer {silent[0]}."
            )
        return torch.stack([found[layer] for layer in capture[name]]) if capture[name] else None

    rows = {
        layer: hidden(layer)
        for layer in capture["hidden"]
        if (layer, max(starts, default=0)) in kept.hidden
    }
    steps = [kept.logits[n] for n in sorted(kept.logits)][: len(told["token_ids"])]
    vision = [kept.vision[n] for n in sorted(kept.vision)]
    return Activations(
        hidden=stacked("hidden", rows),
        heads=stacked("heads", kept.heads),
        image=stacked("image", kept.image),
        vision=torch.cat(vision, -1) if vision else None,
        image_counts=tuple(told["counts"]),
        image_mask=torch.tensor(told["mask"]) if told["mask"] is not None else None,
        image_spans=tuple(tuple(span) for span in told["spans"]),
        text=told["text"],
        token_ids=tuple(told["token_ids"]),
        logits=torch.stack(steps) if steps and capture["logits"] else None,
    )


def capture_tower(
    runner: Any, item: Any, capture: Mapping[str, Any], sizes: Mapping[str, Any]
) -> Tensor:
    """float32 [layers, Hv, N]: attention each image token of one picture receives in the tower.

    Args:
        runner: Whose model encodes the picture once more, by itself.
        item: vLLM's item of the picture.
        capture: ``vision`` layers, and ``full`` for queries and keys as one head.
        sizes: What the processor told of the picture beside its pixels, as lists.

    Raises:
        HookNeverFired: The tower did not call vLLM's attention in one of the layers.
        UnsupportedStrategy: The family's tokens stand for no patches.
    """
    from vllm.multimodal.utils import group_and_batch_mm_kwargs

    config = runner.model_config.hf_config
    layout = family_of(config)
    if layout.patches is None:
        raise UnsupportedStrategy(
            f"Family {config.model_type!r} has no image token that stands for patches of the "
            "vision tower, so its attention cannot be laid onto tokens."
        )
    model, model_info = runner.get_model(), runner.hd_desk.model_info
    layers = tuple(capture["vision"])
    cls = model_info.vision is not None and model_info.vision.has_cls
    keeper = VisionCapture(frozenset(layers), {}, cls, capture["full"])
    batches = group_and_batch_mm_kwargs([("image", item)], device=runner.device)
    with _tower_kept(
        model, keeper, model_info.vision.heads if model_info.vision is not None else 0
    ):
        for _, _, inputs in batches:
            model.embed_multimodal(**inputs)
    silent = [layer for layer in layers if layer not in keeper.kept]
    if silent:
        raise HookNeverFired(f"The vision tower kept nothing of layer(s) {silent}.")
    made = torch.stack([torch.cat(keeper.kept[layer], -1) for layer in layers])
    pixels = {name: torch.tensor(value) for name, value in sizes.items()}
    return layout.patches(made, pixels, config)


@contextmanager
def _tower_kept(model: Any, keeper: VisionCapture, heads: int) -> Iterator[None]:
    """Within this block the tower's attention shows queries and keys of its heads to the keeper."""
    handles: list[Any] = []
    places: dict[int, int] = {}
    for name, module in model.named_modules():
        number = re.search(r"\.(\d+)\.", name)
        tower = type(module).__name__ == "MMEncoderAttention" and number is not None
        if tower and not name.startswith("language_model"):
            places[id(module)] = int(number[1])  # type: ignore[index]
            handles.append(module.register_forward_pre_hook(_show(keeper, heads), with_kwargs=True))
    keeper.places = places  # type: ignore[misc]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _show(keeper: VisionCapture, heads: int) -> Any:
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
        for one, other in zip(q.split(cuts, 2), k.split(cuts, 2), strict=True):
            keeper.see(module, one, other, module.scale)

    return hook
