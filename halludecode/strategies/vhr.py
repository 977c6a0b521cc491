"""VHR: strengthen heads whose output the image changes (He et al., ACL 2025, arXiv:2412.13949).

    VHD_i = || a_i - a0_i ||_2     heads with and without the image, at the first emitted token
    VHD_i = 0 where VHD_i > mu + sigma of VHD and ||a0_i||^2 > mu + sigma of it          (outliers)
    a_i <- alpha * a_i     for heads with VHD_i > median, in layer 1 and the last 14 of 32

Chosen once from the prompt, layer by layer on already strengthened lower layers, then frozen. Read
as: ddof 0, outliers zeroed before the median, the image-free stream scaled too, so that both
streams differ by the image alone. The official code could not be read; it is reported to use
squared norms. ``map`` fixes the heads for all prompts, by the same rule on a saved map's means
(`halludecode heads`), and leaves out the stream; the paper finds fixed heads worse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from halludecode.core.branch import Branch
from halludecode.core.heads import Mapped, above_median, divergence, pictured
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, param, strategy

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
    return above_median(divergence(seen, blind)[1])


@strategy("vhr", paper=PAPER, off={"alpha": 1.0})
class VHR(Mapped):
    """Double the outputs of vision-aware heads."""

    alpha: float = param(2.0, "factor on the chosen heads' outputs", ge=0)
    map: str | None = param(None, "saved map that fixes the heads; None chooses by the prompt")

    metrics = ("vhd", "mass")
    map_part = "inliers"

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """Layer 1 and the last 14 of 32, scaled."""
        self.values(m)  # a map of another model is refused here
        return {1, *range(m.num_layers - m.scaled(14), m.num_layers)}

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """An image-free stream that lives until the first token."""
        return {} if self.map else {"blind": Branch(prompt.without_images(), life="prefill")}

    def attend(self, a: Attention) -> None:
        """Choose once, scale every position of both streams."""

        def gains() -> Tensor:
            chosen = choose(a.head_outputs("main")[:, -1], a.head_outputs("blind")[:, -1])
            return 1 + (self.alpha - 1) * chosen.float()

        if self.map is None:
            a.scale_heads(a.at_first_token("gains", gains), rows=("main", "blind"), queries="all")
            return
        fixed = pictured(a) & above_median(self.row(a))
        a.scale_heads(1 + (self.alpha - 1) * fixed.float(), queries="all")
