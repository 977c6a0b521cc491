"""MemVR: look at the picture twice, where an early layer is unsure (Zou et al., ICML 2025).

    e_l = H(softmax(ten largest of head(norm(h_l)))) / ln 10        the last token's, after layer l
    first layer l in (start, end) with e_l > tau:   in layer l + 1, all tokens of this forward,
    FFN(x) <- (1 - ratio) FFN(x) + ratio mean|FFN(x)| / mean|A(x)| A(x),      A(x) = (x V^T) V

arXiv:2410.03577. V are the image tokens as they enter the decoder, x is what the FFN reads; the two
scales that the code gives V and V^T cancel in A's own mean. One layer at most in a forward, in the
prompt's too, each request by itself: the code's means run over its batch, padding included (ours
over a request's tokens), it keeps the last picture alone (ours all of the prompt) and decodes every
layer, where only those in reach matter. Ten layers of 32 are decoded for every token; nothing waits
for the outcome.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from halludecode.core.strategy import ModelInfo, Paper, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.residual import ResidualStream

PAPER = Paper(
    arxiv="2410.03577",
    title="Look Twice Before You Answer: Memory-Space Visual Retracing for Hallucination "
    "Mitigation in Multimodal Large Language Models",
    authors="Zou, Xin and Wang, Yizhou and Yan, Yibo and Lyu, Yuanhuiyi and Zheng, Kening and "
    "Huang, Sirui and Chen, Junkai and Jiang, Peijie and Liu, Jia and Tang, Chang and Hu, Xuming",
    venue="ICML",
    year=2025,
)


def unsure(logits: Tensor) -> Tensor:
    """[R]: entropy of the ten largest of logits [R, V], 1 where they are equal."""
    log_p = logits.topk(min(10, logits.shape[-1])).values.log_softmax(-1)
    return -(log_p.exp() * log_p).nan_to_num().sum(-1) / math.log(10)


@strategy("memvr", paper=PAPER, off={"ratio": 0.0})
class MemVR(Strategy):
    """Mix the image's features into one FFN, once an early layer is unsure."""

    ratio: float = param(0.12, "share of the image's features in the FFN's output", ge=0, le=1)
    tau: float = param(0.75, "entropy above which a layer is unsure, of 1", ge=0, le=1)
    start: int = param(5, "of 32 layers, the last that is too early to ask", ge=0, le=29)
    end: int = param(16, "of 32 layers, the first that is too late to ask", ge=2, le=31)

    site = "mlp"

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """Those after a layer strictly between start and end of 32, scaled; one at least."""
        return m.scaled_range(self.start + 2, self.end + 1)

    def steer(self, h: ResidualStream) -> Tensor:
        """Requests that are unsure here for the first time get the image's features."""
        import torch

        x, out, features = h.inp.float(), h.x.float(), [v.float() for v in h.features]
        before = h.carry.get("done", h.x.new_zeros(len(h.x)).bool())
        seen = torch.tensor([len(v) > 0 for v in features], device=h.x.device)
        now = (unsure(h.logits()) > self.tau) & ~before & seen
        h.carry["done"] = before | now
        image = torch.stack([own @ v.T @ v for own, v in zip(x, features, strict=True)])

        def size(y: Tensor) -> Tensor:  # mean |y| over a request's tokens, up to their number
            kept = y if h.chosen is None else y * h.chosen[..., None]
            return kept.abs().sum((1, 2), keepdim=True)

        mixed = out + self.ratio * (size(out) / size(image).clamp_min(1e-30) * image - out)
        return mixed.where(now[:, None, None], out)
