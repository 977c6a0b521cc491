"""What can be told of a checkpoint before its weights are fetched: whether it can be served at all.

Its family is read from its config's file, before torch is imported. Then what its processor's files
leave out, which the model's config says as well.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidModel
from halludecode.models.families import check_known, family_of

# Model types of the original codes -> where checkpoints in transformers' own form are.
ORIGINALS = {
    "llava": "llava-hf/llava-1.5-7b-hf and its kin",
    "llava_llama": "llava-hf/llava-1.5-7b-hf or llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava_mistral": "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava_qwen": "llava-hf/llava-onevision-qwen2-7b-ov-hf and its kin",
    "llava_qwen2": "KamilaMila/FastVLM-7B and its kin",
    "llava_mpt": "llava-hf/llava-1.5-7b-hf",
    "llava_gemma": "llava-hf/llava-1.5-7b-hf",
    "internvl_chat": "OpenGVLab/InternVL3-8B-hf and its kin",
    "multi_modality": "deepseek-community/deepseek-vl-1.3b-chat or deepseek-community/Janus-Pro-1B",
    "ovis": "thisisiron/Ovis2-1B-hf and its kin",
}
# Those of whose models there is no form with a row in the table of families.
UNSERVED = ("molmo", "phi4mm")
TOWERS = {"clip_vision_model": 1, "siglip_vision_model": 0, "pixtral": 0}  # tokens beside patches


def load_config(model_id: str, source: str, **shared: Any) -> Any:
    """The model's config, of a family that is known.

    Args:
        model_id: As the user named it.
        source: Path or hub id behind it.
        **shared: revision and trust_remote_code, where given.

    Raises:
        InvalidModel: It cannot be read, is of an original code's form, or of an unknown family.
    """
    from transformers import AutoConfig, PreTrainedConfig

    given: Any = {}
    try:
        place = {name: value for name, value in shared.items() if name == "revision"}
        given, _ = PreTrainedConfig.get_config_dict(source, **place)
        _check_original(model_id, given)
        config = AutoConfig.from_pretrained(source, **shared)
    except InvalidModel:
        raise
    except Exception as error:  # whatever a file may hold
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        kind = given.get("model_type") if isinstance(given, dict) else None
        known = f"model type {kind!r}: " if kind else ""
        cure = "Give a hub id, a folder saved with save_pretrained, or 'testbed'."
        if isinstance(error, ImportError):  # FastVLM's tower is timm's
            cure = "Install the package that it names."
        raise InvalidModel(
            f"{model_id}: the config cannot be loaded ({known}{first[:300]}). {cure}"
        ) from error
    family_of(config)
    return config


def check_type(model_id: str, source: str, revision: str | None = None) -> None:
    """Refuse a family that is not served, as its config's file says, without torch.

    What cannot be read is left to `load_config`.

    Args:
        model_id: As the user named it.
        source: Path or hub id behind it.
        revision: Hub revision.

    Raises:
        InvalidModel: It is of an original code's form, or of an unknown family.
    """
    given: Any = {}
    with suppress(Exception):  # no network, no such file, no JSON: told by who loads it
        path = Path(source) / "config.json"
        if not path.is_file():
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(source, "config.json", revision=revision))
        given = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(given, dict):
        _check_original(model_id, given)
        if isinstance(given.get("model_type"), str):
            check_known(given["model_type"])


def _check_original(model_id: str, given: dict[str, Any]) -> None:
    kind = given.get("model_type", "")
    if kind in UNSERVED:
        raise InvalidModel(
            f"{model_id}: a checkpoint of the original code (model type {kind!r}), and no form of "
            "its family is served; take a model of another one, such as "
            "Qwen/Qwen2.5-VL-7B-Instruct."
        )
    if "mm_vision_tower" in given or (kind in ORIGINALS and kind != "llava"):
        cure = ORIGINALS.get(kind, ORIGINALS["llava"])
        raise InvalidModel(
            f"{model_id}: a checkpoint of the original code (model type {kind!r}), which "
            f"transformers does not read; give one in its own form, such as {cure}."
        )


def complete_processor(processor: Any, config: Any) -> None:
    """Set what a processor's files leave out, or hold otherwise than the model makes it.

    How many tokens a picture has is the model's to say. Old files lack ``patch_size``,
    ``vision_feature_select_strategy`` and ``num_additional_image_tokens``, and the processor would
    fail, or write one token more or less, at the first picture.
    """
    tower = getattr(config, "vision_config", None)
    wanted: dict[str, Any] = {}
    if config.model_type in ("llava", "llava_next"):
        wanted = {
            "patch_size": tower.patch_size,
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
            "num_additional_image_tokens": TOWERS.get(tower.model_type),
        }
    elif config.model_type == "llava_onevision":
        wanted = {
            "num_image_tokens": (tower.image_size // tower.patch_size) ** 2,
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
        }
    elif config.model_type == "instructblip":
        wanted = {"num_query_tokens": config.num_query_tokens}
    for name, value in wanted.items():
        if value is not None and hasattr(processor, name) and getattr(processor, name) != value:
            setattr(processor, name, value)
