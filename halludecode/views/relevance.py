"""Where in a picture a question looks, relative to a generic prompt (AGLA, matcher="self")."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.activations import Activations


GENERIC = "Describe the image."


def is_generic(question: str) -> bool:
    """Whether a question is the generic prompt, however it is written."""
    return _words(question) == _words(GENERIC)


def relevance_maps(question: Activations, generic: Activations | None) -> list[Tensor]:
    """Attention under the question over attention without it.

    Args:
        question: Under the question, with `image` weights [n, H, N_img] and the spans of every
            picture's overview.
        generic: The same for a generic prompt about the same pictures; None where it is what is
            asked, for then their ratio is 1 everywhere and attention itself is taken.

    Returns:
        One float32 [rows, columns] map per picture.
    """
    ratio = question.image.float().mean((0, 1))  # type: ignore[union-attr]  # layers and heads
    if generic is not None:
        plain = generic.image.float().mean((0, 1))  # type: ignore[union-attr]
        ratio = ratio / plain.clamp_min(1e-12)
    return [ratio[s : s + r * c].reshape(r, c) for s, r, c in question.image_spans]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
