"""Lets go of what the first import of vLLM would keep for the life of the process.

vLLM 0.32.0 keeps why torchcodec could not be imported, with its traceback, and so the variables of
all functions that were running then: among them an engine that is loaded there, model and all.
"""

from __future__ import annotations

import sys

KEPT = "vllm.multimodal.media.audio", "_torchcodec_import_exc"


def let_go() -> None:
    """Takes the tracebacks off that exception; its words stay."""
    module, name = KEPT
    error = getattr(sys.modules.get(module), name, None)
    while error is not None:
        error.__traceback__ = None
        error = error.__context__
