"""Tiny random checkpoints of real model families, made here instead of downloaded.

Each has the family's own HF classes, processor and chat template, six decoder layers, four query
heads on two key/value heads, and a byte-level vocabulary. The weights are random but sharp, so what
is written depends on the picture. A further family is one function and one row of `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from halludecode.models import import_repair as _repair
from tests.support.families import cohere, google, hybrid, llava, others, qwen, single
from tests.support.families.base import BOS, EOS, LAYERS, PAD, Family

__all__ = ["FAMILIES", "LAYERS", "Family"]
_repair.install()  # torchvision beside a CPU build of torch

SEED = 7
Parts = Callable[[], tuple[Any, Any]]
TOWER = (("vision_tower.", "vision_tower.vision_model."),)

_LLAVA = Family(
    llava.llava,
    placeholder="<image>",
    user="USER: ",
    turn=" ",
    reply="ASSISTANT:",
    end="<eos>",
    rename=TOWER,
)
_QWEN = Family(
    qwen.qwen2_vl,
    placeholder="<|vision_start|><|image_pad|><|vision_end|>",
    newline="",
    user="<|im_start|>user\n",
    turn="<|im_end|>\n",
    reply="<|im_start|>assistant\n",
    end="<|im_end|>\n",
    stop=("<|im_end|>",),
)
_IDEFICS = Family(
    others.idefics3,
    placeholder="<image>",
    newline="",
    user="User:",
    turn="<end_of_utterance>\n",
    reply="Assistant:",
    end="<end_of_utterance>\n",
    stop=("<end_of_utterance>",),
)

_COHERE = Family(
    cohere.cohere2_vision,
    placeholder="<|IMG_PATCH|>",
    newline="",
    user="<|START_OF_TURN_TOKEN|><|USER_TOKEN|>",
    turn="<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|>",
    reply="<|CHATBOT_TOKEN|>",
    end="<|END_OF_TURN_TOKEN|>",
    spread=0.1,
    rename=TOWER,
)
_GLM = Family(
    qwen.glm4v,
    placeholder="<|begin_of_image|><|image|><|end_of_image|>",
    newline="",
    user="<|user|>\n",
    turn="",
    reply="<|assistant|>\n",
    end="\n",
)
_DEEPSEEK = Family(
    single.deepseek_vl,
    placeholder="<image_placeholder>",
    newline="",
    user="User: ",
    turn="\n\n",
    reply="Assistant:",
    end="<eos>",
)

FAMILIES: dict[str, Family] = {
    "llava": _LLAVA,
    "llava_next": replace(_LLAVA, parts=llava.llava_next),
    "llava_onevision": replace(
        _QWEN, parts=llava.llava_onevision, placeholder="<image>", newline="\n", rename=TOWER
    ),
    "instructblip": Family(
        others.instructblip,
        placeholder="",
        newline="",
        user="",
        turn="",
        reply="",
        end="",
        chat=False,
        several=False,
    ),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": replace(_QWEN, parts=qwen.qwen2_5_vl),
    "qwen3_vl": replace(_QWEN, parts=qwen.qwen3_vl, spread=1.0),
    "internvl": replace(_QWEN, parts=others.internvl, placeholder="<IMG_CONTEXT>", newline="\n"),
    "gemma3": Family(
        others.gemma3,
        placeholder="<start_of_image>",
        newline="",
        user="<start_of_turn>user\n",
        turn="<end_of_turn>\n",
        reply="<start_of_turn>model\n",
        end="<end_of_turn>\n",
        stop=("<end_of_turn>",),
        spread=0.05,
        rename=TOWER,
    ),
    "idefics3": _IDEFICS,
    "smolvlm": replace(_IDEFICS, parts=others.smolvlm),
    "vipllava": replace(_LLAVA, parts=llava.vipllava),
    "fast_vlm": replace(_QWEN, parts=llava.fast_vlm, placeholder="<image>", newline="\n"),
    "mistral3": Family(
        single.mistral3,
        placeholder="[IMG]",
        newline="",
        user="[INST]",
        turn="[/INST]",
        reply="",
        end="<eos>",
    ),
    "aya_vision": replace(_COHERE, parts=cohere.aya_vision, placeholder="<image>"),
    "cohere2_vision": _COHERE,
    "glm4v": _GLM,
    "glm46v": replace(_GLM, parts=qwen.glm46v),
    "qwen3_vl_moe": replace(
        _QWEN, parts=qwen.qwen3_vl_moe, spread=2.0, transposed=("gate_up_proj", "down_proj")
    ),
    "deepseek_vl": _DEEPSEEK,
    "janus": replace(_DEEPSEEK, parts=single.janus, user="<|User|>: ", reply="<|Assistant|>:"),
    "ovis2": replace(_QWEN, parts=single.ovis2, placeholder="<image>", newline="\n"),
    "llama4": Family(
        single.llama4,
        placeholder="<|image|>",
        newline="",
        user="<|header_start|>user<|header_end|>\n\n",
        turn="<|eot|>",
        reply="<|header_start|>assistant<|header_end|>\n\n",
        end="<|eot|>",
        stop=("<|eot|>",),
        spread=0.35,
    ),
    "kimi_k25": Family(
        single.kimi_k25,
        placeholder="<|media_begin|>image<|media_content|><|media_pad|><|media_end|>",
        newline="",
        user="<|im_user|>user<|im_middle|>",
        turn="<|im_end|>",
        reply="<|im_assistant|>assistant<|im_middle|>",
        end="<|im_end|>",
        stop=("<|im_end|>",),
        spread=2.0,
    ),
    "aria": replace(_QWEN, parts=single.aria, placeholder="<image>", stop=()),
    "paligemma": Family(
        google.paligemma,
        placeholder="<image>",
        newline="",
        user="",
        turn="",
        reply="",
        end="",
        chat=False,
        spread=0.05,
        rename=TOWER,
    ),
    "lfm2_vl": replace(
        _QWEN,
        parts=hybrid.lfm2_vl,
        placeholder="<image>",
        recurrent=(0, 1, 3, 5),
        rename=TOWER,
    ),
    "qwen3_5": replace(_QWEN, parts=qwen.qwen3_5, spread=1.0, recurrent=(0, 1, 3, 4)),
    "qwen3_5_moe": replace(_QWEN, parts=qwen.qwen3_5_moe, spread=0.7, recurrent=(0, 1, 3, 4)),
    "minicpmv4_6": replace(
        _QWEN,
        parts=qwen.minicpmv4_6,
        placeholder="<|image_pad|>",
        spread=0.62,
        recurrent=(0, 1, 3, 4),
    ),
    "gemma3n": Family(
        google.gemma3n,
        placeholder="<image_soft_token>",
        newline="",
        user="<start_of_turn>user\n",
        turn="<end_of_turn>\n",
        reply="<start_of_turn>model\n",
        end="<end_of_turn>\n",
        stop=("<end_of_turn>",),
        spread=0.2,
    ),
    "gemma4": Family(
        google.gemma4,
        placeholder="<|image|>",
        newline="",
        user="<|turn>user\n",
        turn="<turn|>\n",
        reply="<|turn>model\n",
        end="<turn|>\n",
        stop=("<turn|>",),
        spread=0.05,
    ),
}


def sharpen(model: nn.Module, spread: float = 0.5) -> None:
    """Draw weights that make the output depend on picture and history; norms keep their ones."""
    rng = torch.Generator().manual_seed(SEED)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() >= 2:
                loose = id(p) in tables or "position" in name or "cls_token" in name
                fan = p.shape[-1] if "experts" in name else p[0].numel()  # each expert is a layer
                std = spread if loose else 1.2 / fan**0.5
                p.copy_(torch.randn(p.shape, generator=rng) * std)
            elif name.endswith("bias") and "norm" not in name.lower():
                p.copy_(torch.randn(p.shape, generator=rng) * 0.02)


def build(family: str, directory: Path, parts: Parts | None = None) -> Path:
    """Write a tiny checkpoint of `family` into `directory`, loadable with the Auto classes.

    `parts` are its model and processor where they are not those of the family's row.
    """
    from transformers import GenerationConfig

    row = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model, processor = (parts or row.parts)()
    model = model.float().eval()
    sharpen(model, row.spread)
    stops = [EOS, *processor.tokenizer.convert_tokens_to_ids(list(row.stop))]
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=stops, pad_token_id=PAD
    )
    if row.chat:
        processor.chat_template = row.template
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    if row.rename or row.transposed:
        _as_released(directory / "model.safetensors", row)
    return directory


def _as_released(path: Path, row: Family) -> None:
    weights = load_file(path)
    for name in weights:
        if name.endswith(row.transposed):
            weights[name] = weights[name].transpose(-1, -2).contiguous()
    for old, new in row.rename:
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
