"""FLB: keep what the first token saw of the image (Ha et al., CVPR 2026, arXiv:2604.00455).

    z_t = l_t + gamma * (1 - exp(-lam * (t - 1))) * l_1,   keep y with  p_t(y) >= beta * max p_t

l_1 are the logits of the first token, which nothing written has pulled away from the image yet; t
counts from 1. One row, one forward: nothing is read twice. The net scale grows from 1 to 1 + gamma:
compare sampled results with a temperature-matched baseline. The released code adds l_1 after its
processors banned tokens; here it is what the model gave. Words that can open an answer gain most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from halludecode.core.strategy import Paper, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2604.00455",
    title="First Logit Boosting: Visual Grounding Method to Mitigate Object Hallucination in Large "
    "Vision-Language Models",
    authors="Ha, Jiwoo and Baek, Jongwoo and So, Jinhyun",
    venue="CVPR",
    year=2026,
)


@strategy("flb", paper=PAPER, off={"gamma": 0.0, "beta": 0.0})
class FLB(Strategy):
    """Add the first token's logits to all later ones, more the longer the text."""

    gamma: float = param(0.3, "weight of the first logits in the long run", ge=0)
    lam: float = param(0.05, "rate at which their weight grows with t", ge=0)
    beta: float = param(0.1, "plausibility cut-off", ge=0, le=1)

    def combine(self, step: Step) -> Tensor:
        """What is said now plus what was seen first."""
        weight = self.gamma * (1 - (-self.lam * (step.t - 1)).exp())
        return step.plausible(step["main"] + weight * step.first(), self.beta)
