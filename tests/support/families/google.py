"""PaliGemma of both generations, Gemma 3n and Gemma 4, tiny."""

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


def gemma3n() -> tuple[Any, Any]:
    """Four streams, keys that layers share, and a tower of convolutions beside one for sounds."""
    from tokenizers import AddedToken
    from transformers import (
        Gemma3nAudioConfig,
        Gemma3nAudioFeatureExtractor,
        Gemma3nConfig,
        Gemma3nForConditionalGeneration,
        Gemma3nProcessor,
        Gemma3nTextConfig,
        Gemma3nVisionConfig,
        SiglipImageProcessor,
    )

    named = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "audio_token": "<audio_soft_token>",
        "boa_token": "<start_of_audio>",
        "eoa_token": "<end_of_audio>",
    }
    words = tokenizer(
        [*named.values(), "<start_of_turn>", "<end_of_turn>"], named, eos="<eos>", bos_first=True
    )
    words.add_tokens([AddedToken("\n" * n, normalized=False, special=False) for n in range(1, 5)])
    count = len(words)
    text = Gemma3nTextConfig(
        **text_config(count),
        head_dim=32,
        vocab_size_per_layer_input=count,
        hidden_size_per_layer_input=16,
        num_kv_shared_layers=2,
        laurel_rank=8,
        sliding_window=32,  # far shorter than the prompts of the tests
        layer_types=["sliding_attention", "full_attention"] * 3,
        activation_sparsity_pattern=[0.5, 0.5, 0.0, 0.0, 0.0, 0.0],
        final_logit_softcapping=4.0,
    )
    tower = Gemma3nVisionConfig(
        model_args={"channel_multiplier": 0.05, "stem_size": 8, "msfa_output_resolution": 4},
        vocab_size=2,
        vocab_offset=count,
    )
    sounds = Gemma3nAudioConfig(
        vocab_size=2,
        vocab_offset=count + 2,
        hidden_size=32,
        conf_num_attention_heads=2,
        conf_num_hidden_layers=1,
        sscp_conv_channel_size=(8, 4),
    )
    config = Gemma3nConfig(
        text_config=text,
        vision_config=tower,
        audio_config=sounds,
        vision_soft_tokens_per_image=16,
        boi_token_id=words.boi_token_id,
        eoi_token_id=words.eoi_token_id,
        image_token_id=words.image_token_id,
        boa_token_id=words.boa_token_id,
        eoa_token_id=words.eoa_token_id,
        audio_token_id=words.audio_token_id,
        tie_word_embeddings=False,
    )
    processor = Gemma3nProcessor(
        feature_extractor=Gemma3nAudioFeatureExtractor(),
        image_processor=SiglipImageProcessor(
            size={"height": 128, "width": 128}, do_normalize=False
        ),
        tokenizer=words,
        image_seq_length=16,
    )
    model = Gemma3nForConditionalGeneration(config)
    for layer in model.model.language_model.layers:  # as in Gemma 4's
        layer.self_attn.q_norm.weight.data.fill_(0.3)
    return model, processor


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
        default_output_length=70,  # vLLM reads it
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
