"""Emoji-COCO: made-up scenes, and a small model that sees them and also hallucinates.

Every strategy can be run end to end on it, offline and without a GPU. It tests mechanisms and does
not stand in for published numbers of real models; `card` says what the model can and cannot do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from halludecode.testbed.assets import (
    CAPTION,
    MODELS,
    PICTURES,
    PLANTED,
    PROMPTS,
    QUESTION,
    card,
    model_path,
    picture_path,
)

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "CAPTION",
    "MODELS",
    "PICTURES",
    "PLANTED",
    "PROMPTS",
    "QUESTION",
    "card",
    "dataset",
    "digest",
    "model_path",
    "picture",
    "picture_path",
    "write_dataset",
    "write_pairs",
]


def picture(number: int) -> Image:
    """A shipped picture, RGB; commands and requests call it ``testbed:NUMBER``.

    Args:
        number: 1 to `PICTURES`.

    Raises:
        InvalidRequest: There is no such picture.
    """
    from PIL import Image

    with Image.open(picture_path(number)) as stored:
        return stored.convert("RGB")


def write_dataset(out: Path, split: str, count: int, seed: int | None = None) -> Path:
    """Makes a split and writes it; see `halludecode.testbed.datasets.write_dataset`."""
    from halludecode.testbed import datasets

    return datasets.write_dataset(out, split, count, seed)


def write_pairs(out: Path, split: str, count: int, seed: int | None = None) -> Path:
    """Writes scenes with and without an object; see `halludecode.testbed.pairs.write_pairs`."""
    from halludecode.testbed import pairs

    return pairs.write_pairs(out, split, count, seed)


def digest(split: str, count: int, seed: int | None = None) -> str:
    """Hashes a split made in memory; see `halludecode.testbed.datasets.digest`."""
    from halludecode.testbed import datasets

    return datasets.digest(split, count, seed)


def dataset(name: str, count: int = 500) -> Path:
    """Gives a published data set, made on first use; see `halludecode.testbed.datasets.dataset`."""
    from halludecode.testbed import datasets

    return datasets.dataset(name, count)
