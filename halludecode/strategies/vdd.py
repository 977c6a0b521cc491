"""VDD: subtract what the model says without any picture (Zhang et al., arXiv:2403.05262).

    z = (1 + alpha) * l(v) - alpha * l',   keep y with  p(y | v) >= beta * max p(. | v)
    l' = l(no image)          mode="none"
         l(unk)               mode="unk": one unknown token in the image's place
         their mean           mode="both", which costs a second row

Alpha and beta are those of the scripts; the released sampler falls back to alpha = 0.5 where they
are not forwarded. The unknown token is LLaMA's; where a tokenizer has another, or none, give its
word as ``unk``: what it does not know as one token it reads as text. The paper's other half, the
affine calibration of yes/no answers after the fact, changes no decoding and is not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.branch import Branch
from halludecode.core.logits import contrast
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2403.05262",
    title="Debiasing Multimodal Large Language Models",
    authors="Zhang, Yi-Fan and Yu, Weichen and Wen, Qingsong and Wang, Xue and Zhang, Zhang and "
    "Wang, Liang and Jin, Rong and Tan, Tieniu",
    venue="arXiv preprint",
    year=2024,
)
ROWS = {"none": ("blind",), "unk": ("unknown",), "both": ("blind", "unknown")}


@strategy("vdd", paper=PAPER, off={"alpha": 0.0, "beta": 0.0})
class VDD(Strategy):
    """Subtract the answer that needs no picture."""

    alpha: float = param(1.0, "contrast strength", ge=0)
    beta: float = param(0.1, "plausibility cut-off", ge=0, le=1)
    mode: str = param("none", "what stands in the image's place", choices=tuple(ROWS))
    unk: str = param("<unk>", "the unknown token's word (mode=unk and both)")

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The prompt without its pictures, with an unknown token for each, or both."""
        unknown = prompt.words_for_pictures([self.unk] * len(prompt.pictures))
        rows = {"blind": Branch(prompt.without_images()), "unknown": Branch(unknown)}
        return {name: rows[name] for name in ROWS[self.mode]}

    def combine(self, step: Step) -> Tensor:
        """VCD's rule against the mean of the rows."""
        names = ROWS[self.mode]
        debiased = sum((step[name] for name in names[1:]), step[names[0]]) / len(names)
        return step.plausible(contrast(step["main"], debiased, self.alpha), self.beta)
