"""PAINT: more attention to the image tokens that the vision tower marks (Arif et al., 2025).

    local   = the share ``top`` of largest CLS attention in the tower's first layer
    summary = those whose CLS attention in the layer read is > Q3 + 1.5 (Q3 - Q1); never local
    s_j <- s_j + alpha |s_j| (local), + beta |s_j| (summary)     layers 2..L-1, emitting queries

arXiv:2501.12206, first posted as "Fixing Imbalanced Attention to Mitigate In-Context Hallucination
of Large Vision-Language Model". The paper boosts heads by sensitivity; the released code does not,
nor does this. Its optional spatial set ranks sums of softmax rows, all 1: chance, and left out.
PAI's guidance, optional there, is ``paint+pai(alpha=0)``. Without a CLS token towers rank by mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.state import PerImageToken
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention

PAPER = Paper(
    arxiv="2501.12206",
    title="PAINT: Paying Attention to INformed Tokens to Mitigate Hallucination in Large "
    "Vision-Language Model",
    authors="Arif, Kazi Hasan Ibn and Dip, Sajib Acharjee and Hussain, Khizar and others",
    venue="arXiv",
    year=2025,
)


def informed(first: Tensor, last: Tensor, top: float) -> tuple[Tensor, Tensor]:
    """Bool [N] local and summary tokens, from attention received in two layers, float [N] each."""
    import torch

    q1, q3 = torch.quantile(last, torch.tensor([0.25, 0.75], dtype=last.dtype))
    summary = last > q3 + 1.5 * (q3 - q1)
    local = torch.zeros_like(summary)
    local[torch.topk(first, int(top * len(first) + 1e-9))[1]] = True
    return local & ~summary, summary


@strategy("paint", paper=PAPER, off={"alpha": 0.0, "beta": 0.0})
class PAINT(Strategy):
    """Raise the scores of local and summary image tokens, each by its own share."""

    alpha: float = param(0.7, "share of |score| added to local tokens", ge=0)
    beta: float = param(0.3, "share of |score| added to summary tokens", ge=0)
    top: float = param(0.25, "share of a picture's tokens that are local", ge=0, le=1)

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """From layer 2, as PAI."""
        return range(2, m.num_layers)

    def activations(self, prompt: Prompt, m: ModelInfo) -> Mapping[str, ActivationRequest]:
        """Attention in the tower's first layer and in the one whose output is read."""
        seen = m.vision if prompt.pictures else None
        layers = (0, seen.feature_layer % seen.layers) if seen else ()
        return {"tower": ActivationRequest(prompt, vision=layers)} if layers else {}

    def prepare(self, activations: Mapping[str, Activations], m: ModelInfo) -> State:
        """alpha, beta or 0 for every image token."""
        import torch

        tower = activations.get("tower", Activations())
        if tower.vision is None:
            return {"gain": PerImageToken(torch.zeros(()))}
        each = [torch.split(x, [*tower.image_counts]) for x in tower.vision.sum(1)]  # a picture [N]
        sets = (informed(first, last, self.top) for first, last in zip(*each, strict=True))
        gains = [self.alpha * local.float() + self.beta * summary for local, summary in sets]
        return {"gain": PerImageToken(torch.cat(gains))}

    def attend(self, a: Attention) -> None:
        """Scores of either sign rise."""
        a.add_scores(a.image, lambda s: a.key("gain")[:, None, None] * s.abs())
