"""What can be said of a model's name and options before torch is imported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidModel
from halludecode.testbed.assets import MODELS as TESTBED
from halludecode.testbed.assets import model_path

_DTYPES = re.compile(r"auto|half|double|(b|torch\.)?float\w*")


def check_dtype(dtype: Any) -> None:
    """Refuse what is no name of a dtype that weights can have.

    Raises:
        InvalidModel: The sentence names those that can.
    """
    if isinstance(dtype, str) and not _DTYPES.fullmatch(dtype):
        raise InvalidModel(f"dtype={dtype!r}: use auto, float32, bfloat16 or float16.")


def model_source(model_id: str) -> str:
    """Path or hub id behind a model name; "testbed" is the embedded model."""
    if model_id in TESTBED:
        return str(model_path(model_id))
    looks_local = model_id.startswith((".", "/", "~")) or model_id.count("/") > 1
    path = Path(model_id).expanduser()
    if path.is_dir():
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise InvalidModel(
                f"{model_id}: an adapter of PEFT without its model; load it with "
                "PeftModel.from_pretrained(model, folder) and give that model and its processor."
            )
        if not (path / "config.json").is_file():
            raise InvalidModel(f"{model_id}: the folder has no config.json, so it is not a model.")
        return str(path)
    if looks_local or path.exists():
        raise InvalidModel(
            f"{model_id}: no such model folder; give a folder, a hub id, or 'testbed'."
        )
    return model_id
