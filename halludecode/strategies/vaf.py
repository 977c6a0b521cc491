"""VAF: louder image, quieter system prompt in the middle layers (Yin et al., CVPR 2025).

    s_j <- (1 + alpha) s_j  (image keys),   (1 - beta) s_j  (keys before it),   before softmax
    all heads, layers 9..14 of 32, queries that are text after the image or generated

arXiv:2503.13107 (ClearSight). The factors multiply raw scores, so a key of negative score gets
*less* attention from a factor above 1: "amplification" is a sharpening, as in the official code.
Its factors are 1.15 and 0.95; the paper's beta is quoted as 0.10. Its lengths of system prompt and
image are written in (35, 576); here they are what they are, in every family and in batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from halludecode.core.strategy import ModelInfo, Paper, Strategy, param, strategy

if TYPE_CHECKING:
    from halludecode.core.attention import Attention

PAPER = Paper(
    arxiv="2503.13107",
    title="ClearSight: Visual Signal Enhancement for Object Hallucination Mitigation in "
    "Multimodal Large Language Models",
    authors="Yin, Hao and Si, Guangzong and Wang, Zilei",
    venue="CVPR",
    year=2025,
)


@strategy("vaf", paper=PAPER, off={"alpha": 0.0, "beta": 0.0})
class VAF(Strategy):
    """Multiply raw scores on image and system keys where image and text are fused."""

    alpha: float = param(0.15, "1 + alpha is the factor on image scores", ge=0)
    beta: float = param(0.05, "1 - beta is the factor on scores of keys before the image", ge=0)
    start: int = param(9, "of 32 layers, the first", ge=0, le=31)
    stop: int = param(15, "of 32 layers, the first that is left alone again", ge=1, le=32)

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """Layers start..stop-1 of 32, scaled; one at least."""
        return m.scaled_range(self.start, self.stop)

    def attend(self, a: Attention) -> None:
        """Scores of either sign move away from zero, or towards it."""
        a.scale_scores(a.image, 1 + self.alpha, queries="after_image")
        a.scale_scores(a.system, 1 - self.beta, queries="after_image")
