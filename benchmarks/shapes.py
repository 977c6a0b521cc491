"""Models of real sizes with random weights: what they write is noise, what they cost is not.

A shape is one of the tests' tiny families with other numbers, so its processor is the family's own.
Run from the repository's folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import halludecode as hd
from tests.families import FAMILIES

# Numbers of the language model and of the vision tower that differ from the tiny family's.
SHAPES: dict[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {
    "qwen-0.5b": (
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
    "qwen-7b": (
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
    ),
    "llava-7b": (
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
        },
    ),
}


def load(name: str, batch_size: int) -> Any:
    """An engine for a shape (random weights), or for any model `hd.load` takes.

    Args:
        name: A key of `SHAPES`, a model id or a path.
        batch_size: Most requests at once.
    """
    if name not in SHAPES:
        return hd.load(name, batch_size=batch_size)
    family, text, tower = SHAPES[name]
    tiny, processor = FAMILIES[family].parts()
    config = tiny.config
    _update(config.get_text_config(), text)
    _update(config.vision_config, tower)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    try:
        with torch.device(device):
            torch.manual_seed(0)
            model = type(tiny)(config).eval()
    finally:
        torch.set_default_dtype(before)
    return hd.load(model, processor=processor, batch_size=batch_size, prefix_cache_mb=0)


def _update(config: Any, numbers: Mapping[str, Any]) -> None:
    for name, value in numbers.items():
        if name == "mrope_section":
            config.rope_parameters["mrope_section"] = value
        else:
            setattr(config, name, value)
