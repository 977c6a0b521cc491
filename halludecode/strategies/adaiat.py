"""AdaIAT: more attention to what was written, by head, where it is low (Zhong et al., CVPR 2026).

    w_j <- w_j (1 + alpha (R_lh / F_lh - 1)),  renormalised,   keys j of generated tokens
    in layers 5..17 of 32, of a query where   sum_h mean_j w_hj < F_l + beta (R_l - F_l)

arXiv:2603.04908. R_lh and F_lh: what head h of layer l pays a generated token, on average, where
the model is about to name a thing that is there, and one that is not; R_l, F_l sum over heads. They
are an artifact, made of the model's own captions as CHAIR labels them: `calibrate adaiat --images
DIR --annotations RUN/samples.jsonl`, RUN being of `eval --tasks chair --strategy greedy`. Released
are the averages of 10,000 captions, and not how they were read: here at the token from which the
name's first is drawn. Where F is much more than R a factor is below 0, there and here. The code
counts on key 625 as the first generated one (`iat` is the plain form).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from halludecode.core.artifact import tensor
from halludecode.core.calibration import Calibration
from halludecode.core.heads import pictured
from halludecode.core.strategy import ModelInfo, Paper, Strategy, param, strategy
from halludecode.views.written import paid_to_written

if TYPE_CHECKING:
    from torch import Tensor

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


@strategy("adaiat", paper=PAPER, off={"alpha": 0.0})
class AdaIAT(Strategy):
    """Raise generated keys' weights as far as real things have more of them."""

    alpha: float = param(6.0, "share of the difference between both kinds that is added", ge=0)
    beta: float = param(0.5, "how much is enough: 0 what made-up things have, 1 real ones", ge=0)
    start: int = param(5, "of 32 layers, the first", ge=0, le=31)
    stop: int = param(18, "of 32 layers, the first that is left alone again", ge=1, le=32)
    pin: str | None = param(None, "name of the artifact; None takes the last made that fits")

    artifact, artifact_params, samples = "required", (), "labels"

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """Layers start..stop-1 of 32, scaled; one at least."""
        return m.scaled_range(self.start, self.stop)

    def calibrate(self, cal: Calibration, m: ModelInfo) -> Mapping[str, Tensor]:
        """Both averages, float32 [L, H]: "real" and "hallucinated"."""
        return paid_to_written(cal, m)

    def attend(self, a: Attention) -> None:
        """Of queries that are written tokens."""
        mass = a.mass(a.generated, queries="generated")  # [R, H, Q]
        real, false = (self.row(a.m, name, a.layer, mass) for name in ("real", "hallucinated"))
        count = a.generated.of("main").sum(-1).clamp_min(1)[:, None]
        enough = false.sum() + self.beta * (real - false).sum()
        low = (mass.sum(1) / count < enough) & pictured(a)
        factor = 1 + self.alpha * (real / false - 1)[:, None]  # [H, 1]
        total = 1 + (factor - 1) * mass
        low = low[:, None]
        a.scale_weights(a.generated, factor / total, where=low, queries="generated")
        a.scale_weights(~a.generated, 1 / total, where=low, queries="generated")

    def row(self, m: ModelInfo, name: str, layer: int, like: Tensor) -> Tensor:
        """[H]: one layer's averages; ones where there are none yet."""
        made = tensor(m, self, name, (m.num_layers, m.num_heads))
        return like.new_ones(m.num_heads) if made is None else made[layer].to(like)
