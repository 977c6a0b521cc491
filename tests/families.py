"""Tiny random checkpoints of real model families, made here instead of downloaded.

Each has the family's own HF classes, processor and chat template, six decoder layers, four query
heads on two key/value heads, and a byte-level vocabulary. The weights are random but sharp, so what
is written depends on the picture. A further family is one function and one row of `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from halludecode import _repair

_repair.install()  # torchvision beside a CPU build of torch

LAYERS = 6
BASIC = ("<pad>", "<eos>", "<bos>", "<unk>")
PAD, EOS, BOS = 0, 1, 2
SEED = 7


@dataclass(frozen=True)
class Family:
    """One row of the table: how to build a family and how its prompts look.

    `placeholder` is one image in a prompt and `newline` what the template writes after it; `user`,
    `turn`, `reply` and `end` open and close the user's and the model's turns; `stop` are end tokens
    beside <eos>.
    """

    parts: Callable[[], tuple[Any, Any]]
    placeholder: str
    user: str
    turn: str
    reply: str
    end: str
    newline: str = "\n"
    stop: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = field(default=())

    def prompt(self, text: str, images: int = 1) -> str:
        """The prompt the chat template renders for one user turn with pictures first."""
        return f"{self.user}{self.image * images}{text}{self.turn}{self.reply}"

    def blind(self, prompt: str) -> str:
        """A rendered prompt without its images (each placeholder and the newline after it)."""
        return prompt.replace(self.image, "")

    @property
    def image(self) -> str:
        return self.placeholder + self.newline

    @property
    def template(self) -> str:
        """Chat template: pictures first, any number, several turns, words as string or parts."""
        words = (
            "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
            "{% for c in m['content'] if c['type'] == 'image' %}{{ IMAGE }}{% endfor %}"
            "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
            "{% endif %}"
        )
        body = (
            "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ REPLY + GAP }}"
            + words
            + "{{ END }}{% else %}{% if m['role'] == 'user' %}{{ USER }}{% endif %}"
            + words
            + "{{ TURN }}{% endif %}{% endfor %}"
            + "{% if add_generation_prompt %}{{ REPLY }}{% endif %}"
        )
        names = {
            "IMAGE": self.image,
            "USER": self.user,
            "TURN": self.turn,
            "REPLY": self.reply,
            "GAP": " " if self.reply.endswith(":") else "",
            "END": self.end,
        }
        return "".join(f"{{% set {k} = {v!r} %}}" for k, v in names.items()) + body


def tokenizer(
    special: Sequence[str], named: dict[str, str] | None = None, *, eos: str, bos_first: bool
) -> Any:
    """A byte-level tokenizer: the basic four, the family's special tokens, then the 256 bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*BASIC, *special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(
        models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[], unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if bos_first:
        core.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token=eos,
        pad_token="<pad>",
        extra_special_tokens=named or {},
    )
    rest = [s for s in special if s not in (named or {}).values()]
    made.add_special_tokens({"extra_special_tokens": rest}, replace_extra_special_tokens=False)
    return made


def text_config(vocabulary: int, **more: Any) -> dict[str, Any]:
    """Numbers of the language model, common to all families."""
    return {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocabulary,
        "max_position_embeddings": 1024,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "tie_word_embeddings": False,
        **more,
    }


def llava() -> tuple[Any, Any]:
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    words = tokenizer(["<image>"], {"image_token": "<image>"}, eos="<eos>", bos_first=True)
    tower = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        projection_dim=64,
    )
    config = LlavaConfig(
        vision_config=tower,
        text_config=LlamaConfig(**text_config(len(words))),
        image_token_index=words.image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=64,
        tie_word_embeddings=False,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}
        ),
        tokenizer=words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return LlavaForConditionalGeneration(config), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    words = tokenizer([*marks, "<|im_start|>", "<|im_end|>"], eos="<|im_end|>", bos_first=False)
    start, end, image, video = words.convert_tokens_to_ids(marks)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    config = Qwen2_5_VLConfig(
        text_config=text_config(len(words), rope_parameters=rope),
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "out_hidden_size": 128,
            "intermediate_size": 128,
            "num_heads": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
        tie_word_embeddings=False,
    )
    pixels = {"shortest_edge": 84 * 84, "longest_edge": 140 * 140}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels),
        tokenizer=words,
        video_processor=Qwen2VLVideoProcessor(size=pixels),
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        InternVLVisionConfig,
        Qwen2Config,
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
        text_config=Qwen2Config(**text_config(len(words))),
        image_token_id=words.context_image_token_id,
        image_seq_length=16,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    size = {"height": 64, "width": 64}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(
            size=size, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer=words,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=16,
    )
    return InternVLForConditionalGeneration(config), processor


FAMILIES: dict[str, Family] = {
    "llava": Family(
        llava,
        placeholder="<image>",
        user="USER: ",
        turn=" ",
        reply="ASSISTANT:",
        end="<eos>",
        # vLLM looks the tower up under the name released checkpoints use
        rename=(("vision_tower.", "vision_tower.vision_model."),),
    ),
    "qwen2_5_vl": Family(
        qwen2_5_vl,
        placeholder="<|vision_start|><|image_pad|><|vision_end|>",
        newline="",
        user="<|im_start|>user\n",
        turn="<|im_end|>\n",
        reply="<|im_start|>assistant\n",
        end="<|im_end|>\n",
        stop=("<|im_end|>",),
    ),
    "internvl": Family(
        internvl,
        placeholder="<IMG_CONTEXT>",
        user="<|im_start|>user\n",
        turn="<|im_end|>\n",
        reply="<|im_start|>assistant\n",
        end="<|im_end|>\n",
        stop=("<|im_end|>",),
    ),
}


def sharpen(model: nn.Module) -> None:
    """Draw weights that make the output depend on picture and history; norms keep their ones."""
    rng = torch.Generator().manual_seed(SEED)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() >= 2:
                loose = id(p) in tables or "position" in name or "cls_token" in name
                std = 0.5 if loose else 1.2 / p[0].numel() ** 0.5
                p.copy_(torch.randn(p.shape, generator=rng) * std)
            elif name.endswith("bias") and "norm" not in name.lower():
                p.copy_(torch.randn(p.shape, generator=rng) * 0.02)


def build(family: str, directory: Path) -> Path:
    """Write a tiny checkpoint of `family` into `directory`, loadable with the Auto classes."""
    from transformers import GenerationConfig

    row = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model, processor = row.parts()
    model = model.float().eval()
    sharpen(model)
    stops = [EOS, *processor.tokenizer.convert_tokens_to_ids(list(row.stop))]
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=stops, pad_token_id=PAD
    )
    processor.chat_template = row.template
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    if row.rename:
        _rename(directory / "model.safetensors", row.rename)
    return directory


def _rename(path: Path, prefixes: Sequence[tuple[str, str]]) -> None:
    weights = load_file(path)
    for old, new in prefixes:
        weights = {
            k.replace(old, new, 1) if old in k and new not in k else k: v
            for k, v in weights.items()
        }
    save_file(weights, path, metadata={"format": "pt"})


def family_path(family: str, tmp_path_factory: Any) -> Path:
    """The session's checkpoint of `family`, built on first use."""
    path: Path = tmp_path_factory.getbasetemp() / "families" / family
    if not (path / "done").exists():
        build(family, path)
        (path / "done").touch()
    return path


def load(path: Path, **more: Any) -> tuple[Any, Any]:
    """Model (float32, eval) and processor of a checkpoint."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, **more)
    return model.eval(), AutoProcessor.from_pretrained(path)


def pictures() -> list[Image.Image]:
    """Three block pictures of different sizes, the same in every run."""
    draw = np.random.RandomState(0)
    made = []
    for width, height in ((64, 64), (100, 60), (90, 140)):
        blocks = draw.randint(0, 256, (-(-height // 10), -(-width // 10), 3), dtype=np.uint8)
        made.append(Image.fromarray(blocks.repeat(10, 0).repeat(10, 1)[:height, :width]))
    return made
