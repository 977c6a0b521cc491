"""VHR: strengthen heads whose output the image changes (He et al., ACL 2025, arXiv:2412.13949).

    VHD_i = || a_i - a0_i ||_2     heads with and without the image, at the first emitted token
    VHD_i = 0 where VHD_i > mu + sigma of VHD and ||a0_i||^2 > mu + sigma of it          (outliers)
    a_i <- alpha * a_i     for heads with VHD_i > median, in layer 1 and the last 14 of 32

Chosen once from the prompt, layer by layer on already strengthened lower layers, then frozen. Read
as: ddof 0, outliers zeroed before the median, the image-free stream scaled too, so that both
streams differ by the image alone. The official code could not be read; it is reported to use
squared norms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from halludecode.core.prompt import Branch, Prompt
from halludecode.core.strategy import Facts, Paper, State, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention

PAPER = Paper(
    arxiv="2412.13949",
    title="Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence",
    authors="He, Jinghan and Zhu, Kuan and Guo, Haiyun and Fang, Junfeng and Hua, Zhenglin and "
    "Jia, Yuheng and Tang, Ming and Chua, Tat-Seng and Wang, Jinqiao",
    venue="ACL",
    year=2025,
)


def choose(seen: Tensor, blind: Tensor) -> Tensor:
    """Bool [R, H]: heads above the median divergence; both outputs float32 [R, H, d]."""
    vhd, blind_norm = (seen - blind).square().sum(-1).sqrt(), blind.square().sum(-1)  # [R, H]
    outlier = (vhd > _mean_plus_std(vhd)) & (blind_norm > _mean_plus_std(blind_norm))
    vhd = vhd.masked_fill(outlier, 0)
    return vhd > vhd.quantile(0.5, dim=-1, keepdim=True)  # even H: mean of the middle two


def _mean_plus_std(x: Tensor) -> Tensor:
    return x.mean(-1, keepdim=True) + x.std(-1, keepdim=True, correction=0)


@strategy("vhr", paper=PAPER, off={"alpha": 1.0})
class VHR(Strategy):
    """Double the outputs of vision-aware heads."""

    alpha: float = param(2.0, "factor on the chosen heads' outputs", ge=0)

    def layers(self, m: Facts) -> Iterable[int]:
        """Layer 1 and the last 14 of 32, scaled."""
        return {1, *range(m.L - m.scaled(14), m.L)}

    def branches(self, prompt: Prompt, state: State, m: Facts) -> Mapping[str, Branch]:
        """An image-free stream that lives until the first token."""
        return {"blind": Branch(prompt.without_images(), life="prefill")}

    def attend(self, a: Attention) -> None:
        """Choose once, scale every position of both streams."""

        def gains() -> Tensor:
            chosen = choose(a.out("main")[:, -1], a.out("blind")[:, -1])
            return 1 + (self.alpha - 1) * chosen.float()

        a.heads(a.once("gains", gains), rows=("main", "blind"), queries="all")
