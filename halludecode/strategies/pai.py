"""PAI: turn attention to the image up and the language prior down (Liu et al., ECCV 2024).

    s_j <- s_j + alpha * |s_j|          image keys, queries that emit a token, layers 2..L-1
    z = gamma * l(v) - (gamma - 1) * l(no image),   keep y with  p(y | v) >= beta * max p(. | v)

arXiv:2407.21771. l is log-softmax; the image-free row is the plain model. The official code's
refinement leaves its first token without the attention edit, so that one-word answers never get it;
here every emitted token does. ``gamma=1`` leaves out the row and the mask. The edit depends on the
size of a model's scores: alpha does not carry over from one model to another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from halludecode.core.branch import Branch
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention
    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2407.21771",
    title="Paying More Attention to Image: A Training-Free Method for Alleviating Hallucination "
    "in LVLMs",
    authors="Liu, Shi and Zheng, Kecheng and Chen, Wei",
    venue="ECCV",
    year=2024,
)


@strategy("pai", paper=PAPER, off={"alpha": 0.0, "gamma": 1.0})
class PAI(Strategy):
    """Raise image scores before softmax, then subtract what the text alone says."""

    alpha: float = param(0.5, "share of |score| added to image keys", ge=0)
    gamma: float = param(1.1, "guidance away from the image-free row; 1 is none", ge=1)
    beta: float = param(0.1, "plausibility cut-off", ge=0, le=1)

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """From layer 2, where the first token has become a sink, at any depth."""
        return range(2, m.num_layers)

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same prompt without the image."""
        return {} if self.gamma == 1 else {"blind": Branch(prompt.without_images())}

    def attend(self, a: Attention) -> None:
        """Scores of either sign rise."""
        a.add_scores(a.image, lambda s: self.alpha * s.abs())

    def combine(self, step: Step) -> Tensor:
        """Guidance on log-probabilities, under the plausibility mask."""
        if self.gamma == 1:
            return step["main"]
        seen, blind = step["main"].log_softmax(-1), step["blind"].log_softmax(-1)
        return step.plausible(seen.mul_(self.gamma).sub_(blind, alpha=self.gamma - 1), self.beta)
