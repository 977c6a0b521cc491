"""Emoji-COCO: made-up scenes, and a small model that sees them and also hallucinates.

Every strategy can be run end to end on it, offline and without a GPU. It tests mechanisms and does
not stand in for published numbers of real models; `card` says what the model can and cannot do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

__all__ = ["MODELS", "PROMPTS", "card", "dataset", "digest", "model_path", "write_dataset"]

PLANTED = "testbed-planted"
MODELS = ("testbed", PLANTED)  # names of models; the second is an edit of the first at load

_ASSETS = Path(__file__).parent / "assets"

# The words the model was trained on. POPE's are appended to the question; MME's questions end with
# them already.
CAPTION = "Please describe this image in detail."
QUESTION = " Please answer yes or no."
PROMPTS: Mapping[str, str] = MappingProxyType({"chair": CAPTION, "pope": QUESTION, "mme": ""})


def model_path(name: str = "testbed") -> Path:
    """The folder of the embedded model, as ``from_pretrained`` wants it.

    Args:
        name: One of `MODELS`; the planted one is made in the cache on first use.

    Raises:
        InvalidModel: The installation lacks it.
        InvalidData: The planted one cannot be written to the cache.
    """
    folder = _ASSETS / "model"
    if not (folder / "model.safetensors").is_file():
        from halludecode.core.errors import InvalidModel

        raise InvalidModel(f"{folder}: the embedded model is missing; reinstall halludecode.")
    if name == PLANTED:
        from halludecode.testbed import planted

        return planted.model_path(folder)
    return folder


def card(name: str = "testbed") -> str:
    """A model's card, in Markdown: the embedded one's, or what planting did to it."""
    if name == PLANTED:
        from halludecode.testbed import planted

        return planted.card(model_path())
    return (_ASSETS / "MODEL_CARD.md").read_text(encoding="utf-8")


def write_dataset(out: Path, split: str, count: int, seed: int | None = None) -> Path:
    """Makes a split and writes it; see `halludecode.testbed.datasets.write_dataset`."""
    from halludecode.testbed import datasets

    return datasets.write_dataset(out, split, count, seed)


def digest(split: str, count: int, seed: int | None = None) -> str:
    """Hashes a split made in memory; see `halludecode.testbed.datasets.digest`."""
    from halludecode.testbed import datasets

    return datasets.digest(split, count, seed)


def dataset(name: str, count: int = 500) -> Path:
    """Gives a published data set, made on first use; see `halludecode.testbed.datasets.dataset`."""
    from halludecode.testbed import datasets

    return datasets.dataset(name, count)
