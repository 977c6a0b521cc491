"""CCA: number a picture's tokens by rings, so that its middle is next to the words (Xing et al.).

    ring(i, j) = min(i, j, H - 1 - i, H - 1 - j),  position = start + ring,  words go on after H / 2
    an image token sees the image tokens of its own ring and of those outside it

NeurIPS 2024, arXiv:2410.15926: Concentric Causal Attention. Not free of training: the published
weights were trained with it, and no result is claimed for others; here an answer says so. Rotary
positions are turned on from where they are and the mask is opened and closed in every layer, so the
cache holds what it always does. The official code has one picture of 24 x 24 tokens and numbers a
batch wrongly; here there may be several, one after another, each seeing only itself in rings.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from halludecode.core.strategy import ModelInfo, Paper, Strategy, param, strategy
from halludecode.views.concentric import positions, rings

if TYPE_CHECKING:
    from halludecode.core.attention import Attention

PAPER = Paper(
    arxiv="2410.15926",
    title="Mitigating Object Hallucination via Concentric Causal Attention",
    authors="Xing, Yun and Li, Yiheng and Laptev, Ivan and Lu, Shijian",
    venue="NeurIPS",
    year=2024,
)


@strategy("cca", paper=PAPER, off={"depth": 0.0})
class CCA(Strategy):
    """Concentric positions and masks, for weights that were trained with them."""

    depth: float = param(1.0, "share of layers, from the first, where it holds", ge=0, le=1)

    trained = "cca"

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """All of them, as trained."""
        return range(round(self.depth * m.num_layers))

    def attend(self, a: Attention) -> None:
        """Masks by ring among a picture's tokens, then positions of everything."""
        square = a.square()  # [R, N, 4]
        own = a.own_key.of("main").float()  # [R, Q, N]
        keys, places = rings(square), positions(square, a.tokens.of("main"))
        asking = a.image_queries.of("main")[..., None]
        ring, picture = (own @ x.float()[..., None] for x in (keys, square[..., 0]))  # [R, Q, 1]
        same = asking & a.image.of("main")[:, None] & (picture == square[:, None, :, 0])
        inner = same & (keys[:, None] > ring)
        a.open(same & ~inner)
        shut = own.new_zeros(own.shape).masked_fill(inner, -float("inf"))[:, None]
        a.add_scores(a.image, shut, queries="prompt")
        a.reposition(a.tokens, (own @ places[..., None])[..., 0], places)
