"""One table: model family -> where its parts are. Adding a family is adding a row.

Only transformers' own classes are listed; everything else about a model is read from its config.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from halludecode.core.errors import InvalidModel, UnsupportedStrategy
from halludecode.core.needs import quoted
from halludecode.models.family import ModelFamily
from halludecode.models.image_layout import (
    first_span,
    first_view,
    grid_patches,
    grid_span,
    grid_view,
    last_span,
    last_view,
    merged_patches,
    naflex_patches,
    naflex_span,
    naflex_view,
    packed_patches,
    pixtral_patches,
    pixtral_span,
    placed_patches,
    placed_span,
    placed_view,
    qwen_span,
    qwen_view,
    same_patches,
    square_patches,
    strip_span,
    strip_view,
    views_span,
    whole_span,
    windowed_patches,
)

_TILES = {"square": "its pictures are cut into views, which form no one square"}
_MROPE = {
    "square": "its pictures keep their shape, which is mostly no square",
    "reposition": "its positions have three dimensions, for which the scheme is not defined",
}
_RECURRENT = {
    "search": "its recurrent layers keep no tokens, so beams cannot part from what they share",
    "masked rows": "its recurrent layers would read on past tokens that are hidden from attention",
}
_UNSHARED = "its recurrent layers would read the padding between a shared picture and a question"
_CHATML = "<|im_start|>user\n{images}{text}<|im_end|>\n<|im_start|>assistant\n"
_LLAVA = ModelFamily(
    placeholder="<image>",
    layers="model.language_model.layers",
    turn="USER: {images}\n{text} ASSISTANT:",
    span=whole_span,
    view=last_view,
    patches=same_patches,
)
_LLAVA_NEXT = replace(
    _LLAVA, span=first_span, view=first_view, patches=packed_patches, lacks=_TILES
)
_NO_TOWER = {
    "vision": "its tower is mostly of convolutions, without attention between patches",
    "tower": "its tower is of convolutions in stages, not of layers alike",
}
_QWEN = ModelFamily(
    placeholder="<|vision_start|><|image_pad|><|vision_end|>",
    layers="model.language_model.layers",
    turn=_CHATML,
    span=qwen_span,
    view=qwen_view,
    patches=merged_patches,
    mrope=True,
    lacks=_MROPE,
)
_QWEN3 = replace(
    _QWEN,
    lacks={
        **_MROPE,
        "features": "its picture also enters the first layers (deepstack), past the features "
        "that an edit reaches",
    },
)
_GLM = replace(
    _QWEN,
    placeholder="<|begin_of_image|><|image|><|end_of_image|>",
    turn="<|user|>\n{images}{text}<|assistant|>\n",
)
_DEEPSEEK = replace(
    _LLAVA,
    placeholder="<image_placeholder>",
    turn="User: {images}{text}\n\nAssistant:",
    packed=True,
)
_AYA = ModelFamily(
    placeholder="<image>",
    layers="model.language_model.layers",
    turn="<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{images}{text}<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    span=last_span,
    view=last_view,
    patches=square_patches,
    frame="<|IMG_PATCH|>",
    packed=True,
    lacks={
        **_TILES,
        "reposition": "its rotation is of neighbouring dimensions, and some layers have none",
    },
)
_IDEFICS = ModelFamily(
    placeholder="<image>",
    layers="model.text_model.layers",
    turn="<|im_start|>User:{images}{text}<end_of_utterance>\nAssistant:",
    span=last_span,
    view=last_view,
    patches=square_patches,
    nested=True,
    packed=True,
    lacks=_TILES,
)

_QWEN3_5 = replace(
    _QWEN,
    unshared=_UNSHARED,
    lacks={
        **_MROPE,
        **_RECURRENT,
        "branch_off": "its heads' outputs are gated before they are projected",
    },
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
        span=whole_span,
        view=last_view,
        leading=True,
        encoder_words=("qformer_input_ids", "qformer_attention_mask"),
        unused=("pixel_values", "qformer_input_ids"),
        packed=True,
        unshared="its Q-Former reads the question, so a picture's features belong to one question",
        lacks={
            "more pictures": "it reads one picture",
            "square": "its image tokens are queries of a Q-Former and form no raster",
            "raster": "its image tokens are queries of a Q-Former and form no raster",
            "vision": "its image tokens are queries of a Q-Former and stand for no patches",
            "generate": "its own generate() does not call the model's forward, so nothing would "
            "happen",
        },
    ),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": replace(_QWEN, patches=windowed_patches),
    "qwen3_vl": _QWEN3,
    "internvl": ModelFamily(
        placeholder="<IMG_CONTEXT>",
        layers="model.language_model.layers",
        turn=_CHATML.replace("{images}", "{images}\n"),
        span=last_span,
        view=last_view,
        patches=square_patches,
        packed=True,
        lacks=_TILES,
    ),
    "gemma3": ModelFamily(
        placeholder="<start_of_image>",
        layers="model.language_model.layers",
        turn="<start_of_turn>user\n{images}{text}<end_of_turn>\n<start_of_turn>model\n",
        span=whole_span,
        view=last_view,
        patches=square_patches,
        frame="\n\n<start_of_image><image_soft_token><end_of_image>\n\n",
        packed=True,
        mutual="picture",
        unshared="its sliding windows count the padding between a shared picture and a question",
        lacks={
            "reposition": "its layers turn positions by two rotations",
            "generate": "the cache of its own generate() forgets tokens that edits still count",
        },
    ),
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    "vipllava": replace(_LLAVA, packed=True),
    "fast_vlm": replace(
        _LLAVA,
        turn=_CHATML.replace("{images}", "{images}\n"),
        patches=None,
        packed=True,
        lacks=_NO_TOWER,
    ),
    "mistral3": ModelFamily(
        placeholder="[IMG]",
        layers="model.language_model.layers",
        turn="[INST]{images}{text}[/INST]",
        span=pixtral_span,
        view=first_view,
        patches=pixtral_patches,
        lacks={"square": "its pictures keep their shape, which is mostly no square"},
        least=2,  # its features of one token lose the axis of tokens
    ),
    "aya_vision": _AYA,
    "cohere2_vision": replace(_AYA, placeholder="<|IMG_PATCH|>", frame=""),
    "glm4v": _GLM,
    "glm46v": _GLM,
    "qwen3_vl_moe": _QWEN3,
    "deepseek_vl": _DEEPSEEK,
    "janus": replace(_DEEPSEEK, turn="<|User|>: {images}\n{text}\n\n<|Assistant|>:"),
    "ovis2": ModelFamily(
        placeholder="<image>",
        layers="model.language_model.layers",
        turn=_CHATML.replace("{images}", "{images}\n"),
        span=views_span,
        view=first_view,
        patches=square_patches,
        frame="<IMG_ATOM>",
        packed=True,
        unshared="the marks after a picture are embedded with the picture, so both must be read at "
        "once",
        lacks=_TILES,
    ),
    "llama4": ModelFamily(
        placeholder="<|image|>",
        layers="language_model.model.layers",
        turn="<|header_start|>user<|header_end|>\n\n{images}{text}<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\n",
        span=last_span,
        view=last_view,
        patches=square_patches,
        frame="<|image_start|><|patch|><|image_end|>",
        projector="multi_modal_projector",
        unshared="its chunks of attention count the padding between a shared picture and a "
        "question",
        lacks={
            **_TILES,
            "reposition": "its rotation is of neighbouring dimensions, and some layers have none",
            "generate": "the cache of its own generate() forgets tokens that edits still count",
            "search": "its layers of chunks drop keys that a search over beams reads again",
        },
    ),
    "kimi_k25": ModelFamily(
        placeholder="<|media_begin|>image<|media_content|><|media_pad|><|media_end|>",
        layers="model.language_model.layers",
        turn="<|im_user|>user<|im_middle|>{images}{text}<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|>",
        span=grid_span,
        view=grid_view,
        patches=grid_patches,
        lacks={
            "square": "its pictures keep their shape, which is mostly no square",
            "reposition": "a part of each of its heads has no positions",
        },
    ),
    "aria": replace(
        _LLAVA,
        turn="<|im_start|>user\n{images}{text}<|im_end|>\n<|im_start|>assistant\n",
        patches=None,
        packed=True,
        lacks={
            "square": "its image tokens are queries of its projector and form no raster",
            "raster": "its image tokens are queries of its projector and form no raster",
            "vision": "its image tokens are queries of its projector and stand for no patches",
        },
    ),
    "paligemma": replace(
        _LLAVA,
        turn="{images}{text}",
        packed=True,
        mutual="prompt",
        closing="\n",
        origin=1,
        unshared="every token of its prompt sees every other, so what a picture's tokens hold "
        "belongs to one question",
        lacks={"open": "every token of its prompt sees every other already"},
    ),
    "lfm2_vl": ModelFamily(
        placeholder="<image>",
        layers="model.language_model.layers",
        turn=f"<|startoftext|>{_CHATML}",
        span=naflex_span,
        view=naflex_view,
        patches=naflex_patches,
        special=False,
        unshared=_UNSHARED,
        lacks={**_TILES, **_RECURRENT},
    ),
    "qwen3_5": _QWEN3_5,
    "qwen3_5_moe": _QWEN3_5,
    "minicpmv4_6": replace(
        _QWEN3_5,
        placeholder="<|image_pad|>",
        span=strip_span,
        view=strip_view,
        patches=None,
        number="<image_id>{}</image_id>",
        strip=True,
        mrope=False,
        lacks={
            **_QWEN3_5.lacks,
            **_TILES,
            **dict.fromkeys(("vision", "tower"), "its tower makes one patch of four on its way"),
            "reposition": "a part of each of its heads has no positions",
        },
    ),
    "gemma3n": ModelFamily(
        placeholder="<image_soft_token>",
        layers="model.language_model.layers",
        turn="<start_of_turn>user\n{images}{text}<end_of_turn>\n<start_of_turn>model\n",
        span=whole_span,
        view=last_view,
        frame="\n\n<start_of_image><image_soft_token><end_of_image>\n\n",
        packed=True,
        capped=True,
        unshared="its sliding windows count the padding between a shared picture and a question",
        lacks={
            **_NO_TOWER,
            **dict.fromkeys(
                ("steer", "early", "logits", "decode", "branch_off"),
                "its layers hold four streams, of which logits are made together",
            ),
            "reposition": "its layers turn positions by two rotations",
            "generate": "the cache of its own generate() forgets tokens that edits still count",
        },
    ),
    "gemma4": ModelFamily(
        placeholder="<|image|>",
        layers="model.language_model.layers",
        turn="<|turn>user\n{images}{text}<turn|>\n<|turn>model\n",
        span=placed_span,
        view=placed_view,
        patches=placed_patches,
        mutual="near",
        capped=True,
        unshared="its sliding windows count the padding between a shared picture and a question",
        lacks={
            "square": "its pictures keep their shape, which is mostly no square",
            "reposition": "its layers turn positions by two rotations",
            "branch_off": "its layers end in an input of their own, which a branch would miss",
            "generate": "the cache of its own generate() forgets tokens that edits still count",
        },
    ),
}


def check_known(family: str) -> None:
    """Raise InvalidModel for a model type without a row; the sentence names those that have one."""
    if family not in FAMILIES:
        raise InvalidModel(
            f"Model family {family!r} has no layout; known: {', '.join(FAMILIES)}. "
            "Adding one is a row of halludecode/models/families.py."
        )


def family_of(config: Any) -> ModelFamily:
    """The row for a model's config.

    Raises:
        InvalidModel: An unknown family, or a language model with an encoder.
    """
    family = getattr(config, "model_type", "?")
    check_known(family)
    if getattr(config.get_text_config(), "is_encoder_decoder", False):
        raise InvalidModel(
            f"A {family!r} whose language model is an encoder and a decoder "
            f"({config.get_text_config().model_type}) is not served; use one with a decoder alone."
        )
    return FAMILIES[family]


def check_family(config: Any, needs: Collection[str], strategy: str) -> None:
    """Raise UnsupportedStrategy if a model's family lacks a need of a strategy, saying why."""
    lacks = family_of(config).lacks
    for need in sorted(needs):
        if need in lacks:
            raise UnsupportedStrategy(
                f"{strategy} needs {quoted([need])}, which family {config.model_type!r} cannot "
                f"give: {lacks[need]}. Use another model or strategy."
            )
