"""DoLa: subtract the layer that differs most from the last one (Chuang et al., ICLR 2024).

    q_l = softmax(head(h_l)),   M = (q_N + q_l) / 2,   D(l) = mean_w M ln(M / q_N) + M ln(M / q_l)
    z = log q_N - log q_{l*},   l* = argmax_l D(l),    keep y with  q_N(y) >= beta * max q_N

arXiv:2309.03883. The official code averages KL(M || .) over the vocabulary where the paper prints
the Jensen-Shannon divergence (``divergence="jsd"``); it and this file leave out the final norm
before the head, and here every row chooses its own layer (the code lets a batch share one).
``strength`` is the share of the increment z - log q_N that is applied. The net scale of the rule is
0: prefer greedy decoding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from halludecode.core.logits import js
from halludecode.core.strategy import ModelInfo, Paper, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2309.03883",
    title="DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models",
    authors="Chuang, Yung-Sung and Xie, Yujia and Luo, Hongyin and Kim, Yoon and Glass, James and "
    "He, Pengcheng",
    venue="ICLR",
    year=2024,
)


def divergence(last: Tensor, early: Tensor, kind: str) -> Tensor:
    """[.., B]: how far apart two log-softmaxes [.., B, V] are, by the code or as printed (jsd)."""
    if kind == "jsd":
        return js(last, early)
    middle = ((last.exp() + early.exp()) / 2).clamp_min(1e-30)
    return (middle * (2 * middle.log() - last - early)).nan_to_num().mean(-1) / 2


def tried(bucket: str, m: ModelInfo) -> range:
    """Every second layer of one half; of one end in models deeper than 40 layers."""
    reach = m.num_layers // 2 if m.num_layers <= 40 else 20
    first = 0 if bucket == "low" else m.num_layers - reach
    return range(first, first + reach, 2)


@strategy("dola", paper=PAPER, off={"strength": 0.0, "beta": 0.0})
class DoLa(Strategy):
    """Contrast the last layer with the early layer that disagrees most."""

    bucket: str = param("high", "which half of the layers is tried", choices=("low", "high"))
    beta: float = param(0.1, "plausibility cut-off (relative top)", ge=0, le=1)
    divergence: str = param("code", "how layers are compared", choices=("code", "jsd"))
    strength: float = param(1.0, "share of the increment that is applied", ge=0)

    def early(self, m: ModelInfo) -> Iterable[int]:
        """See `tried`."""
        return tried(self.bucket, m)

    def combine(self, step: Step) -> Tensor:
        """Log-ratio to the layer chosen for each row, where the cut leaves a choice."""
        import torch

        scores = step["main"].log_softmax(-1).clamp_min_(-1e3)  # a banned token stays finite here
        for at, logits in step.early_blocks(step.undecided(self.beta)):
            last, early = scores[at], logits.log_softmax(-1)  # [b, V], [L, b, V]
            apart = torch.stack([divergence(last, each, self.divergence) for each in early])
            chosen = apart.argmax(0)  # [b]
            premature = early[chosen, torch.arange(len(at), device=at.device)]
            scores[at] = last - self.strength * premature
        return step.plausible(scores, self.beta)
