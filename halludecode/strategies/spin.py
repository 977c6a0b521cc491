"""SPIN: quieten heads that look least at the image (Sarkar et al., EMNLP 2025, arXiv:2505.16411).

    z_h = sum_{j in image} s_hj          pre-softmax scores of the query that emits a token
    a_h <- alpha * a_h                   for all but the floor(r * H) heads of largest z

Chosen anew in every layer and for every token. The official code ranks softmax(z / std(z)), whose
order is that of z; it knows neither grouped keys nor padded batches, and goes wrong with them. Its
defaults are those of captions on LLaVA; for POPE it takes r = 0.8 and alpha = 0.1, for Qwen-VL
r = 0.7 in the first 20 layers. With ``map`` the heads are fixed instead: those with the largest
values of a saved map (`halludecode heads`); this is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from halludecode.core.heads import Mapped, pictured
from halludecode.core.strategy import ModelInfo, Paper, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention

PAPER = Paper(
    arxiv="2505.16411",
    title="Mitigating Hallucinations in Vision-Language Models through Image-Guided Head "
    "Suppression",
    authors="Sarkar, Sreetama and Che, Yue and Gavin, Alex and Beerel, Peter A. and Kundu, Souvik",
    venue="EMNLP",
    year=2025,
)


@strategy("spin", paper=PAPER, off={"alpha": 1.0})
class SPIN(Mapped):
    """Scale down the outputs of heads with the least image score."""

    r: float = param(0.95, "share of a layer's heads that is kept", ge=0, le=1)
    alpha: float = param(0.08, "factor on the others' outputs", ge=0)
    depth: int = param(32, "of 32 layers, how many from the first are edited", ge=1, le=32)
    map: str | None = param(None, "saved map (vhd or mass) that fixes the heads; None looks anew")

    metrics = ("vhd", "mass")

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """The first of 32, scaled."""
        self.values(m)  # a map of another model is refused here
        return range(max(1, m.scaled(self.depth)))

    def attend(self, a: Attention) -> None:
        """Rank the heads, quieten the last ones at queries that emit a token."""
        if self.map is not None:
            z, sees = self.row(a), pictured(a)  # [1, H], [R, 1]
        else:
            scores = a.scores(a.image)  # [R, H, Q, N]
            visible = scores.isfinite()  # -inf: no image key, or one out of the window
            z = scores.masked_fill(~visible, 0).sum(-1)  # [R, H, Q]
            sees = visible.any(-1)
        quiet = sees & ~self._kept(z)
        a.scale_heads(1 + (self.alpha - 1) * quiet.float())

    def _kept(self, z: Tensor) -> Tensor:
        """Bool: the floor(r * H) largest over heads, dimension 1; of equal ones the first."""
        most = math.floor(self.r * z.shape[1] + 1e-9)
        return z.argsort(dim=1, descending=True, stable=True).argsort(dim=1) < most
