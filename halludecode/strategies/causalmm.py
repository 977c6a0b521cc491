"""CausalMM: contrast with rows whose attention, in tower or decoder, is counterfactual.

    z = (1 + 2 gamma) * l - gamma * (l_vision + l_language),   keep y with  p(y) >= beta * max p
    uniform: every visible key alike;   reversed: w' = (max w - w) / sum (max w - w)

Zhou et al., ICLR 2025, arXiv:2410.04780. l_vision is of a row whose vision tower attends that way
in all its layers, l_language of one whose decoder does. Random and shuffled maps of the paper are
not offered: they are drawn anew for each token. The released code has no edit of the decoder (its
README shows one that does not normalise uniform rows), returns two rows where its sampler for both
wants three, and multiplies the tower's output by a shuffled map, mean over heads, resized to the
patches, instead of attending with it; it lets the other row read the main row's cache. gamma
defaults to its 0.5, beta (epsilon) to its 0.1; the kind of map is our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.branch import Branch, Edit, TowerEdit
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views.tower import counterfactual, reversed_weights

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention
    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2410.04780",
    title="Mitigating Modality Prior-Induced Hallucinations in Multimodal Large Language Models "
    "via Deciphering Attention Causality",
    authors="Zhou, Guanyu and Yan, Yibo and Zou, Xin and Wang, Kun and Liu, Aiwei and Hu, Xuming",
    venue="ICLR",
    year=2025,
)


@strategy("causalmm", paper=PAPER, off={"gamma": 0.0, "beta": 0.0})
class CausalMM(Strategy):
    """Subtract what is said whatever is attended to."""

    gamma: float = param(0.5, "contrast strength of each row", ge=0)
    beta: float = param(0.1, "plausibility cut-off", ge=0, le=1)
    kind: str = param("uniform", "the counterfactual map", choices=("uniform", "reversed"))

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """One row for each place of the edit."""
        tower = TowerEdit("attention", Edit(counterfactual, (("kind", self.kind),)))
        return {"vision": Branch(prompt, tower=tower), "language": Branch(prompt)}

    def attend(self, a: Attention) -> None:
        """The decoder's counterfactual map, for every query."""
        every = a.image | ~a.image
        if self.kind == "uniform":
            a.add_scores(every, lambda s: -s, rows=("language",), queries="all")
        else:
            after = reversed_weights(a.weights(every, row="language")).log()
            change = after - a.scores(every, row="language")
            a.add_scores(every, change, rows=("language",), queries="all")

    def combine(self, step: Step) -> Tensor:
        """Both rows subtracted, under VCD's cut-off."""
        other = step["vision"] + step["language"]
        mixed = ((1 + 2 * self.gamma) * step["main"]).sub_(other, alpha=self.gamma)
        return step.plausible(mixed if self.gamma else step["main"], self.beta)
