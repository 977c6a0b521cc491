"""VaLiD: contrast with a mix of what the tower's other layers show (Wang et al., 2024).

    w_k = softmax over k of H(p_k),   r = sum over the ``top`` largest w_k of w_k * l_k
    z = (1 + alpha) * l - alpha * r,  keep y with  p(y) >= beta * max p

arXiv:2411.15839. l_k is what the model says of the state after layer k of the vision tower; H is
entropy, in nats, so the least sure layers count most. The weights of the kept ones are not made to
sum to 1, as in the official code. It takes hidden states 11, 13, .. 23, 24 of LLaVA's 24 layers;
23 is the one LLaVA reads, whose row is the main row here, and 24 lies behind it and is left out.
Its rows share one key/value cache by mistake, so that all but layer 11's read the newest token
behind layer 11's picture; here each has its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from halludecode.core.branch import Branch
from halludecode.core.logits import contrast, entropy
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views.tower import shallow, tower_of

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2411.15839",
    title="VaLiD: Mitigating the Hallucination of Large Vision Language Models by Visual Layer "
    "Fusion Contrastive Decoding",
    authors="Wang, Jiaqi and Gao, Yifei and Sang, Jitao",
    venue="arXiv",
    year=2024,
)


def fused(logits: Sequence[Tensor], top: int) -> Tensor:
    """[B, V]: the ``top`` least sure of some [B, V], by softmax of their entropies over all."""
    import torch

    stacked = torch.stack(list(logits))  # [K, B, V]
    weights = entropy(stacked).softmax(0)
    least = weights.topk(min(top, len(weights)), dim=0).values[-1]
    return ((weights * (weights >= least))[..., None] * stacked).sum(0)


@strategy("valid", paper=PAPER, off={"alpha": 0.0, "beta": 0.0})
class VaLiD(Strategy):
    """Subtract the least sure readings of the picture."""

    alpha: float = param(0.5, "contrast strength", ge=0)
    beta: float = param(0.1, "plausibility cut-off", ge=0, le=1)
    top: int = param(5, "layers that are mixed, the least sure ones", ge=1)
    depths: tuple[int, ...] | None = param(
        None, "vision layers read; None is every second from 11/24 of the tower on"
    )

    def read(self, m: ModelInfo) -> list[int]:
        """Vision layers with a row of their own."""
        tower = tower_of(m)
        first = min(round(tower.layers * 11 / 24), tower.read_layers - 1)
        depths = range(first, tower.read_layers, 2) if self.depths is None else self.depths
        return sorted({depth for depth in depths if depth < tower.read_layers})

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same prompt with the features of one layer each."""
        return {f"layer{d}": Branch(prompt, tower=shallow(d, m)) for d in self.read(m)}

    def combine(self, step: Step) -> Tensor:
        """VCD's rule; the main row is one of those that are mixed."""
        mixed = fused([step[name] for name in step.rows], self.top)
        return step.plausible(contrast(step["main"], mixed, self.alpha), self.beta)
