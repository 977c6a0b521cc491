"""README.md, and what stands in it between fences."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def fences(language: str) -> list[str]:
    """The blocks of a language; "" are commands."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, flags=re.S | re.M)
    return [body for name, body in found if name == language]


def strategy() -> str:
    """The file that shows what a strategy is."""
    (shown,) = (block for block in fences("python") if "@strategy" in block)
    return shown
