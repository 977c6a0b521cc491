"""EDVT: every word stands equally near to all image tokens (Ma et al., CVPR 2024, Vista-LLaMA).

    s_qk = (R_q q) . (R_k k) / sqrt(d)  for words,     s_qk = q . k / sqrt(d)  for image tokens

arXiv:2312.08870. Image keys lose their rotary position for every query, image queries included; one
softmax over both. Not free of training: the video model of the paper was trained so, and on other
weights a picture loses its order; here an answer says so. The official code keeps keys of both
kinds; here the cache's own are turned back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from halludecode.core.strategy import ModelInfo, Paper, Strategy, param, strategy

if TYPE_CHECKING:
    from halludecode.core.attention import Attention

PAPER = Paper(
    arxiv="2312.08870",
    title="Vista-LLaMA: Reducing Hallucination in Video Language Models via Equal Distance to "
    "Visual Tokens",
    authors="Ma, Fan and Jin, Xiaojie and Wang, Heng and Xian, Yuchen and Feng, Jiashi and "
    "Yang, Yi",
    venue="CVPR",
    year=2024,
)


@strategy("edvt", paper=PAPER, off={"depth": 0.0})
class EDVT(Strategy):
    """Attention to image tokens without positions, for weights that were trained so."""

    depth: float = param(1.0, "share of layers, from the first, where it holds", ge=0, le=1)

    trained = "edvt"

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """All of them, as trained."""
        return range(round(self.depth * m.num_layers))

    def attend(self, a: Attention) -> None:
        """Image keys and whoever asks them at one place."""
        here, there = a.place[0], a.standing()
        a.reposition(a.image, here.new_zeros(here.shape), there.new_zeros(there.shape))
