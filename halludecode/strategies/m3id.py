"""M3ID: add the mutual information of token and image (Favero et al., CVPR 2024, arXiv:2403.14003).

    z_t = l_c + 1[max p_c < gate] * (1 - gamma_t) / gamma_t * (l_c - l_u),   gamma_t = exp(-lam * t)

l_c and l_u are log-softmax with and without the image, t counts from 1, so the weight is
e^(lam t) - 1. There is no official code; constants follow two independent re-implementations.
RITUAL's and AvisC's tables use an ungated variant (``gate=1``), with t from 0 in RITUAL's. A closed
gate returns l_c.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.branch import Branch
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2403.14003",
    title="Multi-Modal Hallucination Control by Visual Information Grounding",
    authors="Favero, Alessandro and Zancato, Luca and Trager, Matthew and Choudhary, Siddharth and "
    "Perera, Pramuditha and Achille, Alessandro and Swaminathan, Ashwin and Soatto, Stefano",
    venue="CVPR",
    year=2024,
)


@strategy("m3id", paper=PAPER, off={"lam": 0.0})
class M3ID(Strategy):
    """Reward what the image adds, more the longer the text."""

    lam: float = param(0.02, "rate at which the image's weight grows with t", ge=0)
    gate: float = param(0.3, "act only where max p is below this; 1 always acts", gt=0, le=1)
    cap: float | None = param(None, "largest weight (unbounded in the paper)", ge=0)

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same prompt without the image."""
        return {"blind": Branch(prompt.without_images())}

    def decided(self, step: Step) -> Tensor | None:
        """Where the gate is closed."""
        return ~self.shaky(step["main"].log_softmax(-1))[:, 0] if self.gate < 1 else None

    def shaky(self, l_c: Tensor) -> Tensor:
        """Bool [B, 1]: whether the gate is open."""
        return l_c.amax(-1, keepdim=True) < math.log(self.gate)

    def combine(self, step: Step) -> Tensor:
        """Equation 5, gated."""
        l_c = step["main"].log_softmax(-1)
        l_u = step["blind"].log_softmax(-1)
        weight = (self.lam * step.t).exp() - 1
        weight = weight if self.cap is None else weight.clamp(max=self.cap)
        shaky = self.shaky(l_c) if self.gate < 1 else weight >= 0
        information = l_u.neg_().add_(l_c).nan_to_num_(nan=0, neginf=0)  # 0 for banned tokens
        return information.mul_(shaky * weight).add_(l_c)
