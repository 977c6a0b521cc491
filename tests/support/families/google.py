"""PaliGemma of both generations, and Gemma 4, tiny."""

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


def gemma4() -> tuple[Any, Any]:
    """What Gemma 4's sizes do each for itself, together: they share keys, or see pictures whole."""
    from transformers import (
        Gemma4Config,
        Gemma4ForConditionalGeneration,
        Gemma4ImageProcessor,
        Gemma4Processor,
        Gemma4TextConfig,
        Gemma4VideoProcessor,
        Gemma4VisionConfig,
    )
    from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor

    named = {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    }
    words = tokenizer(
        [*named.values(), "<|video|>", "<|turn>", "<turn|>"], named, eos="<eos>", bos_first=True
    )
    kinds = ["sliding_attention", "full_attention"] * 3
    text = Gemma4TextConfig(
        **text_config(len(words)),
        head_dim=32,
        global_head_dim=64,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=len(words),
        hidden_size_per_layer_input=16,
        sliding_window=32,  # far shorter than the prompts of the tests
        layer_types=kinds,
        use_bidirectional_attention="vision",
        final_logit_softcapping=4.0,
    )
    tower = Gemma4VisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        patch_size=4,
        pooling_kernel_size=3,
        position_embedding_size=256,
    )
    config = Gemma4Config(
        text_config=text,
        vision_config=tower,
        image_token_id=words.image_token_id,
        boi_token_id=words.boi_token_id,
        eoi_token_id=words.eoi_token_id,
        audio_token_id=words.audio_token_id,
        boa_token_id=words.boa_token_id,
        eoa_token_index=words.eoa_token_id,
        video_token_id=words.convert_tokens_to_ids("<|video|>"),
        tie_word_embeddings=False,
    )
    pictures = {"patch_size": 4, "max_soft_tokens": 70, "pooling_kernel_size": 3}
    processor = Gemma4Processor(
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessor(**pictures),
        tokenizer=words,
        video_processor=Gemma4VideoProcessor(**pictures),
    )
    model = Gemma4ForConditionalGeneration(config)
    for layer in model.model.language_model.layers:  # scores are as large as these norms' weights
        layer.self_attn.q_norm.weight.data.fill_(0.3)
    return model, processor
