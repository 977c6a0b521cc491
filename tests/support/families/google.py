"""PaliGemma, of both generations, tiny."""

from __future__ import annotations

from typing import Any

from tests.support.families.base import siglip, text_config, tokenizer

SIDE = {"height": 64, "width": 64}


def _paligemma(text: Any, **more: Any) -> tuple[Any, Any]:
    """A model whose text config is of this class, and the processor."""
    from transformers import (
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessor,
    )

    words = tokenizer(["<image>"], {"image_token": "<image>"}, eos="<eos>", bos_first=False)
    processor = PaliGemmaProcessor(  # adds the words of places and segments
        image_processor=SiglipImageProcessor(size=SIDE, image_seq_length=64), tokenizer=words
    )
    config = PaliGemmaConfig(
        vision_config=siglip(),
        text_config=text(**text_config(len(words)), head_dim=32, **more),
        image_token_index=words.image_token_id,
        projection_dim=128,
        hidden_size=128,
        tie_word_embeddings=False,
    )
    return PaliGemmaForConditionalGeneration(config), processor


def paligemma() -> tuple[Any, Any]:
    from transformers import GemmaConfig

    return _paligemma(GemmaConfig)


def paligemma2() -> tuple[Any, Any]:
    from transformers import Gemma2Config

    kinds = ["sliding_attention", "full_attention"] * 3
    return _paligemma(
        Gemma2Config,
        query_pre_attn_scalar=32,
        sliding_window=32,  # far shorter than the prompts of the tests
        layer_types=kinds,
    )
