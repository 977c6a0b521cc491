"""Attention sinks: tokens that carry massive activations in a few fixed dimensions.

    phi(x) = max_{j in dims} |x_j| / sqrt(mean(x^2) + 1e-6)        (arXiv:2503.03321, eq. 4)

The dimensions belong to the fine-tuned language model, so they are found on the model itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.strategy import Calibration, Facts

MOST_PROMPTS = 0.9  # share of prompts in which a dimension must be massive
MOST_LAYERS = 0.5  # share of middle layers
RARE = 0.5  # a dimension most image tokens share marks the modality, not sinks
MOST_DIMS = 3


def magnitude(x: Tensor) -> Tensor:
    """|x| over the weightless root mean square, float32 [..., D]; at most sqrt(D)."""
    x = x.float()
    return x.abs() / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def is_sink(x: Tensor, *, dims: tuple[int, ...], tau: float) -> Tensor:
    """Bool [T]: phi(x) >= tau for residuals x [T, D]; no dims, no sinks."""
    if not dims:
        return x.new_zeros(x.shape[:-1]).bool()
    return magnitude(x)[..., list(dims)].amax(-1) >= tau


def sink_dims(cal: Calibration, m: Facts, tau: float) -> Tensor:
    """int64 [k], k <= 3: dimensions massive at the first token in most prompts and middle layers.

    A dimension that more than half of the image tokens share is left out: it marks images, not
    sinks.
    """
    import torch

    from halludecode.core.prompt import Look

    layers = tuple(range(1, m.L - 2)) or (0,)  # leaving layer l = entering layer l + 1
    first: list[Tensor] = []
    shared: list[Tensor] = []
    for prompt in cal.samples:
        seen = cal.look(Look(prompt, hidden=layers, every_token=True))
        massive = magnitude(seen.hidden) >= tau  # type: ignore[arg-type]  # [n, T, D]
        first.append(massive[:, 0].float().mean(0) >= MOST_LAYERS)
        if seen.image_mask is not None and seen.image_mask.any():
            shared.append(massive[:, seen.image_mask].float().mean((0, 1)))
    steady = torch.stack(first).float().mean(0) >= MOST_PROMPTS
    if shared:
        steady &= torch.stack(shared).mean(0) <= RARE
    return steady.nonzero().flatten()[:MOST_DIMS]
