"""One table: model family -> where its parts are. Adding a family is adding a row.

Only transformers' own classes are listed; everything else about a model is read from its config.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from halludecode.core.errors import InvalidModel, UnsupportedStrategy
from halludecode.core.needs import quoted

if TYPE_CHECKING:
    from torch import Tensor

Span = tuple[int, int, int]  # first token, rows, columns: where a picture's tokens form a raster


@dataclass(frozen=True)
class ModelFamily:
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
            mean where a token is made of several, 0 where it is made of none; None where tokens do
            not stand for patches.
        frame: What a placeholder becomes before the words are tokenized, with one image token in
            it; "" for families whose processors only repeat the image token.
        leading: Whether the words hold no placeholder: the tokens of the one picture come first,
            before the begin token.
        encoder_words: Inputs of the picture encoder that the processor makes of the prompt's words.
        unused: Arguments of the forward without a default, which pictures already encoded replace.
        nested: Whether the picture encoder takes views as [1, views, ..].
        packed: Whether the model wants picture features as one tensor instead of a list.
        mrope: Whether the model makes three-dimensional positions (`get_rope_index`).
        mutual: Whether the tokens of a picture see each other, told by ``token_type_ids``.
        unshared: Why the KV of a picture cannot serve several questions; "" where it can.
        apart: Whether each of several pictures in a prompt is one view, where a picture alone is
            cut into views.
        lacks: Need of a strategy -> why this family cannot serve it.
    """

    placeholder: str
    layers: str
    turn: str
    span: Callable[[Mapping[str, Any], int, Any], Span]
    view: Callable[[Mapping[str, Any], Any], Tensor]
    patches: Callable[[Tensor, Mapping[str, Any], Any], Tensor] | None = None
    frame: str = ""
    leading: bool = False
    encoder_words: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    nested: bool = False
    packed: bool = False
    mrope: bool = False
    mutual: bool = False
    unshared: str = ""
    apart: bool = False
    lacks: Mapping[str, str] = field(default_factory=dict)


def _square(count: int) -> Span:
    side = round(count**0.5)
    return (0, side, side) if side * side == count else (0, 1, count)


def _whole_span(pixels: Mapping[str, Any], count: int, config: Any) -> Span:
    return _square(count)


def _first_span(pixels: Mapping[str, Any], count: int, config: Any) -> Span:
    # The first view is the whole picture, the others are its parts, row by row with line ends.
    side = config.vision_config.image_size // config.vision_config.patch_size
    return 0, side, side


def _qwen_span(pixels: Mapping[str, Any], count: int, config: Any) -> Span:
    merge = config.vision_config.spatial_merge_size
    _, rows, columns = pixels["image_grid_thw"][0].tolist()
    return 0, rows // merge, columns // merge


def _last_span(pixels: Mapping[str, Any], count: int, config: Any) -> Span:
    # The last view is the whole picture, all views have as many tokens.
    view = count // len(pixels["pixel_values"])
    _, rows, columns = _square(view)
    return count - view, rows, columns


def _same_patches(values: Tensor, pixels: Mapping[str, Any], config: Any) -> Tensor:
    return values.movedim(-3, -2).flatten(-2)


def _square_patches(values: Tensor, pixels: Mapping[str, Any], config: Any) -> Tensor:
    # Pixel shuffle or pooling makes one token of a square of neighbours, raster order kept.
    step, side = _step(config), round(values.shape[-1] ** 0.5)
    small = side // step
    squares = values.unflatten(-1, (small, step, small, step)).mean((-3, -1))
    return squares.flatten(-2).movedim(-3, -2).flatten(-2)


def _step(config: Any) -> int:
    if hasattr(config, "downsample_ratio"):
        return round(1 / config.downsample_ratio)
    if hasattr(config, "scale_factor"):
        return config.scale_factor
    side = config.vision_config.image_size // config.vision_config.patch_size
    return side // round(config.mm_tokens_per_image**0.5)


def _merged_patches(values: Tensor, pixels: Mapping[str, Any], config: Any) -> Tensor:
    # Qwen's processors put the patches of one token side by side.
    merge = config.vision_config.spatial_merge_size**2
    return _same_patches(values.unflatten(-1, (-1, merge)).mean(-1), pixels, config)


def _packed_patches(values: Tensor, pixels: Mapping[str, Any], config: Any) -> Tensor:
    # The model's own way from views to tokens, with 0 at line ends.
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


def _windowed_patches(values: Tensor, pixels: Mapping[str, Any], config: Any) -> Tensor:
    # Qwen2.5-VL's tower works on tokens sorted by window and sorts them back at its end.
    from transformers.vision_utils import get_vision_window_index

    tower = config.vision_config
    sizes = (tower.spatial_merge_size, tower.window_size, tower.patch_size)
    order, _ = get_vision_window_index(pixels["image_grid_thw"], *sizes)
    return _merged_patches(values, pixels, config)[..., order.argsort()]


def _first_view(pixels: Mapping[str, Any], processor: Any) -> Tensor:
    return pixels["pixel_values"][0]


def _last_view(pixels: Mapping[str, Any], processor: Any) -> Tensor:
    return pixels["pixel_values"][-1]


def _qwen_view(pixels: Mapping[str, Any], processor: Any) -> Tensor:
    _, rows, columns = pixels["image_grid_thw"][0].tolist()
    merge, patch, frames = processor.merge_size, processor.patch_size, processor.temporal_patch_size
    blocks = pixels["pixel_values"].reshape(
        rows // merge, columns // merge, merge, merge, 3, frames, patch, patch
    )[..., 0, :, :]  # frames of a still picture are equal
    return blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * patch, columns * patch)


_CHATML = "<|im_start|>user\n{images}{text}<|im_end|>\n<|im_start|>assistant\n"
_LLAVA = ModelFamily(
    placeholder="<image>",
    layers="model.language_model.layers",
    turn="USER: {images}\n{text} ASSISTANT:",
    span=_whole_span,
    view=_last_view,
    patches=_same_patches,
)
_LLAVA_NEXT = replace(_LLAVA, span=_first_span, view=_first_view, patches=_packed_patches)
_QWEN = ModelFamily(
    placeholder="<|vision_start|><|image_pad|><|vision_end|>",
    layers="model.language_model.layers",
    turn=_CHATML,
    span=_qwen_span,
    view=_qwen_view,
    patches=_merged_patches,
    mrope=True,
)
_IDEFICS = ModelFamily(
    placeholder="<image>",
    layers="model.text_model.layers",
    turn="<|im_start|>User:{images}{text}<end_of_utterance>\nAssistant:",
    span=_last_span,
    view=_last_view,
    patches=_square_patches,
    nested=True,
    packed=True,
)

FAMILIES: Mapping[str, ModelFamily] = {
    "llava": _LLAVA,
    "llava_next": _LLAVA_NEXT,
    # As its processor does with a chat; processor(images=[a, b]) takes them for two prompts'.
    "llava_onevision": replace(
        _LLAVA_NEXT, turn=_CHATML.replace("{images}", "{images}\n"), apart=True
    ),
    "instructblip": ModelFamily(
        placeholder="<image>",
        layers="language_model.model.layers",
        turn="{text}",
        span=_whole_span,
        view=_last_view,
        leading=True,
        encoder_words=("qformer_input_ids", "qformer_attention_mask"),
        unused=("pixel_values", "qformer_input_ids"),
        packed=True,
        unshared="its Q-Former reads the question, so a picture's features belong to one question",
        lacks={
            "more pictures": "it reads one picture",
            "raster": "its image tokens are queries of a Q-Former and form no raster",
            "vision": "its image tokens are queries of a Q-Former and stand for no patches",
            "generate": "its own generate() does not call the model's forward, so nothing would "
            "happen",
        },
    ),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": replace(_QWEN, patches=_windowed_patches),
    "qwen3_vl": replace(
        _QWEN,
        lacks={
            "features": "its picture also enters the first layers (deepstack), past the features "
            "that an edit reaches",
        },
    ),
    "internvl": ModelFamily(
        placeholder="<IMG_CONTEXT>",
        layers="model.language_model.layers",
        turn=_CHATML.replace("{images}", "{images}\n"),
        span=_last_span,
        view=_last_view,
        patches=_square_patches,
        packed=True,
    ),
    "gemma3": ModelFamily(
        placeholder="<start_of_image>",
        layers="model.language_model.layers",
        turn="<start_of_turn>user\n{images}{text}<end_of_turn>\n<start_of_turn>model\n",
        span=_whole_span,
        view=_last_view,
        patches=_square_patches,
        frame="\n\n<start_of_image><image_soft_token><end_of_image>\n\n",
        packed=True,
        mutual=True,
        unshared="its sliding windows count the padding between a shared picture and a question",
        lacks={
            "generate": "the cache of its own generate() forgets tokens that edits still count",
        },
    ),
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
}


def family_of(config: Any) -> ModelFamily:
    """The row for a model's config.

    Raises:
        InvalidModel: An unknown family, or a language model with an encoder.
    """
    family = getattr(config, "model_type", "?")
    if family not in FAMILIES:
        raise InvalidModel(
            f"Model family {family!r} has no layout; known: {', '.join(FAMILIES)}. "
            "Adding one is a row of halludecode/models/families.py."
        )
    if getattr(config.get_text_config(), "is_encoder_decoder", False):
        raise InvalidModel(
            f"A {family!r} whose language model is an encoder and a decoder "
            f"({config.get_text_config().model_type}) is not served; use one with a decoder alone."
        )
    return FAMILIES[family]


def switch_to_try(error: Exception, family: ModelFamily, *, encoding: bool) -> str:
    """The switch of a family's row that an error of the model's own code speaks for.

    Args:
        error: What the model raised.
        family: The row as it is.
        encoding: Whether it was given a picture; else features, in a forward that also runs
            strategies, whose errors must not be taken for the model's.

    Returns:
        ``packed=True`` and the like; "" where nothing is known.
    """
    text = str(error)
    if encoding:
        misshapen = isinstance(error, IndexError) or "values to unpack (expected" in text
        return f"nested={not family.nested}" if misshapen else ""
    if "'list' object has no attribute 'to'" in text and not family.packed:
        return "packed=True"
    if "must be tuple of Tensors, not Tensor" in text and family.packed:
        return "packed=False"
    return ""


def check_family(config: Any, needs: Collection[str], strategy: str) -> None:
    """Raise UnsupportedStrategy if a model's family lacks a need of a strategy, saying why."""
    lacks = family_of(config).lacks
    for need in sorted(needs):
        if need in lacks:
            raise UnsupportedStrategy(
                f"{strategy} needs {quoted([need])}, which family {config.model_type!r} cannot "
                f"give: {lacks[need]}. Use another model or strategy."
            )


def decoder_layers(model: Any, family: ModelFamily) -> Any:
    """The decoder layers of a loaded model."""
    layers = model
    for name in family.layers.split("."):
        layers = getattr(layers, name)
    return layers
