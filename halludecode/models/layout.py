"""One table: model family -> where its parts are. Adding a family is adding a row.

Only transformers' own classes are listed; everything else about a model is read from its config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from halludecode.core.errors import InvalidModel

if TYPE_CHECKING:
    from torch import Tensor

Span = tuple[int, int, int]  # first token, rows, columns: where a picture's tokens form a raster


@dataclass(frozen=True)
class Layout:
    """What an engine must know of one family.

    Args:
        placeholder: What stands for one picture in a rendered prompt.
        layers: Dotted path from the model to its decoder layers.
        turn: A user turn and the start of the answer, for checkpoints without a chat template;
            ``{images}`` are the placeholders.
        span: ``(pixel inputs of one picture, its token count, config) -> Span`` of its overview.
        view: ``(pixel inputs of one picture, image processor) -> [3, H, W]``, normalised pixels to
            show.
        patches: ``(values [.., views, Hv, patches] of one picture, pixel inputs, config) ->
            [.., Hv, tokens]``: values of the vision tower's patches laid onto image tokens, the
            mean where a token is made of several; None where tokens do not stand for patches.
        packed: Whether the model wants picture features as one tensor instead of a list.
        mrope: Whether the model makes three-dimensional positions (`get_rope_index`).
    """

    placeholder: str
    layers: str
    turn: str
    span: Callable[[Mapping[str, Any], int, Any], Span]
    view: Callable[[Mapping[str, Any], Any], Tensor]
    patches: Callable[[Tensor, Mapping[str, Any], Any], Tensor] | None = None
    packed: bool = False
    mrope: bool = False


def _square(count: int) -> Span:
    side = round(count**0.5)
    return (0, side, side) if side * side == count else (0, 1, count)


def _llava_span(pixels: Mapping[str, Any], count: int, config: Any) -> Span:
    return _square(count)


def _qwen_span(pixels: Mapping[str, Any], count: int, config: Any) -> Span:
    merge = config.vision_config.spatial_merge_size
    _, rows, columns = pixels["image_grid_thw"][0].tolist()
    return 0, rows // merge, columns // merge


def _internvl_span(pixels: Mapping[str, Any], count: int, config: Any) -> Span:
    # The last tile is the thumbnail of the whole picture.
    tile = count // len(pixels["pixel_values"])
    _, rows, columns = _square(tile)
    return count - tile, rows, columns


def _same_patches(values: Tensor, pixels: Mapping[str, Any], config: Any) -> Tensor:
    return values.movedim(-3, -2).flatten(-2)


def _shuffled_patches(values: Tensor, pixels: Mapping[str, Any], config: Any) -> Tensor:
    # Pixel shuffle puts a square of neighbours into one token, raster order kept.
    step, side = round(1 / config.downsample_ratio), round(values.shape[-1] ** 0.5)
    small = side // step
    squares = values.unflatten(-1, (small, step, small, step)).mean((-3, -1))
    return squares.flatten(-2).movedim(-3, -2).flatten(-2)


def _merged_patches(values: Tensor, pixels: Mapping[str, Any], config: Any) -> Tensor:
    # Qwen's processors put the patches of one token side by side.
    merge = config.vision_config.spatial_merge_size**2
    return _same_patches(values.unflatten(-1, (-1, merge)).mean(-1), pixels, config)


def _windowed_patches(values: Tensor, pixels: Mapping[str, Any], config: Any) -> Tensor:
    # Qwen2.5-VL's tower works on tokens sorted by window and sorts them back at its end.
    from transformers.vision_utils import get_vision_window_index

    tower = config.vision_config
    sizes = (tower.spatial_merge_size, tower.window_size, tower.patch_size)
    order, _ = get_vision_window_index(pixels["image_grid_thw"], *sizes)
    return _merged_patches(values, pixels, config)[..., order.argsort()]


def _plain_view(pixels: Mapping[str, Any], processor: Any) -> Tensor:
    return pixels["pixel_values"][-1]


def _qwen_view(pixels: Mapping[str, Any], processor: Any) -> Tensor:
    _, rows, columns = pixels["image_grid_thw"][0].tolist()
    merge, patch, frames = processor.merge_size, processor.patch_size, processor.temporal_patch_size
    blocks = pixels["pixel_values"].reshape(
        rows // merge, columns // merge, merge, merge, 3, frames, patch, patch
    )[..., 0, :, :]  # frames of a still picture are equal
    return blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * patch, columns * patch)


_CHATML = "<|im_start|>user\n{images}{text}<|im_end|>\n<|im_start|>assistant\n"

LAYOUTS: Mapping[str, Layout] = {
    "llava": Layout(
        placeholder="<image>",
        layers="model.language_model.layers",
        turn="USER: {images}\n{text} ASSISTANT:",
        span=_llava_span,
        view=_plain_view,
        patches=_same_patches,
    ),
    "qwen2_5_vl": Layout(
        placeholder="<|vision_start|><|image_pad|><|vision_end|>",
        layers="model.language_model.layers",
        turn=_CHATML,
        span=_qwen_span,
        view=_qwen_view,
        patches=_windowed_patches,
        mrope=True,
    ),
    "internvl": Layout(
        placeholder="<IMG_CONTEXT>",
        layers="model.language_model.layers",
        turn=_CHATML.replace("{images}", "{images}\n"),
        span=_internvl_span,
        view=_plain_view,
        patches=_shuffled_patches,
        packed=True,
    ),
}


def layout_of(config: Any) -> Layout:
    """The row for a model's config; InvalidModel names the families there are."""
    family = getattr(config, "model_type", "?")
    if family not in LAYOUTS:
        raise InvalidModel(
            f"Model family {family!r} has no layout; known: {', '.join(LAYOUTS)}. "
            "Adding one is a row of halludecode/models/layout.py."
        )
    return LAYOUTS[family]


def decoder_layers(model: Any, layout: Layout) -> Any:
    """The decoder layers of a loaded model."""
    found = model
    for name in layout.layers.split("."):
        found = getattr(found, name)
    return found
