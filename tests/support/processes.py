"""Processes that tests start."""

from __future__ import annotations

import os
from pathlib import Path

REPO = Path(__file__).parents[2]


def environment(*folders: Path, **more: str) -> dict[str, str]:
    """This process's variables with ``more``; folders come before what PYTHONPATH names already.

    It is never replaced: `make test-v2` has in it what stands in for Triton's back end.
    """
    named = [*map(str, folders), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, **more, "PYTHONPATH": os.pathsep.join(filter(None, named))}
