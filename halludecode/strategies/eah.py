"""EAH: the head with the densest sinks on the image speaks for its layer (Zhang et al., 2025).

    a_hc = sum_{i > c} w_hic / (N - c)        what a token receives from those after it, on average
    h*   = argmax_h #{c in image: a_hc > theta}
    w_h <- w_h*   for every head h of the layer, prompt queries; each head keeps its values

arXiv:2411.09968 (EMNLP 2025; "EVAS" in its last version). README: layer 1, theta 0.002. The code
has theta 0.0008, divides by (end of the image - c), skips the image's first and last token, acts in
*every* layer (its condition ``signal + 1`` is always true; here ``layer=-1``) and does nothing
where head 0 is the densest. As there, generated tokens attend as they would.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from halludecode.core.strategy import ModelInfo, Paper, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention

PAPER = Paper(
    arxiv="2411.09968",
    title="Shallow Focus, Deep Fixes: Enhancing Shallow Layers Vision Attention Sinks to Alleviate "
    "Hallucination in LVLMs",
    authors="Zhang, Xiaofeng and Quan, Yihao and Shen, Chen and Gu, Chaochen and Yuan, Xiaosong "
    "and Yan, Shaotian and Cao, Jiawei and Cheng, Hao and Wu, Kaijie and Ye, Jieping",
    venue="EMNLP",
    year=2025,
)


@strategy("eah", paper=PAPER, off={"theta": 1.0})
class EAH(Strategy):
    """Copy the attention of the head with most vision sinks to its whole layer."""

    theta: float = param(0.002, "mean attention received above which a token is a sink", ge=0, le=1)
    layer: int = param(1, "the layer that is edited; -1 is all of them", ge=-1)

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """One, at any depth, or all."""
        return range(m.num_layers) if self.layer < 0 else [min(self.layer, m.num_layers - 1)]

    def attend(self, a: Attention) -> None:
        """Find the head once, from the whole prompt; then let all have its scores."""
        best = a.at_first_token("head", lambda: self.densest(a))  # [R, H], bool
        has = best.any(-1)[:, None, None, None]

        def change(s: Tensor) -> Tensor:
            chosen = (s * best[:, :, None, None]).sum(1, keepdim=True)
            return (chosen - s) * has

        a.add_scores(a.image | ~a.image, change, queries="prompt")

    def densest(self, a: Attention) -> Tensor:
        """Bool [R, H]: the head with most sinks; none where no head has one."""
        image, received = a.image.of("main"), a.received(own=False)
        count = received.shape[-1] - received.new_tensor(range(received.shape[-1]))  # N - c
        sinks = (received / count > self.theta) & image[:, None]
        dense = sinks.sum(-1)
        best = dense.argmax(-1, keepdim=True)  # of equal ones the first
        heads = dense.new_tensor(range(dense.shape[1]))
        return (heads == best) & (dense.amax(-1, keepdim=True) > 0)
