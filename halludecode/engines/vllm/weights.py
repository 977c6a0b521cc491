"""Checkpoints that transformers 5 saved: names of their weights that vLLM 0.32 does not know."""

from __future__ import annotations

import re
from typing import Any

# CLIP and SigLIP towers lost a level of their names in transformers 5; released files still have
# it, and so has vLLM.
_TOWER = re.compile(r"(^|\.)vision_tower\.(?!vision_model\.)")
FAMILIES = ("llava", "llava_next", "llava_onevision", "gemma3")


def accept_new_names(model_config: Any) -> None:
    """Let vLLM's model class load both forms of the tower's names."""
    from vllm.model_executor.model_loader.utils import get_model_architecture
    from vllm.model_executor.models.utils import WeightsMapper

    if model_config.hf_config.model_type not in FAMILIES:
        return
    cls, _ = get_model_architecture(model_config)
    new = WeightsMapper(orig_to_new_regex={_TOWER: r"\1vision_tower.vision_model."})
    if _TOWER not in cls.hf_to_vllm_mapper.orig_to_new_regex:
        cls.hf_to_vllm_mapper = cls.hf_to_vllm_mapper | new
