"""ZeroTuning: scale the attention that chosen heads pay the first token (Han et al., ICLR 2026).

    w'_0 = gamma w_0 / Z,  w'_j = w_j / Z,  Z = (gamma - 1) w_0 + 1       = log(gamma) on logit 0

arXiv:2505.11739. All queries, in heads found by `halludecode calibrate` (`core.heads`): which gain
and which lose by gamma = 4 alone, the larger kind kept, then its gamma searched, by accuracy where
the data has yes/no labels (the paper's supervised search), else by least output entropy. Probe and
grid are ours; the official kernel variant scales keys, which is another map and not used. Shown for
text models only: no evidence is published for vision-language models, a gain on a few hundred
labelled questions may be noise, and a model whose first token gets little attention hardly moves.
Requests without a picture are left alone, as by every strategy here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from halludecode.core.artifact import tensor
from halludecode.core.heads import profile
from halludecode.core.strategy import Calibration, ModelInfo, Paper, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention

PAPER = Paper(
    arxiv="2505.11739",
    title="ZeroTuning: Unlocking the Initial Token's Power to Enhance Large Language Models "
    "Without Training",
    authors="Han, Feijiang and Yu, Xiaodong and Tang, Jianheng and others",
    venue="ICLR",
    year=2026,
)


@strategy("zerotuning", paper=PAPER, off={"gamma": 1.0})
class ZeroTuning(Strategy):
    """Flatten or sharpen attention through the first token."""

    gamma: float | None = param(None, "factor on the first token; None is the one found", gt=0)
    pin: str | None = param(None, "name of the artifact; None takes the last made that fits")

    artifact = "required"
    artifact_params = ()

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """Layers with a chosen head; all where there is none, so that it shows as no effect."""
        heads = tensor(m, self, "heads", (m.num_layers, m.num_heads))
        chosen = [i for i in range(m.num_layers) if heads is not None and bool(heads[i].any())]
        return chosen or range(m.num_layers)

    def calibrate(self, cal: Calibration, m: ModelInfo) -> Mapping[str, Tensor]:
        """Profile every head, keep the larger kind, search gamma."""

        def score(gamma: float, heads: Tensor) -> float:
            return cal.score(replace(self, gamma=gamma), {"heads": heads})

        return profile(cal, m, score)

    def attend(self, a: Attention) -> None:
        """Add log(gamma) to the first key's logit in the chosen heads."""
        heads = tensor(a.m, self, "heads", (a.m.num_layers, a.m.num_heads))
        gamma = tensor(a.m, self, "gamma", ()) if self.gamma is None else self.gamma
        bias = math.log(1.0 if gamma is None else float(gamma))
        sees = a.image.of("main").any(-1)[:, None, None, None]
        chosen = sees if heads is None else sees & heads[a.layer].to(sees.device)[:, None, None]
        a.add_scores(a.first, chosen * bias, queries="all")
