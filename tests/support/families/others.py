"""InstructBLIP, InternVL3, Gemma 3, Idefics3 and SmolVLM, tiny."""

from __future__ import annotations

from typing import Any

from tests.support.families.base import llama, qwen2, siglip, text_config, tokenizer

SIDE = {"height": 64, "width": 64}


def instructblip() -> tuple[Any, Any]:
    from transformers import (
        BertTokenizer,
        BlipImageProcessor,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
        InstructBlipQFormerConfig,
        InstructBlipVisionConfig,
    )

    words = tokenizer(["<image>"], eos="<eos>", bos_first=True)
    letters = [chr(code) for code in range(33, 127)]
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters)]
    tower = InstructBlipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
    )
    reader = InstructBlipQFormerConfig(
        vocab_size=len(known),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        encoder_hidden_size=64,
        cross_attention_frequency=2,
    )
    config = InstructBlipConfig(
        vision_config=tower,
        qformer_config=reader,
        text_config=llama(len(words)),
        num_query_tokens=8,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    processor = InstructBlipProcessor(
        image_processor=BlipImageProcessor(size=SIDE),
        tokenizer=words,
        qformer_tokenizer=BertTokenizer(vocab={word: i for i, word in enumerate(known)}),
        num_query_tokens=8,
    )
    return InstructBlipForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        InternVLVisionConfig,
    )

    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    words = tokenizer(
        [*named.values(), "<|im_start|>", "<|im_end|>"], named, eos="<|im_end|>", bos_first=False
    )
    tower = InternVLVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=[64, 64],
        patch_size=[8, 8],
    )
    config = InternVLConfig(
        vision_config=tower,
        text_config=qwen2(len(words)),
        image_token_id=words.context_image_token_id,
        image_seq_length=16,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(
            size=SIDE, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer=words,
        video_processor=InternVLVideoProcessor(size=SIDE),
        image_seq_length=16,
    )
    return InternVLForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    from tokenizers import AddedToken
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
        Gemma3TextConfig,
    )

    named = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    words = tokenizer(
        [*named.values(), "<start_of_turn>", "<end_of_turn>"], named, eos="<eos>", bos_first=True
    )
    # As in the real vocabulary: blank lines around a picture merge with the words' own.
    words.add_tokens([AddedToken("\n" * n, normalized=False, special=False) for n in range(1, 5)])
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    text = Gemma3TextConfig(
        **text_config(len(words)),
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=32,  # far shorter than the prompts of the tests
        layer_types=kinds,
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=siglip(),
        mm_tokens_per_image=16,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        image_token_index=words.image_token_id,
        tie_word_embeddings=False,
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size=SIDE), tokenizer=words, image_seq_length=16
    )
    return Gemma3ForConditionalGeneration(config), processor


IDEFICS = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
CELLS = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
CUT = {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 64}}


def idefics3() -> tuple[Any, Any]:
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
        Idefics3VisionConfig,
    )

    words = tokenizer([*IDEFICS, *CELLS], eos="<end_of_utterance>", bos_first=True)
    tower = Idefics3VisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
    )
    config = Idefics3Config(
        vision_config=tower,
        text_config=llama(len(words)),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessor(**CUT), tokenizer=words, image_seq_len=16
    )
    return Idefics3ForConditionalGeneration(config), processor


def smolvlm() -> tuple[Any, Any]:
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    words = tokenizer([*IDEFICS, *CELLS], eos="<end_of_utterance>", bos_first=True)
    config = SmolVLMConfig(
        vision_config={
            "model_type": "smolvlm_vision",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
        },
        text_config=llama(len(words)),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**CUT),
        tokenizer=words,
        video_processor=SmolVLMVideoProcessor(**CUT),
        image_seq_len=16,
    )
    return SmolVLMForConditionalGeneration(config), processor
