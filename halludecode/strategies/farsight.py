"""FarSight: tokens still to come hold a register of attention (Tang et al., CVPR 2025).

    w_ij = e^{s_ij} / (Z_i + g sum_{d=1}^{n_i} e^{-c_hi d}),       Z_i = sum_{j <= i} e^{s_ij}
    c_hi = sigma (1 - i / (4 (P - 1))) + 2^{-8 (h + 1) / H}        n_i: prompt tokens after token i

arXiv:2505.16652. Scores above the diagonal become -c (j - i), enter softmax and are masked after
it, so that a row sums to less than one. No official code could be read; sigma, the falling rate and
the heads' slopes are those of a re-implementation that names the official patch
(JiH00nKw0n/lvlm_hallucination). As written there every row is needed anew at every step, since
earlier tokens' registers grow, and there is no KV cache. This is the form with one: exact for the
first token; later ones neither lengthen the prompt's registers nor have one. The sum is geometric,
so nothing above the diagonal is ever laid out. ``register`` (g) is ours; 1 is the paper's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from halludecode.core.heads import pictured
from halludecode.core.strategy import Paper, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention

PAPER = Paper(
    arxiv="2505.16652",
    title="Seeing Far and Clearly: Mitigating Hallucinations in MLLMs with Attention Causal "
    "Decoding",
    authors="Tang, Feilong and Liu, Chengzhi and Xu, Zhongxing and Hu, Ming and Peng, Zelin and "
    "Yang, Zhiwei and Su, Jionglong and Lin, Minquan and Peng, Yifan and Cheng, Xuelian and "
    "Razzak, Imran and Ge, Zongyuan",
    venue="CVPR",
    year=2025,
)


@strategy("farsight", paper=PAPER, off={"register": 0.0})
class FarSight(Strategy):
    """Let prompt tokens leave attention to a register instead of to outliers."""

    sigma: float = param(math.log(256) / math.log(1024), "decay of the register per token", gt=0)
    slopes: bool = param(True, "whether heads decay at their own rates on top, as in ALiBi")
    register: float = param(1.0, "factor on the register's mass; 0 is none", ge=0)

    def attend(self, a: Attention) -> None:
        """Weights of a prompt query times Z / (Z + register)."""
        total = a.scores(a.image | ~a.image).logsumexp(-1)  # [R, H, Q]
        share = (total - self.mass(a, total.shape[1]).log()).sigmoid()
        where = pictured(a)[..., None]
        a.scale_weights(a.image | ~a.image, share, where=where, queries="prompt")

    def mass(self, a: Attention, heads: int) -> Tensor:
        """Float [R, H, Q]: the register's sum, 0 where no prompt token follows."""
        at, ahead = (x[:, None] for x in a.place)
        rate = self.sigma * (1 - at / (at + ahead).clamp_min(1) / 4)
        if self.slopes:
            number = at.new_tensor(range(1, heads + 1))[:, None]
            rate = rate + (-8 * number / heads).exp2()
        return self.register * (-rate).exp() * (-rate * ahead).expm1() / (-rate).expm1()
