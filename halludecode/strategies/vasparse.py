"""VASparse: fewer keys, chosen with an eye on the picture, and dearer sinks (Zhuang et al., 2025).

    keep the S = keep * N keys of largest  s_i^2 + lam P_i,   P = softmax_i(sum_{k in image} a_ik)
    s_j <- (1 + beta) s_j - beta w_j s_j,           w = softmax_j(sum_{i >= j} a_ij)
    z = (1 + alpha) l - alpha l_0,       l_0 the LM head on the last token's embedding, no layer

arXiv:2501.06553 (CVPR), by its equations, without its beams; at emitting queries, every head for
itself. a, of the prompt alone, is kept; written tokens have w = P = 0. Dropped keys are hidden, not
merged; half the image masked, as the paper has it, cannot change l_0. The released code (random
masks, no sink penalty, an unbound variable) is not followed. P is about 1 / N: lam hardly counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from halludecode.core.heads import pictured
from halludecode.core.logits import contrast
from halludecode.core.strategy import ModelInfo, Paper, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention
    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2501.06553",
    title="VASparse: Towards Efficient Visual Hallucination Mitigation via Visual-Aware Token "
    "Sparsification",
    authors="Zhuang, Xianwei and Zhu, Zhihong and Xie, Yuxin and Liang, Liming and Zou, Yuexian",
    venue="CVPR",
    year=2025,
)


@strategy("vasparse", paper=PAPER, off={"alpha": 0.0, "beta": 0.0, "keep": 1.0, "cut": 0.0})
class VASparse(Strategy):
    """Sparse attention that spares the picture, a penalty on sinks, a contrast with no layers."""

    alpha: float = param(0.1, "contrast with the embedding's own logits", ge=0)
    beta: float = param(0.1, "penalty on keys that receive much", ge=0)
    lam: float = param(0.1, "weight of the picture in the choice of keys", ge=0)
    keep: float = param(0.9, "share of keys that is kept", gt=0, le=1)
    cut: float = param(0.1, "plausibility cut-off", ge=0, le=1)

    def early(self, m: ModelInfo) -> Iterable[int]:
        """What enters the first layer."""
        return (0,)

    def attend(self, a: Attention) -> None:
        """Choose keys by raw scores, then penalise; requests without a picture are left alone."""
        every, seen = a.image | ~a.image, pictured(a)[..., None, None]
        kept = a.keys_at_first_token("prompt", lambda: self.prompt(a))  # [R, 2, H, N]
        sink, saliency = kept[:, 0, :, None], kept[:, 1, :, None]
        hidden = self.dropped(a.scores(every), saliency) & seen
        a.scale_scores(every, 1 + self.beta * (1 - sink) * seen)
        a.add_scores(every, lambda s: s.new_zeros(s.shape).masked_fill(hidden, -math.inf))

    def prompt(self, a: Attention) -> Tensor:
        """Float [R, 2, H, N]: w and P, softmax over the keys of a prompt."""
        import torch

        both = torch.stack([a.received(), a.paid(a.image)], 1)
        real = both[:, :1].sum(2, keepdim=True) > 0  # padding receives nothing
        return both.masked_fill(~real, -torch.inf).softmax(-1)

    def dropped(self, s: Tensor, saliency: Tensor) -> Tensor:
        """Bool [R, H, Q, N]: all but the S keys of largest value."""
        visible = s.isfinite()
        value = s.masked_fill(~visible, 0).square() + self.lam * saliency
        value = value.masked_fill(~visible, -1)
        most = (self.keep * visible.sum(-1, keepdim=True)).floor().clamp_min(1)
        return value.argsort(dim=-1, descending=True, stable=True).argsort(-1) >= most

    def combine(self, step: Step) -> Tensor:
        """VCD's rule against the embedding."""
        return step.plausible(contrast(step["main"], step.early(0), self.alpha), self.cut)
