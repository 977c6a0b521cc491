"""Checkpoints that transformers 5 saved: names vLLM 0.32 does not know, and their digest."""

from __future__ import annotations

import copy
import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halludecode.core.prompt import digest

logger = logging.getLogger(__name__)

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


def weights_digest(source: str, config: Any, dtype: torch.dtype, **shared: Any) -> str:
    """`models.loading.model_digest` of a checkpoint, from its files: artifacts serve both engines.

    Where transformers would do more than rename a tensor (merge experts, say), or the files are not
    safetensors, it is a digest of the config and the model's name alone.

    Args:
        source: Path or hub id; files of a hub id are looked for in its cache.
        config: The model's.
        dtype: What vLLM loaded the weights as.
        **shared: revision and trust_remote_code, where given.
    """
    config = copy.deepcopy(config)  # transformers notes the dtype in the config of a loaded model
    for each in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if each is not None:
            each.dtype = dtype
    config_text = re.sub(r'"_name_or_path".*', "", config.to_json_string())
    try:
        samples = _samples(source, config, dtype, **shared)
    except (ImportError, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        logger.warning("%s: its weights have no digest of their own (%r)", source, error)
        return digest(config_text, source)
    parts: list[object] = [config_text]
    for name, sample in sorted(samples.items()):
        floating = sample.is_floating_point()
        parts += [name, sample.float().numpy().tobytes() if floating else sample.tolist()]
    return digest(*parts)


def _samples(source: str, config: Any, dtype: torch.dtype, **shared: Any) -> dict[str, Tensor]:
    """Up to 64 values of every tensor, by the name it has in the model of transformers."""
    from safetensors import safe_open
    from transformers import AutoModelForImageTextToText
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    trust = bool(shared.get("trust_remote_code"))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, trust_remote_code=trust
        )
    state, mapping = model.state_dict(), get_model_conversion_mapping(model)
    renamings = [change for change in mapping if isinstance(change, WeightRenaming)]
    others = [change for change in mapping if not isinstance(change, WeightRenaming)]
    samples: dict[str, Tensor] = {}
    for path in _files(source, shared.get("revision")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (it is no mapping)
                name, merged = rename_source_key(
                    key, renamings, others, model.base_model_prefix, state
                )
                if merged is not None:
                    raise ValueError(f"{key} is merged with others")
                flat = file.get_tensor(key).flatten()
                sample = flat[:: max(1, flat.numel() // 64)][:64]
                samples[name] = sample.to(state[name].dtype) if name in state else sample
    for name, same in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        samples.setdefault(name, samples[same])
    return {name: samples[name] for name in state}


def _files(source: str, revision: str | None) -> list[Path]:
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        cached = snapshot_download(
            source, revision=revision, allow_patterns="*.safetensors", local_files_only=True
        )
        folder = Path(cached)
    return sorted(folder.glob("*.safetensors"))
