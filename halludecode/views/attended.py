"""Which image tokens an early reading looked at, and features with the others put out.

AvisC (arXiv 2405.17820) and MoD (arXiv 2505.17061) both choose image tokens by the attention of the
prompt's last token and zero the features of the others, at the input of the language model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.activations import Activations


def dimmed(features: Tensor, *, kept: Tensor) -> Tensor:
    """[N, D]: a picture's features, zero where ``kept`` (bool [N]) is False."""
    return features * kept.to(features.device)[:, None]


def by_layer(seen: Activations) -> Tensor:
    """float32 [n, N_img]: the prompt's last token on all image tokens, mean over heads."""
    return seen.image.float().mean(1)  # type: ignore[union-attr]


def by_picture(kept: Tensor, seen: Activations) -> list[Tensor]:
    """A choice among all image tokens (bool [N_img]) as one bool [N] per picture."""
    return list(kept.split(list(seen.image_counts)))
