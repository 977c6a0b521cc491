"""Where the published data lie, for tests that read more than the vectors kept in tests/data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
VECTORS = json.loads((REPO / "tests" / "data" / "eval_public.json").read_text(encoding="utf-8"))
PUBLIC = REPO.parent / "shared" / "data"


def public(name: str) -> Path:
    """A file or folder of the published data; skips the test where it is not on this machine."""
    path = PUBLIC / name
    if not path.exists():
        pytest.skip(f"published data {name} is not in ../shared/data")
    return path


def use_nltk_data() -> None:
    """Lets NLTK find its data in the published data; skips the test where it can find none."""
    from halludecode.evals.words import missing_nltk

    nltk = pytest.importorskip("nltk", reason="NLTK is not installed")
    folder = str(PUBLIC / "nltk_data")
    if folder not in nltk.data.path:
        nltk.data.path.insert(0, folder)
    if lack := missing_nltk():
        pytest.skip(lack)
