"""Where in a picture a question looks, relative to a generic prompt (AGLA, matcher="self")."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.activations import Activations


def relevance_maps(question: Activations, generic: Activations) -> list[Tensor]:
    """Attention under the question over attention without it.

    Args:
        question: Under the question, with `image` weights [n, H, N_img] and the spans of every
            picture's overview.
        generic: The same for a generic prompt about the same pictures.

    Returns:
        One float32 [rows, columns] map per picture.
    """
    under = question.image.float().mean((0, 1))  # type: ignore[union-attr]  # layers and heads
    plain = generic.image.float().mean((0, 1))  # type: ignore[union-attr]
    ratio = under / plain.clamp_min(1e-12)
    return [ratio[s : s + r * c].reshape(r, c) for s, r, c in question.image_spans]
