"""Mistral 3, DeepSeek-VL, Janus, Ovis 2 and Aria, tiny."""

from __future__ import annotations

from typing import Any

from tests.support.families.base import llama, qwen2, siglip, text_config, tokenizer

SIDE = {"height": 64, "width": 64}


def mistral3() -> tuple[Any, Any]:
    from transformers import (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        MistralConfig,
        PixtralImageProcessor,
        PixtralProcessor,
        PixtralVisionConfig,
    )

    special = ["[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"]
    words = tokenizer(special, {"image_token": "[IMG]"}, eos="<eos>", bos_first=True)
    config = Mistral3Config(
        vision_config=PixtralVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=128,
            patch_size=8,
        ),
        text_config=MistralConfig(**text_config(len(words)), head_dim=32, sliding_window=None),
        image_token_index=words.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    processor = PixtralProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 128}, patch_size=16),
        tokenizer=words,
        patch_size=8,
        spatial_merge_size=2,
    )
    return Mistral3ForConditionalGeneration(config), processor


def deepseek_vl() -> tuple[Any, Any]:
    from transformers import (
        DeepseekVLConfig,
        DeepseekVLForConditionalGeneration,
        DeepseekVLImageProcessor,
        DeepseekVLProcessor,
    )

    words = tokenizer(
        ["<image_placeholder>"], {"image_token": "<image_placeholder>"}, eos="<eos>", bos_first=True
    )
    config = DeepseekVLConfig(
        vision_config=siglip(),
        text_config=llama(len(words)),
        image_token_id=words.image_token_id,
        tie_word_embeddings=False,
    )
    processor = DeepseekVLProcessor(
        image_processor=DeepseekVLImageProcessor(size=SIDE),
        tokenizer=words,
        num_image_tokens=64,
    )
    return DeepseekVLForConditionalGeneration(config), processor


def janus() -> tuple[Any, Any]:
    from transformers import (
        JanusConfig,
        JanusForConditionalGeneration,
        JanusImageProcessor,
        JanusProcessor,
        JanusVisionConfig,
        JanusVQVAEConfig,
    )

    named = {
        "image_token": "<image_placeholder>",
        "boi_token": "<begin_of_image>",
        "eoi_token": "<end_of_image>",
    }
    words = tokenizer(list(named.values()), named, eos="<eos>", bos_first=True)
    config = JanusConfig(
        vision_config=JanusVisionConfig(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=64,
            patch_size=8,
            mlp_ratio=2.0,
            projection_dim=128,
            num_image_tokens=64,
        ),
        text_config=llama(len(words)),
        vq_config=JanusVQVAEConfig(  # paints pictures, which nothing here does
            num_embeddings=8,
            latent_channels=8,
            base_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
            num_patches=8,
            projection_dim=128,
            image_token_embed_dim=128,
        ),
        image_token_id=words.image_token_id,
        tie_word_embeddings=False,
    )
    processor = JanusProcessor(
        image_processor=JanusImageProcessor(size=SIDE), tokenizer=words, num_image_tokens=64
    )
    return JanusForConditionalGeneration(config), processor


def ovis2() -> tuple[Any, Any]:
    from transformers import (
        Ovis2Config,
        Ovis2ForConditionalGeneration,
        Ovis2ImageProcessor,
        Ovis2Processor,
    )

    marks = ["<image>", "<IMG_ATOM>"]
    marks += [f"<IMG_{edge}>" for edge in ("START", "GRID", "COL", "ROW", "END")]
    special = [*marks, "<|im_start|>", "<|im_end|>"]
    words = tokenizer(special, {"image_token": "<image>"}, eos="<|im_end|>", bos_first=False)
    config = Ovis2Config(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
            "vocab_size": 96,
            "hidden_stride": 2,
            "num_visual_indicator_tokens": 5,
        },
        text_config=qwen2(len(words)),
        image_token_id=words.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=words.convert_tokens_to_ids(marks[2:]),
        vocab_size=len(words),
        hidden_size=128,
        tie_word_embeddings=False,
    )
    processor = Ovis2Processor(
        image_processor=Ovis2ImageProcessor(size=SIDE, crop_to_patches=True, max_patches=4),
        tokenizer=words,
        image_token="<image>",
        image_seq_length=16,
    )
    return Ovis2ForConditionalGeneration(config), processor


def aria() -> tuple[Any, Any]:
    from transformers import (
        AriaConfig,
        AriaForConditionalGeneration,
        AriaImageProcessor,
        AriaProcessor,
        AriaTextConfig,
        Idefics3VisionConfig,
    )

    words = tokenizer(["<image>"], {"image_token": "<image>"}, eos="<eos>", bos_first=True)
    experts = {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}
    config = AriaConfig(
        vision_config=Idefics3VisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=980,  # the processor has this size and 490
            patch_size=140,
        ),
        text_config=AriaTextConfig(**text_config(len(words)), **experts),
        projector_patch_to_query_dict={49: 16},
        image_token_index=words.image_token_id,
        tie_word_embeddings=False,
    )
    processor = AriaProcessor(
        image_processor=AriaImageProcessor(),
        tokenizer=words,
        size_conversion={980: 16},
    )
    return AriaForConditionalGeneration(config), processor
