"""CAAC: even out attention over the picture, and raise it when unsure (Fazli et al., WACV 2026).

    VTC   s_j <- s_j (1 - beta + beta mean(w) / w_j)        image keys, layers 0..9, rows after it
    AAR   s_j <- s_j (p + (1 - p) lam)  where  p <= theta   image keys, every layer, written tokens

arXiv:2505.21472. w: attention on a white picture under meaningless words, by layer and head, in a
pass remembered by the picture's size. p: the last token's largest probability; the code has it of
one forward and writes from a second, without a KV cache, so that earlier rows get the new factor
too; here a row keeps its own. It averages VTC over three words' rows; here the last one's counts.
Raw scores are multiplied: those below 0 fall, and near w_j = 0 VTC is boundless, there and here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.state import PerImageToken
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views.white import white

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention

WORDS = "nana pina sequ zuta rupi"  # of experiments/run_chair.py
PAPER = Paper(
    arxiv="2505.21472",
    title="Mitigating Hallucination in Large Vision-Language Models via Adaptive Attention "
    "Calibration",
    authors="Fazli, Mehrdad and Wei, Bowen and Sari, Ahmet and Zhu, Ziwei",
    venue="WACV",
    year=2026,
)


def evened(w: Tensor, beta: float) -> Tensor:
    """Factors [.., N] that would move attention w [.., N] to its mean by a share ``beta``."""
    return 1 - beta + beta * w.mean(-1, keepdim=True) / w.clamp_min(1e-12)


@strategy("caac", paper=PAPER, off={"beta": 0.0, "lam": 1.0})
class CAAC(Strategy):
    """Visual-token calibration and adaptive attention re-scaling."""

    beta: float = param(0.7, "share of the way to even attention on a white picture", ge=0, le=1)
    lam: float = param(1.5, "factor on image scores at no confidence", ge=1)
    theta: float = param(0.25, "confidence above which nothing is raised", ge=0, le=1)
    depth: int = param(10, "of 32 layers, how many from the first are calibrated", ge=1, le=32)

    def _even(self, m: ModelInfo) -> range:
        return range(max(m.scaled(self.depth), 1))

    def activations(self, prompt: Prompt, m: ModelInfo) -> Mapping[str, ActivationRequest]:
        """White pictures in place of the prompt's own."""
        if not prompt.pictures:
            return {}
        blank = prompt.replace_pictures([white(p) for p in prompt.pictures])
        request = ActivationRequest(blank.with_instruction(WORDS), image=(*self._even(m),))
        return {"white": request}

    def prepare(self, activations: Mapping[str, Activations], m: ModelInfo) -> State:
        """Factors [layers, H, N_img], a picture at a time."""
        import torch

        seen = activations.get("white", Activations())
        if seen.image is None:
            return {"even": PerImageToken(torch.ones(len(self._even(m)), m.num_heads, 0))}
        each = torch.split(seen.image, list(seen.image_counts), -1)
        return {"even": PerImageToken(torch.cat([evened(w, self.beta) for w in each], -1))}

    def attend(self, a: Attention) -> None:
        """Raise by the last token's confidence, then even out."""
        p = a.confidence[:, None, :, None]
        raised = (p + (1 - p) * self.lam).where(p <= self.theta, 1.0)
        a.scale_scores(a.image, raised, queries="generated")
        if a.layer in self._even(a.m):
            a.scale_scores(a.image, a.key("even")[:, a.layer, :, None], queries="after_image")
