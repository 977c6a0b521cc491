"""ONLY: contrast with one layer's text-minded heads (Wan et al., ICCV 2025, arXiv:2507.00898).

    w' = w but 0 where w_j > mean + std, over image keys and over text keys;  H: entropy of w' / sum
    o = W_O [w'_h V_h where H_h(text) / H_h(image) >= the heads' mean, else 0],   layer ``layer``
    l' = head(n(h + FFN(n'(h))) + 0.5 n(x_L)),   h = n''(o) + 0.2 x_{L-1},   n', n'', FFN of layer L
    z = l + plus * l'  if  sum |p - p'| < gate,  else  (1 + minus) * l - minus * l'
    keep y with  p(y) >= beta * max p

The newest token's branch of one layer goes straight to the last layer's FFN: no row, no second
forward. Text are keys that are no image, the first one left out, as in the code for LLaVA; its copy
for InstructBLIP leaves out n'' (``normed=False``), counts the first key and reads scores without
the causal mask. The code's default gate is 0.1, its scripts have 0.2 (POPE) and 0.25 (CHAIR, MME),
see the presets. The net scale is 1 + plus or 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from halludecode.core.logits import contrast
from halludecode.core.strategy import ModelInfo, Paper, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention
    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2507.00898",
    title="ONLY: One-Layer Intervention Sufficiently Mitigates Hallucinations in Large "
    "Vision-Language Models",
    authors="Wan, Zifu and Zhang, Ce and Yong, Silong and Ma, Martin Q. and Stepputtis, Simon and "
    "Morency, Louis-Philippe and Ramanan, Deva and Sycara, Katia and Xie, Yaqi",
    venue="ICCV",
    year=2025,
)


def trimmed(w: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [.., N] of a mask but the largest, and their entropy [..], nan where none is left."""
    count = mask.sum(-1, keepdim=True)
    mean = (w * mask).sum(-1, keepdim=True) / count
    std = ((w - mean).square() * mask).sum(-1, keepdim=True).div(count - 1).sqrt()
    kept = w * (mask & ~(w > mean + std))
    share = kept / kept.sum(-1, keepdim=True)
    return kept, -(share * (share + 1e-6).log()).sum(-1)


@strategy("only", paper=PAPER, off={"plus": 0.0, "minus": 0.0, "beta": 0.0})
class ONLY(Strategy):
    """Add or subtract what the text-minded heads of one layer say."""

    plus: float = param(3.0, "weight of the branch where both agree", ge=0)
    minus: float = param(1.0, "contrast strength where they do not", ge=0)
    beta: float = param(0.1, "plausibility cut-off", ge=0, le=1)
    gate: float = param(0.1, "sum of |p - p'| below which they agree, of 2", ge=0, le=2)
    layer: int = param(0, "of 32 layers, the one that branches off", ge=0, le=31)
    normed: bool = param(True, "whether the last layer's input norm comes before the sum")

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """One."""
        return [min(m.scaled(self.layer), m.num_layers - 1)]

    def attend(self, a: Attention) -> None:
        """Heads that are less spread over text than over the image, to the mean, are left out."""
        w, first = a.weights(a.image | ~a.image)[:, :, -1], a.first.of("main")[:, None]
        text, over_text = trimmed(w, (a.system | a.text).of("main")[:, None] & ~first)
        seen, over_image = trimmed(w, a.image.of("main")[:, None])
        ratio = over_text.nan_to_num(0) / over_image.nan_to_num(float("inf"))
        chosen = ratio >= ratio.mean(-1, keepdim=True)
        a.branch_off((text + seen + w * first) * chosen[..., None])

    def combine(self, step: Step) -> Tensor:
        """One of two rules, as far as both are apart."""
        main, other = step["main"], step.branch(0.2, 0.5, normed=self.normed)
        agree = (main.softmax(-1) - other.softmax(-1)).abs().sum(-1, keepdim=True) < self.gate
        mixed = (main + self.plus * other).where(agree, contrast(main, other, self.minus))
        return step.plausible(mixed, self.beta)
