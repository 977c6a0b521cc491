"""SID: subtract what the model says of the image tokens it looked at least (Huo et al., ICLR 2025).

    z = (1 + alpha) * l(v) - alpha * l(v_unattended),   keep y with  p(y | v) >= beta * max p(. | v)

arXiv:2408.02032. The second row sees the whole image in its first ``layer`` layers; the last of
them ranks the image tokens by the attention of the newest token (mean over heads), and later layers
see only the least attended share ``keep``, chosen anew for every token. Layer and share are quoted
second-hand. The official code ranks one layer earlier, keeps fixed counts (see the presets), takes
greedy's argmax without the mask, and runs at alpha = 0.5, since its arguments (1 and 0.1, the
defaults here) are not forwarded. A choice covers all pictures of a request together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from halludecode.core.branch import Branch
from halludecode.core.logits import contrast
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention
    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2408.02032",
    title="Self-Introspective Decoding: Alleviating Hallucinations for Large Vision-Language "
    "Models",
    authors="Huo, Fushuo and Xu, Wenchao and Zhang, Zhong and Wang, Haozhao and "
    "Chen, Zhicheng and Zhao, Peilin",
    venue="ICLR",
    year=2025,
)


@strategy("sid", paper=PAPER, off={"alpha": 0.0, "beta": 0.0})
class SID(Strategy):
    """Contrast with a row left with the least attended image tokens."""

    alpha: float = param(1.0, "contrast strength", ge=0)
    beta: float = param(0.1, "plausibility cut-off", ge=0, le=1)
    layer: int = param(3, "of 32 layers, how many see the whole image; the last ranks", ge=2)
    keep: float = param(0.1, "share of image tokens that later layers see", gt=0, le=1)

    must_attend = "first"

    def ranking(self, m: ModelInfo) -> int:
        """The layer that ranks, the second or later; those after it follow the choice."""
        return min(max(m.scaled(self.layer), 2), m.num_layers - 1) - 1

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """The ranking layer and all above it."""
        return range(self.ranking(m), m.num_layers)

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same prompt; `attend` makes the difference."""
        return {"unattended": Branch(prompt)}

    def attend(self, a: Attention) -> None:
        """Rank and choose in one layer, mask the rest in those above."""
        if a.layer == self.ranking(a.m):
            seen = a.weights(a.image, row="unattended")[:, :, -1].mean(1)  # [R, N]
            count = a.image.of("unattended").sum(-1)
            fewest = (self.keep * count).round().clamp_min(1)
            a.carry["kept"] = a.top_keys(a.image, seen, fewest, largest=False)
        else:
            hidden = a.image & ~a.carry["kept"]
            a.mask(hidden, rows=("unattended",), queries="all")

    def combine(self, step: Step) -> Tensor:
        """VCD's rule."""
        mixed = contrast(step["main"], step["unattended"], self.alpha)
        return step.plausible(mixed, self.beta)
