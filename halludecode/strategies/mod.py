"""MoD: add or subtract what the most attended image tokens say (Chen et al., ACL Findings 2025).

    J = JSD(p_1(. | v), p_1(. | v')),   v' the share ``keep`` of image tokens most attended to
    z = l(v) + plus * l(v')                     for the whole answer, if J < gate  (attention right)
        (1 + minus) * l(v) - minus * l(v')      else                               (attention wrong)
    keep y with  p(y | v) >= beta * max p(. | v)

arXiv:2505.17061. Attention is the last prompt token's, summed over layers and heads, read once
before the answer; the features of all other image tokens are zero in the second row. J, in nats, is
that of the first token, so the second row runs from there on and never waits; the released code
clips probabilities at 5e-8 in it. The sum's net scale is 1 + plus: compare sampled results with a
temperature-matched baseline. ``plus`` and ``minus`` 0 without the cut-off are greedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.branch import Branch, Edit
from halludecode.core.logits import contrast, js
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views.attended import by_layer, by_picture, dimmed

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2505.17061",
    title="Mixture of Decoding: An Attention-Inspired Adaptive Decoding Strategy to Mitigate "
    "Hallucinations in Large Vision-Language Models",
    authors="Chen, Xinlong and Zhang, Yuanxing and Liu, Qiang and Wu, Junfei and Zhang, Fuzheng "
    "and Tan, Tieniu",
    venue="Findings of ACL",
    year=2025,
)


def attended(attention: Tensor, keep: float) -> Tensor:
    """Bool [N]: all but the int((1 - keep) N) least attended, from attention [n, N]."""
    order = attention.sum(0).argsort(stable=True)
    return order.argsort() >= int(attention.shape[1] * (1 - keep))


@strategy("mod", paper=PAPER, off={"plus": 0.0, "minus": 0.0, "beta": 0.0})
class MoD(Strategy):
    """Trust attention where its own tokens agree, contrast with them where they do not."""

    plus: float = param(4.0, "weight of the attended tokens where they agree", ge=0)
    minus: float = param(1.0, "contrast strength where they do not", ge=0)
    beta: float = param(0.5, "plausibility cut-off", ge=0, le=1)
    keep: float = param(0.2, "share of image tokens the second row sees", gt=0, le=1)
    gate: float = param(0.05, "divergence of the first token below which they agree", ge=0)

    fetch = ("kept",)

    def activations(self, prompt: Prompt, m: ModelInfo) -> Mapping[str, ActivationRequest]:
        """Every layer's attention to the image."""
        every = m.attending(range(m.num_layers))
        return {"prompt": ActivationRequest(prompt, image=every)} if prompt.pictures else {}

    def prepare(self, activations: Mapping[str, Activations], m: ModelInfo) -> State:
        """Which tokens are attended to, a bool [N] per picture."""
        seen = activations.get("prompt")
        return {"kept": by_picture(attended(by_layer(seen), self.keep), seen)} if seen else {}

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same prompt with the attended tokens' features alone."""
        return {"attended": Branch(prompt, features=Edit(dimmed, use=("kept",)))}

    def combine(self, step: Step) -> Tensor:
        """One of two rules, as the first token chose."""
        main, other = step["main"], step["attended"]
        agree = js(step.first(), step.first("attended"))[:, None] < self.gate
        mixed = (main + self.plus * other).where(agree, contrast(main, other, self.minus))
        return step.plausible(mixed, self.beta)
