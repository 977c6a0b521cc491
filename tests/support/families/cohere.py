"""Aya Vision and Command A Vision, tiny."""

from __future__ import annotations

from typing import Any

from tests.support.families.base import siglip, text_config, tokenizer

SIDE = {"height": 64, "width": 64}

AYA = ["<image>", "<|IMG_PATCH|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>"]
TURNS = ["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"]


def aya_vision() -> tuple[Any, Any]:
    from transformers import (
        AyaVisionConfig,
        AyaVisionForConditionalGeneration,
        AyaVisionProcessor,
        Cohere2Config,
        GotOcr2ImageProcessor,
    )

    tiles = ["TILE_GLOBAL", *(f"TILE_{n}" for n in range(1, 13))]
    words = tokenizer([*AYA, *tiles, *TURNS], eos="<|END_OF_TURN_TOKEN|>", bos_first=True)
    config = AyaVisionConfig(
        vision_config=siglip(),
        text_config=Cohere2Config(
            **text_config(len(words), tie_word_embeddings=True),
            sliding_window=512,
            layer_types=["full_attention"] * 6,
        ),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        downsample_factor=2,
        image_token_index=words.convert_tokens_to_ids("<|IMG_PATCH|>"),
        tie_word_embeddings=True,
    )
    processor = AyaVisionProcessor(
        image_processor=GotOcr2ImageProcessor(
            size=SIDE, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer=words,
        patch_size=8,
        img_size=64,
        downsample_factor=2,
    )
    return AyaVisionForConditionalGeneration(config), processor


def cohere2_vision() -> tuple[Any, Any]:
    from transformers import (
        Cohere2Config,
        Cohere2VisionConfig,
        Cohere2VisionForConditionalGeneration,
        Cohere2VisionImageProcessor,
        Cohere2VisionProcessor,
    )

    named = {
        "image_token": "<|IMG_PATCH|>",
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    words = tokenizer([*named.values(), *TURNS], named, eos="<|END_OF_TURN_TOKEN|>", bos_first=True)
    config = Cohere2VisionConfig(
        vision_config=siglip(),
        text_config=Cohere2Config(
            **text_config(len(words), tie_word_embeddings=True),
            sliding_window=512,
            layer_types=["full_attention"] * 6,
        ),
        downsample_factor=2,
        image_token_id=words.image_token_id,
        alignment_intermediate_size=256,
        tie_word_embeddings=True,
    )
    processor = Cohere2VisionProcessor(
        image_processor=Cohere2VisionImageProcessor(
            size=SIDE, patch_size=4, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer=words,
    )
    return Cohere2VisionForConditionalGeneration(config), processor
