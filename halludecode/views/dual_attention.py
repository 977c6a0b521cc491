"""LACING's dual attention (MDA): image and text are attended to apart, and what they give is added.

    O = softmax over image keys (s) V + softmax over text keys (s) V
    an image query's image part is itself alone;  a query before the picture has no image part

As the official code has it (HaozheZhao/LACING, `_expand_mask`), but for queries before the picture:
there the code's masks, added in half precision, leave an even share to every image token to come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from halludecode.core.attention import Attention


def dual(a: Attention, row: str) -> None:
    """Give each part of a row's attention the weight of a whole one."""
    import torch

    text = a.tokens & ~a.image
    image_key, asking = a.image.of(row)[:, None], a.image_queries.of(row)[..., None]
    others = image_key & asking & ~a.own_key.of(row)  # bool [R, Q, N]
    closed = torch.zeros(others.shape, device=others.device).masked_fill(others, -torch.inf)
    a.add_scores(a.image, closed[:, None], rows=(row,), queries="all")
    for part in (a.image, text):
        mass = a.weights(part, row=row).sum(-1)  # [R, H, Q]
        a.scale_weights(part, 1 / mass.clamp_min(1e-30), where=mass > 0, rows=(row,), queries="all")
