"""Where what is made on first use is kept."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "HALLUDECODE_CACHE"


def cache_folder(kind: str = "testbed") -> Path:
    """``$HALLUDECODE_CACHE/KIND``, or ``~/.cache/halludecode/KIND``."""
    root = os.environ.get(CACHE_VARIABLE)
    return (Path(root) if root else Path.home() / ".cache" / "halludecode") / kind
