"""Mistral 3, DeepSeek-VL, Janus, Ovis 2, Llama 4, Kimi K2.5 and Aria, tiny."""

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


def llama4() -> tuple[Any, Any]:
    from transformers import (
        Llama4Config,
        Llama4ForConditionalGeneration,
        Llama4ImageProcessor,
        Llama4Processor,
        Llama4TextConfig,
        Llama4VisionConfig,
    )

    marks = ["<|image|>", "<|patch|>", "<|image_start|>", "<|image_end|>"]
    marks += ["<|tile_x_separator|>", "<|tile_y_separator|>"]
    special = [*marks, "<|header_start|>", "<|header_end|>", "<|eot|>"]
    words = tokenizer(special, eos="<|eot|>", bos_first=True)
    config = Llama4Config(
        vision_config=Llama4VisionConfig(
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=64,
            patch_size=8,
            projector_input_dim=128,
            projector_output_dim=128,
            vision_output_dim=128,
        ),
        text_config=Llama4TextConfig(
            **text_config(len(words)),
            head_dim=32,
            intermediate_size_mlp=256,
            num_local_experts=4,
            interleave_moe_layer_step=2,
            no_rope_layer_interval=3,
            attention_chunk_size=512,
            floor_scale=512,
        ),
        image_token_index=words.convert_tokens_to_ids("<|patch|>"),
        boi_token_index=words.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=words.convert_tokens_to_ids("<|image_end|>"),
        tie_word_embeddings=False,
    )
    processor = Llama4Processor(
        image_processor=Llama4ImageProcessor(size=SIDE, max_patches=4),
        tokenizer=words,
        patch_size=8,
    )
    return Llama4ForConditionalGeneration(config), processor


def kimi_k25() -> tuple[Any, Any]:
    from transformers import (
        DeepseekV3Config,
        Kimi_K25Config,
        Kimi_K25ForConditionalGeneration,
        Kimi_K25ImageProcessor,
        Kimi_K25Processor,
        Kimi_K25VideoProcessor,
        Kimi_K25VisionConfig,
    )

    named = {"image_token": "<|media_pad|>", "video_token": "<|kimi_k25_video_placeholder|>"}
    marks = [f"<|media_{name}|>" for name in ("begin", "content", "end")]
    marks += [f"<|im_{name}|>" for name in ("user", "middle", "end", "assistant")]
    words = tokenizer([*named.values(), *marks], named, eos="<|im_end|>", bos_first=False)
    config = Kimi_K25Config(
        vision_config=Kimi_K25VisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            patch_size=8,
            pos_emb_height=8,
            pos_emb_width=8,
        ),
        text_config=DeepseekV3Config(
            **text_config(len(words), num_key_value_heads=4),
            moe_intermediate_size=64,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=2,
            kv_lora_rank=32,
            q_lora_rank=32,
            qk_rope_head_dim=16,
            qk_nope_head_dim=16,
            v_head_dim=24,
            num_mtp_layers=0,
        ),
        projection_hidden_size=64,
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
        vision_start_token_id=words.convert_tokens_to_ids("<|media_begin|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|media_end|>"),
        tie_word_embeddings=False,
    )
    processor = Kimi_K25Processor(
        image_processor=Kimi_K25ImageProcessor(
            patch_size=8, size={"max_height": 16, "max_width": 16}
        ),
        tokenizer=words,
        video_processor=Kimi_K25VideoProcessor(patch_size=8),
    )
    return Kimi_K25ForConditionalGeneration(config), processor


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
