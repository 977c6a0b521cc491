"""APC alone: the plausibility mask of contrastive methods without any contrast; a control.

    z = l(v)   on tokens with  p(y | v) >= beta * max p(. | v),   -inf elsewhere

Under greedy decoding it changes nothing; under sampling it removes the tail, which accounts for
much of what contrastive methods are credited with (Yin et al., arXiv:2504.10020).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from halludecode.core.strategy import Paper, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2504.10020",
    title="The Mirage of Performance Gains: Why Contrastive Decoding Fails to Mitigate Object "
    "Hallucinations in MLLMs?",
    authors="Yin, Hao and Si, Guangzong and Wang, Zilei",
    venue="arXiv preprint",
    year=2025,
)


@strategy("apc_only", paper=PAPER, off={"beta": 0.0})
class APCOnly(Strategy):
    """Mask implausible tokens, contrast nothing."""

    beta: float = param(0.1, "plausibility cut-off", ge=0, le=1)

    def combine(self, step: Step) -> Tensor:
        """Logits of the main row, implausible tokens banned."""
        return step.plausible(step["main"], self.beta)
