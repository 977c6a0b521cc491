"""LFM2-VL: convolutions beside attention, tiny."""

from __future__ import annotations

from typing import Any

from tests.support.families.base import text_config, tokenizer

CELLS = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 4) for column in range(1, 4)]
MARKS = ["<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *CELLS]


def lfm2_vl() -> tuple[Any, Any]:
    from transformers import (
        Lfm2Config,
        Lfm2VlConfig,
        Lfm2VlForConditionalGeneration,
        Lfm2VlImageProcessor,
        Lfm2VlProcessor,
        Siglip2VisionConfig,
    )

    special = [*MARKS, "<|im_start|>", "<|im_end|>"]
    words = tokenizer(special, {"image_token": "<image>"}, eos="<|im_end|>", bos_first=True)
    kinds = ["conv", "conv", "full_attention", "conv", "full_attention", "conv"]
    config = Lfm2VlConfig(
        vision_config=Siglip2VisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_patches=64,
            patch_size=8,
            vision_use_head=False,
        ),
        text_config=Lfm2Config(
            **text_config(len(words)),
            layer_types=kinds,
            block_dim=128,  # vLLM reads these beside hidden_size
            conv_dim=128,
        ),
        image_token_id=words.image_token_id,
        projector_hidden_size=96,
        tie_word_embeddings=False,
    )
    processor = Lfm2VlProcessor(
        image_processor=Lfm2VlImageProcessor(
            encoder_patch_size=8,
            tile_size=64,
            min_image_tokens=4,
            max_image_tokens=16,
            max_tiles=3,
        ),
        tokenizer=words,
    )
    return Lfm2VlForConditionalGeneration(config), processor
