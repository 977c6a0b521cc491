"""A stand-in for accelerators that Ray can count, so that vLLM's Ray executor runs its CPU worker.

Python imports this module at its start where PYTHONPATH names its folder, in every process that
vLLM and Ray start, too. vLLM's platform for CPUs has no kind of device that Ray hands out; here it
is "GPU", of which a cluster says how many it has (`ray start --num-gpus 2`) and need have none.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from types import ModuleType
from typing import Any

PLATFORM = "vllm.platforms.cpu"


class Finder(importlib.abc.MetaPathFinder):
    """Names the device once the platform's module is loaded."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != PLATFORM:
            return None
        sys.meta_path.remove(self)  # the search below asks this finder, too
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            module.CpuPlatform.ray_device_key = "GPU"

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
