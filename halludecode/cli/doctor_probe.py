"""What `doctor` sees by importing: ``python -m halludecode.cli.doctor_probe``, a JSON line a step.

A process of its own, so that a library that takes its process down takes only this one, and a
single one for both engines, as what they import is much the same.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
from typing import Any

from halludecode.engines import PROVIDES
from halludecode.models import import_repair as _repair

# Engine "hf" needs these two names; asking for them imports what a model's processor needs.
HF_NAMES = ("AutoProcessor", "AutoModelForImageTextToText")
STEPS = ("hf", "devices", "repaired", "vllm")


def hf_engine() -> dict[str, Any]:
    """Whether the Hugging Face engine can load a model here, shown by importing what it imports."""
    try:
        importlib.import_module("torch")
        transformers = importlib.import_module("transformers")
        for name in HF_NAMES:
            getattr(transformers, name)
        importlib.import_module("torchvision")
        importlib.import_module("halludecode.engines.hf.engine")
    except Exception as error:
        return {"usable": False, "provides": [], "why": _root_cause(error)}
    return {"usable": True, "provides": sorted(PROVIDES["hf"]), "why": None}


def devices() -> list[dict[str, str]]:
    """Accelerators that torch can use."""
    try:
        import torch
    except Exception:  # reported by the engine's entry
        return []
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(index)
        detail = f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
        found.append({"name": f"cuda:{index}", "detail": detail})
    if torch.backends.mps.is_available():
        found.append({"name": "mps", "detail": "Apple GPU"})
    return found


def repaired() -> dict[str, str]:
    """Packages whose native library does not load beside this torch -> its error."""
    return dict(_repair.install().done)


def vllm() -> dict[str, Any]:
    """What `engines.vllm.compat.vllm_api` says, or why it could not say anything (``error``)."""
    try:
        api = importlib.import_module("halludecode.engines.vllm.compat.vllm_api")
        return api.about()
    except Exception as error:
        return {"error": _root_cause(error)}


def _root_cause(error: BaseException) -> str:
    """The first error of a chain: transformers wraps what really happened."""
    while error.__cause__ is not None:
        error = error.__cause__
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"


def main(steps: list[str]) -> None:
    """Take the steps in turn, each as one line."""
    gc.disable()  # a fifth of the time of imports went to looking for garbage among what stays
    for step in steps:
        sys.stdout.write(json.dumps({step: globals()[step if step != "hf" else "hf_engine"]()}))
        sys.stdout.write("\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
