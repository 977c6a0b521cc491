"""A soft prompt: learned vectors in the place of a picture's projected features."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.artifact import Artifact


def laid(soft: Tensor, count: int) -> Tensor:
    """[count, D]: a soft prompt [n, D] for a picture of ``count`` tokens, repeated where n < count.

    Families whose pictures all have n tokens get the prompt as it was learned.
    """
    return soft.repeat(-(-count // len(soft)), 1)[:count]


def replaced(features: Tensor, *, artifact: Artifact) -> Tensor:
    """[N, D]: the soft prompt in the place of a picture's features."""
    return laid(artifact["soft"].to(features), len(features))
