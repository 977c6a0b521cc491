"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and its mixture of experts, and GLM-4V and GLM-4.6V, tiny."""

from __future__ import annotations

from typing import Any

from tests.support.families.base import text_config, tokenizer

MARKS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TOWER = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
PIXELS = {"shortest_edge": 84 * 84, "longest_edge": 140 * 140}

HYBRID = {
    "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}


def _words() -> tuple[Any, dict[str, Any]]:
    """The tokenizer, and what every config says of its tokens."""
    words = tokenizer([*MARKS, "<|im_start|>", "<|im_end|>"], eos="<|im_end|>", bos_first=False)
    start, end, image, video = words.convert_tokens_to_ids(MARKS)
    return words, {
        "vision_start_token_id": start,
        "vision_end_token_id": end,
        "image_token_id": image,
        "video_token_id": video,
        "tie_word_embeddings": False,
    }


def _rope(*sections: int, **more: Any) -> dict[str, Any]:
    """Rotary positions in three channels; the sections add up to half a head."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}
    return {"rope_parameters": rope | more}


def qwen2_vl() -> tuple[Any, Any]:
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    words, ids = _words()
    config = Qwen2VLConfig(
        text_config=text_config(len(words), **_rope(4, 6, 6)),
        vision_config={**TOWER, "embed_dim": 64, "hidden_size": 128},  # hidden: the text's width
        **ids,
    )
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=PIXELS),
        tokenizer=words,
        video_processor=Qwen2VLVideoProcessor(size=PIXELS),
    )
    return Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    words, ids = _words()
    tower = {"hidden_size": 64, "out_hidden_size": 128, "intermediate_size": 128}
    config = Qwen2_5_VLConfig(
        text_config=text_config(len(words), **_rope(4, 6, 6)),
        vision_config={**TOWER, **tower, "window_size": 56, "fullatt_block_indexes": [1]},
        **ids,
    )
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=PIXELS),
        tokenizer=words,
        video_processor=Qwen2VLVideoProcessor(size=PIXELS),
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3(
    config: Any,
    model: Any,
    sections: tuple[int, ...] = (6, 5, 5),
    deepstack: tuple[int, ...] = (0, 1),
    **experts: Any,
) -> tuple[Any, Any]:
    """A model of these classes, and the processor."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    words, ids = _words()
    rope = _rope(*sections, mrope_interleaved=True)
    tower = {"hidden_size": 64, "out_hidden_size": 128, "intermediate_size": 128}
    made = config(
        text_config=text_config(len(words), head_dim=32, **experts, **rope),
        vision_config={
            **TOWER,
            **tower,
            "depth": 3,
            "patch_size": 16,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": list(deepstack),
        },
        **ids,
    )
    pixels = {"shortest_edge": 64 * 64, "longest_edge": 128 * 128}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels, patch_size=16),
        tokenizer=words,
        video_processor=Qwen3VLVideoProcessor(size=pixels, patch_size=16),
    )
    return model(made), processor


def qwen3_vl() -> tuple[Any, Any]:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    return _qwen3(Qwen3VLConfig, Qwen3VLForConditionalGeneration)


def qwen3_vl_moe() -> tuple[Any, Any]:
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    return _qwen3(
        Qwen3VLMoeConfig,
        Qwen3VLMoeForConditionalGeneration,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=96,  # not square, so that each way round is told
        norm_topk_prob=True,  # vLLM reads it, transformers always does so
    )


def _qwen3_5(config: Any, model: Any, **more: Any) -> tuple[Any, Any]:
    """Gated delta rules beside attention; the processor is that of Qwen3-VL."""
    sections = (2, 1, 1)  # of the quarter of a head that is turned
    return _qwen3(config, model, sections, (), **HYBRID, **more)


def qwen3_5() -> tuple[Any, Any]:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    return _qwen3_5(Qwen3_5Config, Qwen3_5ForConditionalGeneration)


def qwen3_5_moe() -> tuple[Any, Any]:
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    return _qwen3_5(
        Qwen3_5MoeConfig,
        Qwen3_5MoeForConditionalGeneration,
        num_experts=4,
        num_experts_per_tok=3,
        moe_intermediate_size=96,
        shared_expert_intermediate_size=96,
    )


def minicpmv4_6() -> tuple[Any, Any]:
    """A tower of its own before Qwen3.5's decoder."""
    from transformers import (
        MiniCPMV4_6Config,
        MiniCPMV4_6ForConditionalGeneration,
        MiniCPMV4_6ImageProcessor,
        MiniCPMV4_6Processor,
        MiniCPMV4_6VideoProcessor,
        MiniCPMV4_6VisionConfig,
        Qwen3_5TextConfig,
    )

    named = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    words = tokenizer(
        [*named.values(), "<|im_start|>", "<|im_end|>"], named, eos="<|im_end|>", bos_first=False
    )
    text = text_config(len(words), head_dim=32, **HYBRID)
    config = MiniCPMV4_6Config(
        text_config=Qwen3_5TextConfig(**text),
        vision_config=MiniCPMV4_6VisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=64,
            patch_size=8,
        ),
        insert_layer_id=1,
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
        tie_word_embeddings=False,
    )
    cut = {"scale_resolution": 64, "patch_size": 8, "max_slice_nums": 4}
    processor = MiniCPMV4_6Processor(
        image_processor=MiniCPMV4_6ImageProcessor(**cut),
        video_processor=MiniCPMV4_6VideoProcessor(**cut),
        tokenizer=words,
    )
    return MiniCPMV4_6ForConditionalGeneration(config), processor


GLM = [
    "<|image|>",
    "<|video|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
]
GLM_PIXELS = {"shortest_edge": 2 * 84 * 84, "longest_edge": 2 * 140 * 140}


def _glm(config: Any) -> tuple[Any, Any]:
    """A config of this class, and the tokenizer."""
    words = tokenizer([*GLM, "<|user|>", "<|assistant|>"], eos="<|user|>", bos_first=False)
    image, video, *edges = words.convert_tokens_to_ids(GLM)
    return words, config(
        text_config=text_config(
            len(words),
            attention_bias=True,  # vLLM reads it; transformers' class always has them
            **_rope(2, 3, 3, partial_rotary_factor=0.5),
        ),
        vision_config={
            **TOWER,
            "hidden_size": 64,
            "out_hidden_size": 128,
            "intermediate_size": 128,
            "image_size": 140,
        },
        image_token_id=image,
        video_token_id=video,
        image_start_token_id=edges[0],
        image_end_token_id=edges[1],
        video_start_token_id=edges[2],
        video_end_token_id=edges[3],
        tie_word_embeddings=False,
    )


def glm4v() -> tuple[Any, Any]:
    from transformers import (
        Glm4vConfig,
        Glm4vForConditionalGeneration,
        Glm4vImageProcessor,
        Glm4vProcessor,
        Glm4vVideoProcessor,
    )

    words, config = _glm(Glm4vConfig)
    processor = Glm4vProcessor(
        image_processor=Glm4vImageProcessor(size=GLM_PIXELS),
        tokenizer=words,
        video_processor=Glm4vVideoProcessor(size=GLM_PIXELS),
    )
    return Glm4vForConditionalGeneration(config), processor


def glm46v() -> tuple[Any, Any]:
    from transformers import (
        Glm46VConfig,
        Glm46VForConditionalGeneration,
        Glm46VImageProcessor,
        Glm46VProcessor,
        Glm46VVideoProcessor,
    )

    words, config = _glm(Glm46VConfig)
    processor = Glm46VProcessor(
        image_processor=Glm46VImageProcessor(size=GLM_PIXELS),
        tokenizer=words,
        video_processor=Glm46VVideoProcessor(size=GLM_PIXELS),
    )
    return Glm46VForConditionalGeneration(config), processor
