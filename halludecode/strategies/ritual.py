"""RITUAL: add what a randomly transformed image says (Woo et al., arXiv:2405.17821).

    z = l(v) + alpha * l(T(v)),   keep y with  p(y | v) >= beta * max p(. | v)

T is one of six ordinary transforms (`views.transforms`), drawn once per picture; ``draw`` asks for
another draw. The rule's net scale is 1 + alpha: compare sampled results with a temperature-matched
baseline, or set ``normalise``. With VCD the increments add up under one mask; the official code
accepts both and runs only one of them. Flips break questions about left and right, a crop may lose
the object; the model's own choice of a transform (RITUAL+) is not in the released code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.branch import Branch, Edit
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views.transforms import transformed

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2405.17821",
    title="RITUAL: Random Image Transformations as a Universal Anti-hallucination Lever in Large "
    "Vision Language Models",
    authors="Woo, Sangmin and Jang, Jaehyuk and Kim, Donguk and Choi, Yubin and Kim, Changick",
    venue="arXiv preprint",
    year=2024,
)


@strategy("ritual", paper=PAPER, off={"alpha": 0.0, "beta": 0.0})
class RITUAL(Strategy):
    """Sum of the picture and one random view of it."""

    alpha: float = param(3.0, "weight of the transformed view", ge=0)
    beta: float = param(0.1, "plausibility cut-off", ge=0, le=1)
    normalise: bool = param(False, "divide by 1 + alpha, which keeps the temperature")
    draw: int = param(0, "which random draw of the transform", ge=0)

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same prompt with transformed pictures."""
        return {"transformed": Branch(prompt, images=Edit(transformed, draw=self.draw))}

    def combine(self, step: Step) -> Tensor:
        """Main plus alpha times transformed, under the plausibility mask."""
        mixed = step["main"].add(step["transformed"], alpha=self.alpha)
        return step.plausible(mixed / (1 + self.alpha) if self.normalise else mixed, self.beta)
