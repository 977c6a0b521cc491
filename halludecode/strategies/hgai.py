"""HGAI: all heads look where the heads together look (Jiang et al., CVPR 2025).

    s_hj <- s_hj + alpha * mean over heads of |s_hj|         image keys, queries that emit a token

arXiv:2411.16724 ("Devils in Middle Layers"), heads guided attention intervention in the layers of
"visual information enrichment", 5..17 of 32. As PAI's addend, but one number for all heads of a
layer. The mean is over query heads; the official code has no grouped keys and edits row -1 of
batch 1, which is every emitting query here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from halludecode.core.strategy import ModelInfo, Paper, Strategy, param, strategy

if TYPE_CHECKING:
    from halludecode.core.attention import Attention

PAPER = Paper(
    arxiv="2411.16724",
    title="Devils in Middle Layers of Large Vision-Language Models: Interpreting, Detecting and "
    "Mitigating Object Hallucinations via Attention Lens",
    authors="Jiang, Zhangqi and Chen, Junkai and Zhu, Beier and Luo, Tingjin and Shen, Yankun and "
    "Yang, Xu",
    venue="CVPR",
    year=2025,
)


@strategy("hgai", paper=PAPER, off={"alpha": 0.0})
class HGAI(Strategy):
    """Raise image scores by the mean size that all heads give them."""

    alpha: float = param(0.5, "share of the heads' mean |score| that is added", ge=0)
    start: int = param(5, "of 32 layers, the first", ge=0, le=31)
    stop: int = param(18, "of 32 layers, the first that is left alone again", ge=1, le=32)

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """Layers start..stop-1 of 32, scaled; one at least."""
        return m.scaled_range(self.start, self.stop)

    def attend(self, a: Attention) -> None:
        """One addend for all heads."""
        a.add_scores(a.image, lambda s: self.alpha * s.abs().mean(1, keepdim=True))
