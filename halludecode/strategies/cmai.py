"""CMAI: hide image tokens that the question does not lead to (arXiv:2411.15453, a reconstruction).

    F_j = sum_t w_nt w_tj       j image tokens, t text tokens after the image, n the prompt's last
    s_j <- -inf                 the floor(eta N) image tokens of least F, layers after ``layer``

Cross-modality attention inhibition: attention of text on the image, gathered through attention of
text on text, is a focus score; pairs of low score are inhibited through the causal mask. That much
is known, of the abstract; no code could be found, and nothing else of it was checked. Ours are: the
mean over heads, one layer that decides for those above it, the last prompt token's focus for the
whole answer, and eta. The paper has a score for every text token. Its other half, which merges
image tokens by clusters before the decoder (VMTC), is left out. Queries that emit a token are
edited; at least one image token stays. F is a sum over the prompt's queries, without a map of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from halludecode.core.strategy import ModelInfo, Paper, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention

PAPER = Paper(
    arxiv="2411.15453",
    title="Enhancing Instruction-Following Capability of Visual-Language Models by Reducing Image "
    "Redundancy",
    authors="Yang, Te and Jia, Jian and Zhu, Xiangyu and Zhao, Weisong and Wang, Bo and "
    "Cheng, Yanhua and Li, Yan and Liu, Shengyuan and Chen, Quan and Jiang, Peng and Gai, Kun "
    "and Lei, Zhen",
    venue="arXiv",
    year=2024,
)


@strategy("cmai", paper=PAPER, off={"eta": 0.0})
class CMAI(Strategy):
    """Mask the image tokens of least focus in later layers."""

    eta: float = param(0.3, "share of image tokens that is hidden", ge=0, lt=1)
    layer: int = param(8, "of 32 layers, the one whose attention is the focus", ge=0, le=31)

    must_attend = "first"

    def deciding(self, m: ModelInfo) -> int:
        """The layer that decides, of this model's; one at least is above it."""
        return min(m.scaled(self.layer), max(m.num_layers - 2, 0))

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """The deciding layer and all above it."""
        return range(self.deciding(m), m.num_layers)

    def attend(self, a: Attention) -> None:
        """Decide once for the answer, mask in the layers above."""
        if a.layer == self.deciding(a.m):
            focus = a.keys_at_first_token("focus", lambda: self.focus(a))
            count = (self.eta * a.image.of("main").sum(-1)).floor()
            a.carry["hidden"] = a.top_keys(a.image, focus, count, largest=False)
        else:
            a.mask(a.carry["hidden"])

    def focus(self, a: Attention) -> Tensor:
        """float32 [R, N]: what the prompt's last token gives each key by way of the text."""
        text = a.text.of("main")
        last = text & (text.cumsum(-1) == text.sum(-1, keepdim=True))
        direct = a.received(of=last.float()).mean(1)  # [R, N]
        return a.received(of=direct * text).mean(1)
