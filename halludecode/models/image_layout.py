"""How a family's picture lies in its tokens: its raster, its pixels to show, its patches.

Every function takes the pixel inputs of one picture as the model's processor makes them; see
`ModelFamily.span`, `.view` and `.patches` for what is asked of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Span = tuple[int, int, int]  # first token, rows, columns: where a picture's tokens form a raster


def _square(count: int) -> Span:
    side = round(count**0.5)
    return (0, side, side) if side * side == count else (0, 1, count)


def whole_span(pixels: Mapping[str, Any], count: int, config: Any) -> Span:
    """One square of all tokens."""
    return _square(count)


def first_span(pixels: Mapping[str, Any], count: int, config: Any) -> Span:
    """The first view is the whole picture, the others are its parts, row by row with line ends."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    return 0, side, side


def qwen_span(pixels: Mapping[str, Any], count: int, config: Any) -> Span:
    """A grid of merged patches."""
    merge = config.vision_config.spatial_merge_size
    _, rows, columns = pixels["image_grid_thw"][0].tolist()
    return 0, rows // merge, columns // merge


def pixtral_span(pixels: Mapping[str, Any], count: int, config: Any) -> Span:
    """A grid of merged patches, of the picture's own size."""
    side = config.vision_config.patch_size * config.spatial_merge_size
    height, width = pixels["image_sizes"][0].tolist()
    return 0, height // side, width // side


def grid_span(pixels: Mapping[str, Any], count: int, config: Any) -> Span:
    """A grid of merged patches, of the picture's own size."""
    step = config.vision_config.merge_kernel_size[0]
    _, rows, columns = pixels["image_grid_thw"][0].tolist()
    return 0, rows // step, columns // step


def views_span(pixels: Mapping[str, Any], count: int, config: Any) -> Span:
    """The first view is the whole picture, all views have as many tokens."""
    return _square(count // len(pixels["pixel_values"]))


def last_span(pixels: Mapping[str, Any], count: int, config: Any) -> Span:
    """The last view is the whole picture, all views have as many tokens."""
    view = count // len(pixels["pixel_values"])
    _, rows, columns = _square(view)
    return count - view, rows, columns


def same_patches(values: Tensor, pixels: Mapping[str, Any], config: Any) -> Tensor:
    """A token is a patch, view after view."""
    return values.movedim(-3, -2).flatten(-2)


def square_patches(values: Tensor, pixels: Mapping[str, Any], config: Any) -> Tensor:
    """Pixel shuffle or pooling makes one token of a square of neighbours, raster order kept."""
    step, side = _step(config), round(values.shape[-1] ** 0.5)
    small = side // step
    squares = values.unflatten(-1, (small, step, small, step)).mean((-3, -1))
    return squares.flatten(-2).movedim(-3, -2).flatten(-2)


def _step(config: Any) -> int:
    if hasattr(config, "downsample_ratio"):
        return round(1 / config.downsample_ratio)
    tower = config.vision_config
    if hasattr(tower, "pixel_shuffle_ratio"):
        return round(1 / tower.pixel_shuffle_ratio)
    for owner, name in (
        (config, "scale_factor"),
        (config, "downsample_factor"),
        (tower, "hidden_stride"),
    ):
        if hasattr(owner, name):
            return getattr(owner, name)
    side = tower.image_size // tower.patch_size
    return side // round(config.mm_tokens_per_image**0.5)


def pixtral_patches(values: Tensor, pixels: Mapping[str, Any], config: Any) -> Tensor:
    """One token of a square of neighbours, in the picture's own shape."""
    return _squares(values, pixtral_span(pixels, 0, config), config.spatial_merge_size)


def grid_patches(values: Tensor, pixels: Mapping[str, Any], config: Any) -> Tensor:
    """As `pixtral_patches`."""
    step = config.vision_config.merge_kernel_size[0]
    return _squares(values, grid_span(pixels, 0, config), step)


def _squares(values: Tensor, span: Span, step: int) -> Tensor:
    _, rows, columns = span
    squares = values.unflatten(-1, (rows, step, columns, step)).mean((-3, -1))
    return squares.flatten(-2).movedim(-3, -2).flatten(-2)


def merged_patches(values: Tensor, pixels: Mapping[str, Any], config: Any) -> Tensor:
    """Qwen's processors put the patches of one token side by side."""
    merge = config.vision_config.spatial_merge_size**2
    return same_patches(values.unflatten(-1, (-1, merge)).mean(-1), pixels, config)


def packed_patches(values: Tensor, pixels: Mapping[str, Any], config: Any) -> Tensor:
    """The model's own way from views to tokens, with 0 at line ends."""
    from transformers import LlavaNextModel, LlavaOnevisionModel

    views = values.movedim((-3, -1), (0, 1))  # [views, patches, .., Hv]
    flat = views.flatten(2)
    way: dict[str, Any] = {
        "image_features": [flat],
        "image_sizes": pixels["image_sizes"],
        "image_newline": flat.new_zeros(flat.shape[-1]),
    }
    this: Any = SimpleNamespace(config=config)  # all that these methods read of the model
    if config.model_type == "llava_next":
        strategy = config.vision_feature_select_strategy
        made, _ = LlavaNextModel.pack_image_features(
            this, vision_feature_select_strategy=strategy, **way
        )
    else:
        ratio = config.vision_aspect_ratio
        made, _ = LlavaOnevisionModel.pack_image_features(this, vision_aspect_ratio=ratio, **way)
    return made[0].unflatten(-1, views.shape[2:]).movedim(0, -1)


def windowed_patches(values: Tensor, pixels: Mapping[str, Any], config: Any) -> Tensor:
    """Qwen2.5-VL's tower sorts tokens by window and sorts them back at its end."""
    from transformers.vision_utils import get_vision_window_index

    tower = config.vision_config
    sizes = (tower.spatial_merge_size, tower.window_size, tower.patch_size)
    order, _ = get_vision_window_index(pixels["image_grid_thw"], *sizes)
    return merged_patches(values, pixels, config)[..., order.argsort()]


def naflex_span(pixels: Mapping[str, Any], count: int, config: Any) -> Span:
    """The last view is the whole picture, in its own shape, a token for a square of patches."""
    kept = pixels["pixel_attention_mask"].shape[-1]
    if any(rows * columns > kept for rows, columns in _shapes(pixels)):
        raise ValueError(
            f"it makes more patches than the {kept} that its processor keeps; "
            "give one that is less long and narrow."
        )
    rows, columns = (-(-n // config.downsample_factor) for n in _shapes(pixels)[-1])
    return count - rows * columns, rows, columns


def naflex_patches(values: Tensor, pixels: Mapping[str, Any], config: Any) -> Tensor:
    """Each view is filled up with patches that are none; then a token is a square of neighbours."""
    from torch import cat

    step, views = config.downsample_factor, values.unbind(-3)
    tokens: list[Tensor] = []
    for view, (rows, columns) in zip(views, _shapes(pixels), strict=True):
        own = view[..., : rows * columns]
        squares = own.unflatten(-1, (rows // step, step, columns // step, step)).mean((-3, -1))
        tokens.append(squares.flatten(-2))
    return cat(tokens, -1)


def naflex_view(pixels: Mapping[str, Any], processor: Any) -> Tensor:
    """The last view's patches put back in their places."""
    (rows, columns), side = _shapes(pixels)[-1], processor.encoder_patch_size
    return _unfolded(pixels["pixel_values"][-1], rows, columns, side)


def _unfolded(patches: Tensor, rows: int, columns: int, side: int) -> Tensor:
    own = patches[: rows * columns].reshape(rows, columns, side, side, 3)
    return own.permute(4, 0, 2, 1, 3).reshape(3, rows * side, columns * side)


def _shapes(pixels: Mapping[str, Any]) -> list[list[int]]:
    """Rows and columns of patches, by view."""
    return pixels["spatial_shapes"].tolist()


def placed_span(pixels: Mapping[str, Any], count: int, config: Any) -> Span:
    """A grid of pooled patches, of the picture's own size, told by the patches' places."""
    columns, rows = (pixels["image_position_ids"][0].amax(0) + 1).tolist()
    step = config.vision_config.pooling_kernel_size
    return 0, rows // step, columns // step


def placed_patches(values: Tensor, pixels: Mapping[str, Any], config: Any) -> Tensor:
    """As `pixtral_patches`; behind them are patches that are none."""
    span, step = placed_span(pixels, 0, config), config.vision_config.pooling_kernel_size
    return _squares(values[..., : span[1] * span[2] * step**2], span, step)


def placed_view(pixels: Mapping[str, Any], processor: Any) -> Tensor:
    """Patches [n, p p 3] put back in their places."""
    columns, rows = (pixels["image_position_ids"][0].amax(0) + 1).tolist()
    return _unfolded(pixels["pixel_values"][0], rows, columns, processor.patch_size)


def strip_span(pixels: Mapping[str, Any], count: int, config: Any) -> Span:
    """The first view is the whole picture, in its own shape, a token for a square of patches."""
    sizes = pixels["target_sizes"]
    step = round((int(sizes.prod(-1).sum()) / count) ** 0.5)
    rows, columns = sizes[0].tolist()
    return 0, rows // step, columns // step


def strip_view(pixels: Mapping[str, Any], processor: Any) -> Tensor:
    """The first view's patches, which lie side by side, put back in their places."""
    side, (rows, columns) = processor.patch_size, pixels["target_sizes"][0].tolist()
    own = pixels["pixel_values"][0, :, :, : rows * columns * side]
    cells = own.unflatten(-1, (rows, columns, side))  # [3, p, rows, columns, p]
    return cells.permute(0, 2, 1, 3, 4).flatten(3).flatten(1, 2)


def first_view(pixels: Mapping[str, Any], processor: Any) -> Tensor:
    """The first view."""
    return pixels["pixel_values"][0]


def last_view(pixels: Mapping[str, Any], processor: Any) -> Tensor:
    """The last view."""
    return pixels["pixel_values"][-1]


def grid_view(pixels: Mapping[str, Any], processor: Any) -> Tensor:
    """Patches [n, 3, p, p] put back in their places."""
    _, rows, columns = pixels["image_grid_thw"][0].tolist()
    patches = pixels["pixel_values"].unflatten(0, (rows, columns))
    return patches.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)


def qwen_view(pixels: Mapping[str, Any], processor: Any) -> Tensor:
    """Patches put back in their places."""
    _, rows, columns = pixels["image_grid_thw"][0].tolist()
    merge, patch, frames = processor.merge_size, processor.patch_size, processor.temporal_patch_size
    blocks = pixels["pixel_values"].reshape(
        rows // merge, columns // merge, merge, merge, 3, frames, patch, patch
    )[..., 0, :, :]  # frames of a still picture are equal
    return blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * patch, columns * patch)
