"""Import transformers and vLLM beside torchvision, torchaudio and torchcodec that do not load.

The package index serves CUDA builds of these three. Beside a CPU build of torch their native
libraries cannot be loaded, and then ``import torchvision`` dies with ``operator torchvision::nms
does not exist``, while transformers imports torchaudio because it is installed and dies with
``OSError: Could not load this library``.

Pictures need none of those libraries. So, as soon as torch has been imported, each native library
is loaded once. Where that works the package is left alone. Where it fails

* torchvision gets the two operator schemas its Python code refers to (resizing and cropping are
  plain torch);
* torchaudio and torchcodec are hidden, exactly as if they were not installed.

Nothing happens before torch is imported, so ``import halludecode`` stays light; `plugin` does the
same inside every process that vLLM starts.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

# The library each package loads when it is imported: the first pattern that finds files counts, and
# one file that loads is enough (torchcodec ships one per FFmpeg version).
LIBRARIES = {
    "torchvision": ("_C.*so",),
    "torchaudio": ("lib/libtorchaudio.*so",),
    "torchcodec": ("libtorchcodec_image.*so", "libtorchcodec_core*.so"),
}
HIDDEN = ("torchaudio", "torchcodec")
SCHEMAS = ("nms", "qnms")


def install() -> Repair:
    """Watch for torch, or act at once if it is already imported; a second call changes nothing.

    Returns:
        The one `Repair` of this process.
    """
    for finder in sys.meta_path:
        if isinstance(finder, Repair):
            repair = finder
            break
    else:
        repair = Repair()
        sys.meta_path.insert(0, repair)
    if hasattr(sys.modules.get("torch"), "ops"):  # a half-imported torch has no ops yet
        repair.act()
    return repair


def plugin() -> None:
    """Entry point of group ``vllm.platform_plugins``: repair, and activate no platform."""
    install()


class Repair(importlib.abc.MetaPathFinder):
    """Acts right after torch is imported, and right before transformers imports torchaudio.

    Attributes:
        done: Package name -> the error its library gave, for every package that was repaired.
    """

    def __init__(self) -> None:
        self.done: dict[str, str] = {}
        self._acted = False
        self._schemas: Any = None  # schemas vanish with the Library that defined them

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find nothing, except the two modules around whose execution the repair must act."""
        if self._acted or fullname not in ("torch", "transformers.audio_utils"):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or not hasattr(spec.loader, "exec_module"):
            return None
        loader: Any = spec.loader
        run: Callable[[ModuleType], None] = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # from here on the loader is as it was
            if fullname != "torch":
                self.act()
            run(module)
            if fullname == "torch":
                self.act()

        loader.exec_module = exec_module  # on this one loader object, not on its class
        return spec

    def act(self) -> None:
        """Try the libraries of the installed packages once and repair those that do not load."""
        if self._acted:
            return
        self._acted = True
        for name, patterns in LIBRARIES.items():
            error = _load_error(name, patterns)
            if error is None:
                continue
            if name in HIDDEN:
                # None: find_spec() answers None and import raises ModuleNotFoundError.
                sys.modules.setdefault(name, None)  # type: ignore
            else:
                self._define_schemas()
            self.done[name] = error
        if self.done:
            _forget_availability()

    def _define_schemas(self) -> None:
        import torch

        self._schemas = torch.library.Library("torchvision", "DEF")
        for op in SCHEMAS:
            self._schemas.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _load_error(name: str, patterns: tuple[str, ...]) -> str | None:
    """Load the native library of an installed package.

    Returns:
        Why it does not load; None when it does, or when there is no such package or library.
    """
    files = _libraries(name, patterns)
    error = None
    for file in files:
        import torch

        try:
            torch.ops.load_library(str(file))
        except (OSError, RuntimeError) as caught:
            # torch wraps the loader's own words, which name what is missing
            error = (str(caught.__cause__ or caught).splitlines() or [repr(caught)])[0]
        else:
            return None
    return error


def _libraries(name: str, patterns: tuple[str, ...]) -> list[Path]:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: a stand-in module without a spec
        return []
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for pattern in patterns:
            if found := sorted(Path(folder).glob(pattern)):
                return found
    return []


def _forget_availability() -> None:
    """Drop what transformers remembers about packages hidden after it asked."""
    known = sys.modules.get("transformers.utils.import_utils")
    for name in HIDDEN:
        cached = getattr(known, f"is_{name}_available", None)
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()
