"""Training with a scheme of attention that an untouched model does not have: CCA, EDVT, MMA.

What the decoder is trained with is what the strategy of that name does to a prompt, so that the
strategy runs the weights as they were trained. The formulas are in `halludecode/strategies/`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from halludecode.core.attention_block import turned
from halludecode.models.info import rope_of
from halludecode.testbed.train.corpus import CELLS
from halludecode.testbed.train.network import plain_attention

SCHEMES = ("cca", "edvt", "mma")
SIDE = math.isqrt(CELLS)
RINGS = [
    min(row, column, SIDE - 1 - row, SIDE - 1 - column)
    for row in range(SIDE)
    for column in range(SIDE)
]


def places(scheme: str, first: int) -> tuple[list[int], int]:
    """Position ids of a picture's tokens from ``first`` on, and where words go on."""
    if scheme == "cca":
        return [first + ring for ring in RINGS], first + (SIDE + 1) // 2
    return list(range(first, first + CELLS)), first + CELLS


def opened(scheme: str, sees: Tensor, first: int, questions: Sequence[int]) -> Tensor:
    """Bool [n, T, T]: what tokens see under a scheme.

    Args:
        scheme: Its name.
        sees: What they see without.
        first: Place of the first image token.
        questions: Per row, tokens of the one question behind the picture, the tag of the answer's
            beginning left out.
    """
    sees, image = sees.clone(), slice(first, first + CELLS)
    if scheme == "cca":
        ring = torch.tensor(RINGS)
        sees[:, image, image] = ring[None, :] <= ring[:, None]
    if scheme == "mma":
        for row, count in enumerate(questions):
            sees[row, image, first + CELLS : first + CELLS + count] = True
    return sees


def attend(model: Any, scheme: str, first: int) -> None:
    """Give the decoder EDVT's attention; the other schemes are masks and positions alone."""
    if scheme != "edvt":
        return
    name = "halludecode_testbed_edvt"
    frequencies = torch.tensor(rope_of(model.config.get_text_config()), device=model.device)
    function = partial(_edvt, frequencies=frequencies, image=slice(first, first + CELLS))
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, eager_mask)
    model.set_attn_implementation({"text_config": name})


def _edvt(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    frequencies: Tensor,
    image: slice,
    position_ids: Tensor,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`plain_attention` whose scores on image keys are those of unturned queries and keys."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    back = -position_ids.expand(len(query), -1).float()
    raw_q = turned(query.float(), back, frequencies)
    raw_k = turned(key.float(), back, frequencies)[:, :, image]
    change = (raw_q @ raw_k.mT - query.float() @ key.float()[:, :, image].mT) * scale
    added = torch.zeros(*query.shape[:3], key.shape[2], device=query.device)
    added = added.slice_scatter(change, -1, image.start, image.stop)
    mask = added if attention_mask is None else added + attention_mask
    return plain_attention(module, query, key, value, mask, scale)
