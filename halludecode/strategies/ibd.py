"""IBD: move towards a row that looks harder at the image (Zhu et al., CVPR Workshops 2025).

    s_j <- s_j + epsilon / sqrt(d)          image keys, every layer and query of a second row: l^
    z = l + alpha I (l^ - l),   I = min(1, J / full),   J = JSD(p, p^) in nats
    keep y with  p(y) >= beta * max p

arXiv:2402.18476. No code of it could be read. The less both rows differ the less their difference
is trusted, as in the paper; the shape of I, ``full`` (0: I = 1) and alpha are ours, and epsilon is
quoted second-hand. Left out: the second half of I, which tells content words from function words,
and the prompt that the paper tunes for the second row; without it nothing is trained. The bias is
the same number for all image keys, so it depends on the size of a model's scores. At alpha = 1 and
I = 1 this is the biased row alone, under the plain row's cut-off. The net scale is 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.branch import Branch
from halludecode.core.logits import js
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention
    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2402.18476",
    title="IBD: Alleviating Hallucinations in Large Vision-Language Models via Image-Biased "
    "Decoding",
    authors="Zhu, Lanyun and Ji, Deyi and Chen, Tianrun and Xu, Peng and Ye, Jieping and Liu, Jun",
    venue="CVPR Workshops",
    year=2025,
)


@strategy("ibd", paper=PAPER, off={"alpha": 0.0, "beta": 0.0})
class IBD(Strategy):
    """Add what more attention to the image would change."""

    alpha: float = param(1.0, "weight of the difference at full trust", ge=0)
    epsilon: float = param(2.0, "added to image scores before they are divided by sqrt(d)", ge=0)
    full: float = param(0.05, "divergence of full trust, in nats; 0 trusts always", ge=0, le=0.69)
    beta: float = param(0.1, "plausibility cut-off", ge=0, le=1)

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same prompt; `attend` makes the difference."""
        return {"biased": Branch(prompt)}

    def attend(self, a: Attention) -> None:
        """Every image score of the second row rises by one number."""
        bias = self.epsilon / math.sqrt(a.m.head_dim)
        a.add_scores(a.image, bias, rows=("biased",), queries="all")

    def combine(self, step: Step) -> Tensor:
        """The difference, trusted by the divergence of both rows."""
        main, biased = step["main"], step["biased"]
        apart = js(main, biased)[:, None]
        trust = (apart / self.full).clamp(0, 1) if self.full else apart * 0 + 1
        gap = (biased - main).nan_to_num(0, posinf=0, neginf=0)  # a banned token stays banned
        return step.plausible(main + self.alpha * trust * gap, self.beta)
