"""LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision, VipLLaVA and FastVLM, tiny."""

from __future__ import annotations

from typing import Any

from tests.support.families.base import clip, llama, qwen2, siglip, tokenizer

SIDE = {"height": 64, "width": 64}
GRIDS = [[64, 128], [128, 64], [128, 128]]  # what a picture may be cut into


def llava() -> tuple[Any, Any]:
    from transformers import (
        CLIPImageProcessor,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    words = tokenizer(["<image>"], {"image_token": "<image>"}, eos="<eos>", bos_first=True)
    config = LlavaConfig(
        vision_config=clip(),
        text_config=llama(len(words)),
        image_token_index=words.image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=64,
        tie_word_embeddings=False,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=SIDE),
        tokenizer=words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    words = tokenizer(["<image>"], {"image_token": "<image>"}, eos="<eos>", bos_first=True)
    config = LlavaNextConfig(
        vision_config=clip(),
        text_config=llama(len(words)),
        image_token_index=words.image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=GRIDS,
        image_seq_length=64,
        tie_word_embeddings=False,
    )
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": 64}, crop_size=SIDE, image_grid_pinpoints=GRIDS
        ),
        tokenizer=words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    named = {"image_token": "<image>", "video_token": "<video>"}
    words = tokenizer(
        [*named.values(), "<|im_start|>", "<|im_end|>"], named, eos="<|im_end|>", bos_first=False
    )
    grids, ratio = [[64, 64], *GRIDS], "anyres_max_2"  # 2: large pictures are scaled down
    config = LlavaOnevisionConfig(
        vision_config=siglip(),
        text_config=qwen2(len(words)),
        image_token_index=words.image_token_id,
        video_token_index=words.video_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=grids,
        vision_aspect_ratio=ratio,
        tie_word_embeddings=False,
    )
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=SIDE, image_grid_pinpoints=grids),
        tokenizer=words,
        video_processor=LlavaOnevisionVideoProcessor(size=SIDE),
        num_image_tokens=64,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=ratio,
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def vipllava() -> tuple[Any, Any]:
    from transformers import (
        CLIPImageProcessor,
        LlavaProcessor,
        VipLlavaConfig,
        VipLlavaForConditionalGeneration,
    )

    words = tokenizer(["<image>"], {"image_token": "<image>"}, eos="<eos>", bos_first=True)
    config = VipLlavaConfig(
        vision_config=clip(),
        text_config=llama(len(words)),
        image_token_index=words.image_token_id,
        vision_feature_layers=[-2, -1],
        image_seq_length=64,
        tie_word_embeddings=False,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=SIDE),
        tokenizer=words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return VipLlavaForConditionalGeneration(config), processor


def fast_vlm() -> tuple[Any, Any]:
    from transformers import (
        CLIPImageProcessor,
        FastVlmConfig,
        FastVlmForConditionalGeneration,
        LlavaProcessor,
        TimmWrapperConfig,
    )

    special = ["<image>", "<|im_start|>", "<|im_end|>"]
    words = tokenizer(special, {"image_token": "<image>"}, eos="<|im_end|>", bos_first=False)
    config = FastVlmConfig(
        vision_config=TimmWrapperConfig(
            architecture="fastvit_mci3",
            hidden_size=64,
            model_args={
                "inference_mode": True,
                "layers": [1, 1, 1, 1, 1],
                "embed_dims": [8, 8, 16, 32, 32],
            },
        ),
        text_config=qwen2(len(words)),
        image_token_index=words.image_token_id,
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    side = {"height": 256, "width": 256}  # its stages leave one patch of 64 x 64 pixels
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 256}, crop_size=side),
        tokenizer=words,
        patch_size=64,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
    )
    return FastVlmForConditionalGeneration(config), processor
