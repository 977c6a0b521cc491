"""MMA: let the picture read the question (Wang et al., 2025, AKI).

    M_qk = 1  for image tokens q and words k of the question after them;  else causal

arXiv:2503.02597, modality-mutual attention. While the prompt is read only; image tokens among
themselves stay causal. Not free of training: the published weights were trained with it; here an
answer says so. A picture must come before its question. The official code opens up to the tag that
begins the answer, by its token id; here the ``tail`` last tokens of the prompt are that tag. Its
loop over several pictures builds masks of shapes that do not fit; here each sees all words after
it. What a picture's tokens hold depends on the question, so nothing of it is shared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from halludecode.core.strategy import ModelInfo, Paper, Strategy, param, strategy

if TYPE_CHECKING:
    from halludecode.core.attention import Attention

PAPER = Paper(
    arxiv="2503.02597",
    title="Seeing is Understanding: Unlocking Causal Attention into Modality-Mutual Attention for "
    "Multimodal LLMs",
    authors="Wang, Wei-Yao and Wang, Zhao and Suzuki, Helen and Kobayashi, Yoshiyuki",
    venue="arXiv",
    year=2025,
)


@strategy("mma", paper=PAPER, off={"depth": 0.0})
class MMA(Strategy):
    """Image tokens see the question, for weights that were trained so."""

    depth: float = param(1.0, "share of layers, from the first, where it holds", ge=0, le=1)
    tail: int = param(1, "tokens at the prompt's end that are not the question", ge=1)

    trained = "mma"

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """All of them, as trained."""
        return range(round(self.depth * m.num_layers))

    def attend(self, a: Attention) -> None:
        """Open the question's keys to image queries before them."""
        here, behind = a.place
        end = (here + behind + 1).amax(-1)[:, None] - self.tail
        there = a.standing()
        question = a.text.of("main") & ~a.generated.of("main") & (there < end)
        after = there[:, None] > here[..., None]
        a.open(a.image_queries.of("main")[..., None] & question[:, None] & after)
