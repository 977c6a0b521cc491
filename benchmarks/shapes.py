"""Models of real sizes with random weights: what they write is noise, what they cost is not.

A shape is one of the tests' tiny families with other numbers, so its processor is the family's own.
Run from the repository's folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

import halludecode as hd
from halludecode.core.errors import InvalidParameter
from tests.support.families import FAMILIES


@dataclass(frozen=True)
class Shape:
    """Numbers that differ from the tiny family's.

    Args:
        family: A key of the tests' families.
        text: Of the language model.
        tower: Of the vision tower.
        side: Pixels of a picture's side; None is the tiny family's.
    """

    family: str
    text: Mapping[str, Any]
    tower: Mapping[str, Any]
    side: int | None = None


SHAPES: dict[str, Shape] = {
    # Of no real size: to see a command work before a large machine is asked for.
    "tiny-qwen": Shape("qwen2_5_vl", {"max_position_embeddings": 4096}, {}),
    "tiny-llava": Shape("llava", {"max_position_embeddings": 4096}, {}),
    "qwen-0.5b": Shape(
        "qwen2_5_vl",
        {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
            "layer_types": ["full_attention"] * 24,
            "mrope_section": [8, 12, 12],
        },
        {"depth": 2, "hidden_size": 320, "intermediate_size": 864, "out_hidden_size": 896},
    ),
    "qwen-7b": Shape(
        "qwen2_5_vl",
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "max_position_embeddings": 32768,
            "layer_types": ["full_attention"] * 28,
            "mrope_section": [16, 24, 24],
        },
        {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        side=448,
    ),
    "llava-7b": Shape(
        "llava",
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "vocab_size": 32064,
            "max_position_embeddings": 4096,
        },
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
        side=336,
    ),
}


def load(name: str, batch_size: int, device: str | None = None) -> Any:
    """An engine for a shape (random weights), or for any model `hd.load` takes.

    Args:
        name: A key of `SHAPES`, a model id or a path.
        batch_size: Most requests at once.
        device: "cpu" (float32) or "cuda" (bfloat16); None is a GPU if there is one.

    Raises:
        InvalidParameter: There is no such device.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidParameter(f"device={device}: torch sees no GPU; use --device cpu.")
    if name not in SHAPES:
        return hd.load(name, batch_size=batch_size, device=device)
    shape = SHAPES[name]
    tiny, processor = FAMILIES[shape.family].parts()
    config = tiny.config
    _update(config.get_text_config(), shape.text)
    _update(config.vision_config, shape.tower)
    if shape.side is not None:
        _enlarge(config, processor, shape.side)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        with torch.device(device):
            torch.manual_seed(0)
            model = type(tiny)(config).eval()
    finally:
        torch.set_default_dtype(before)
    return hd.load(model, processor=processor, batch_size=batch_size, prefix_cache_mb=0)


def _enlarge(config: Any, processor: Any, side: int) -> None:
    """Pictures of ``side`` pixels, as many tokens each as the tower's patches make of them."""
    pictures = processor.image_processor
    if config.model_type == "llava":
        patch = config.vision_config.patch_size
        processor.patch_size, config.image_seq_length = patch, (side // patch) ** 2
        pictures.size = type(pictures)(size={"shortest_edge": side}).size
        pictures.crop_size = type(pictures)(crop_size={"height": side, "width": side}).crop_size
    else:  # any number of pixels between two bounds
        pictures.size = type(pictures)(
            size={"shortest_edge": side * side, "longest_edge": side * side}
        ).size


def _update(config: Any, numbers: Mapping[str, Any]) -> None:
    for name, value in numbers.items():
        if name == "mrope_section":
            config.rope_parameters["mrope_section"] = value
        else:
            setattr(config, name, value)
