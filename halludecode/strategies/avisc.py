"""AvisC: subtract what the model says of its blind tokens alone (Woo et al., ACL Findings 2025).

    layers: the largest shares of image attention, until they sum to gamma; A their mean over tokens
    blind:  A >= mean(A) + lam * std(A);   v' has the features of all other image tokens at zero
    z = (1 + alpha) * l(v) - alpha * l(v'),   keep y with  p(y | v) >= beta * max p(. | v)

arXiv:2405.17820. Attention is the last prompt token's, mean over heads, read once before the
answer; the deviation has n - 1 in its divisor. Scripts take alpha from 1 to 3 by benchmark (see the
presets), lam 1 where the argument's default is 0.99, and run at sampling; a row of scores that are
not numbers falls back to the main row there, an error here. A choice covers all pictures together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.branch import Branch, Edit
from halludecode.core.logits import contrast
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views.attended import by_layer, by_picture, dimmed

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2405.17820",
    title="Don't Miss the Forest for the Trees: Attentional Vision Calibration for Large Vision "
    "Language Models",
    authors="Woo, Sangmin and Kim, Donguk and Jang, Jaehyuk and Choi, Yubin and Kim, Changick",
    venue="Findings of ACL",
    year=2025,
)


def blind(attention: Tensor, gamma: float, lam: float) -> Tensor:
    """Bool [N]: blind tokens, from the attention of every layer [n, N] on the image."""
    share, order = (attention.sum(-1) / attention.sum()).sort(descending=True)
    count = int((share.cumsum(0) < gamma).sum()) + 1
    seen = attention[order[:count]].mean(0)
    return seen >= seen.mean() + lam * seen.std()


@strategy("avisc", paper=PAPER, off={"alpha": 0.0, "beta": 0.0})
class AvisC(Strategy):
    """Subtract what is said of tokens that are looked at whatever is asked."""

    alpha: float = param(1.0, "contrast strength", ge=0)
    beta: float = param(0.1, "plausibility cut-off", ge=0, le=1)
    gamma: float = param(0.5, "share of image attention that chooses the layers", gt=0, le=1)
    lam: float = param(1.0, "deviations above the mean that make a token blind")

    fetch = ("kept",)

    def activations(self, prompt: Prompt, m: ModelInfo) -> Mapping[str, ActivationRequest]:
        """Every layer's attention to the image."""
        every = m.attending(range(m.num_layers))
        return {"prompt": ActivationRequest(prompt, image=every)} if prompt.pictures else {}

    def prepare(self, activations: Mapping[str, Activations], m: ModelInfo) -> State:
        """Which tokens are blind, a bool [N] per picture."""
        if not activations:
            return {}
        seen = activations["prompt"]
        return {"kept": by_picture(blind(by_layer(seen), self.gamma, self.lam), seen)}

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same prompt with the blind tokens' features alone."""
        return {"blind tokens": Branch(prompt, features=Edit(dimmed, use=("kept",)))}

    def combine(self, step: Step) -> Tensor:
        """VCD's rule."""
        return step.plausible(contrast(step["main"], step["blind tokens"], self.alpha), self.beta)
