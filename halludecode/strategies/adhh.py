"""AD-HH: cut hallucination heads off from the text (Yang et al., ICLR 2025, OpenReview Bjq4W7P2Us).

    w_hk <- 0 for text keys k after the image,  where  sum_k w_hk >= tau       not renormalised

At queries that emit a token, in listed heads only: in the paper those that raise invented object
words more than real ones, here the ``top`` largest positive values of an ablation map, given as
``map=FILE`` or ``heads``, or made by `halludecode calibrate`: what this edit, in one head alone and
at tau = 0, adds to the score. tau is the LLaVA script's (baselines: 0.5); its code sums batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from halludecode.core.heads import Mapped, alone, largest, one_heads, pictured
from halludecode.core.strategy import Calibration, ModelInfo, Paper, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention

PAPER = Paper(
    arxiv="",
    title="Understanding and Mitigating Hallucination in Large Vision-Language Models via "
    "Modular Attribution and Intervention",
    authors="Yang, Tianyun and Li, Ziniu and Cao, Juan and Xu, Chang",
    venue="ICLR",
    year=2025,
    openreview="Bjq4W7P2Us",
)


@strategy("adhh", paper=PAPER, off={"tau": 2.0})
class ADHH(Mapped):
    """Drop attention to text where a hallucination head pays too much of it."""

    tau: float = param(0.4, "least attention on text at which a head is cut off; > 1 never", ge=0)
    top: int = param(20, "how many heads of the map", ge=1)
    heads: tuple[int, ...] | None = param(None, "layer, head, layer, head, ... in place of a map")
    map: str | None = param(None, "saved ablation map; None takes what calibrate made")

    artifact, must_attend = "required", "all"
    metrics = ("ablation",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads is not None:
            object.__setattr__(self, "artifact", None)

    def calibrate(self, cal: Calibration, m: ModelInfo) -> Mapping[str, Tensor]:
        """The map's values, else what the edit does to the score in each head alone."""
        if self.map is not None:
            return super().calibrate(cal, m)
        probe, off = replace(self, heads=None, tau=0.0, top=1), replace(self, heads=None, tau=2.0)
        plain = cal.score(off, {"values": one_heads(m, ())})
        return {"values": alone(cal, m, lambda h: cal.score(probe, {"values": h.float()}) - plain)}

    def listed(self, m: ModelInfo) -> Tensor | None:
        """Bool [L, H]; None where there is no list yet."""
        if self.heads is not None:
            return one_heads(m, self.heads, self.name) > 0
        values = self.values(m)
        return None if values is None else largest(values, self.top) & (values > 0)

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """Layers with a listed head; all where there is none, so that it shows as no effect."""
        heads = self.listed(m)
        every = range(m.num_layers)
        return [i for i in every if heads is not None and heads[i].any()] or every

    def attend(self, a: Attention) -> None:
        """Drop the text's weights where they reach tau."""
        heads, text = self.listed(a.m), a.mass(a.text)
        cut = pictured(a)[..., None] & (text >= self.tau)
        if heads is not None:
            cut &= heads[a.layer].to(cut.device)[:, None]
        a.scale_weights(a.text, 0.0, where=cut)
