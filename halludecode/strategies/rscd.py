"""RSCD: subtract what is said without the picture asked about (Park et al., arXiv:2603.23934).

    z = (1 + alpha) * l(v) - alpha * l(v without r),   keep y with  p(y | v) >= beta * max p(. | v)

Reference Shift Contrastive Decoding, for questions about one of several pictures: r is the picture
that the question names by its number ("image 2", "the first picture", "the last view"), and all
pictures where it names none or only one is given. Read in the abstract alone: no code is public,
and alpha and beta are VCD's. The paper masks r in attention, which keeps positions; here r is left
out of the second row's prompt, which both engines do and which costs less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.branch import Branch
from halludecode.core.logits import contrast
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views.named import named

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2603.23934",
    title="Revealing Multi-View Hallucination in Large Vision-Language Models",
    authors="Park, Wooje and Lee, Insu and Kim, Soohyun and Jang, Jaeyun and Noh, Minyoung and "
    "Shim, Kyuhong and Shim, Byonghyo",
    venue="arXiv preprint",
    year=2026,
)


@strategy("rscd", paper=PAPER, off={"alpha": 0.0, "beta": 0.0})
class RSCD(Strategy):
    """Subtract what the other pictures alone would make the model say."""

    alpha: float = param(1.0, "contrast strength", ge=0)
    beta: float = param(0.1, "plausibility cut-off", ge=0, le=1)

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The prompt without the named pictures, without any where none is named."""
        asked = named(prompt.question, len(prompt.pictures)) or None
        return {"shifted": Branch(prompt.without_images(asked))}

    def combine(self, step: Step) -> Tensor:
        """VCD's rule."""
        mixed = contrast(step["main"], step["shifted"], self.alpha)
        return step.plausible(mixed, self.beta)
