"""IAT: more attention to what was already written (Zhong et al., CVPR 2026, arXiv:2603.04908).

    s_j <- s_j + alpha |s_j|      keys of generated tokens, queries after them, layers 5..17 of 32

The plain form of AdaIAT (`adaiat`): the text written so far carries the picture in words, so it may
be looked at more without the repetitions that more attention to the picture brings. An answer's
first token is never changed; requests without a picture are left alone, as by every strategy here.
The official code takes key 625 for the first generated one, which is so for one caption prompt on
LLaVA-1.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from halludecode.core.heads import pictured
from halludecode.core.strategy import ModelInfo, Paper, Strategy, param, strategy

if TYPE_CHECKING:
    from halludecode.core.attention import Attention

PAPER = Paper(
    arxiv="2603.04908",
    title="AdaIAT: Adaptively Increasing Attention to Generated Text to Alleviate Hallucinations "
    "in LVLM",
    authors="Zhong, Li'an and He, Ziqiang and Zheng, Jibin and Li, Jin and Wang, Z. Jane and "
    "Kang, Xiangui",
    venue="CVPR",
    year=2026,
)


@strategy("iat", paper=PAPER, off={"alpha": 0.0})
class IAT(Strategy):
    """Raise the scores of generated keys."""

    alpha: float = param(0.8, "share of |score| added to generated keys", ge=0)
    start: int = param(5, "of 32 layers, the first", ge=0, le=31)
    stop: int = param(18, "of 32 layers, the first that is left alone again", ge=1, le=32)

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """Layers start..stop-1 of 32, scaled; one at least."""
        return m.scaled_range(self.start, self.stop)

    def attend(self, a: Attention) -> None:
        """Scores of either sign rise."""
        alpha = self.alpha * pictured(a)[..., None, None]
        a.add_scores(a.generated, lambda s: alpha * s.abs(), queries="generated")
