"""CICD: subtract what the model says of an unrelated picture (Zhao et al., EMNLP 2025).

    J = JSD(p(. | v), p(. | v')),   a_t = min(most, 1 - log10 J) where J > gate, else 0
    z = (1 + a_t) * l(v) - a_t * l(v'),   keep y with  p(y | v) >= beta * max p(. | v)

arXiv:2505.10634. v' is ``picture``, a file; without one it is a drawing of nothing in particular
(`views.unrelated`; ``draw`` gives another), the same for every request, where the released data
names another image of the benchmark for each. The released code sums KL(M||p) and KL(M||p') where
Jensen and Shannon have KL(p||M) and KL(p'||M): ``divergence="reversed"``. It takes beta 0.1 for
captions and 0.25 for yes/no questions (see the presets).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.branch import Branch, Edit
from halludecode.core.logits import js, reversed_js
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views.unrelated import unrelated

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2505.10634",
    title="Cross-Image Contrastive Decoding: Precise, Lossless Suppression of Language Priors in "
    "Large Vision-Language Models",
    authors="Zhao, Jianfei and Zhang, Feng and Sun, Xin and Kong, Lingxing and Tan, Zhixing and "
    "Feng, Chong",
    venue="EMNLP",
    year=2025,
)


@strategy("cicd", paper=PAPER, off={"most": 0.0, "beta": 0.0})
class CICD(Strategy):
    """Subtract what is said whatever the picture shows."""

    beta: float = param(0.1, "plausibility cut-off", ge=0, le=1)
    gate: float = param(1e-4, "no contrast where the pictures differ less than this", ge=0)
    most: float = param(3.0, "largest contrast strength", ge=0)
    picture: str | None = param(None, "file of the unrelated picture; None draws one")
    draw: int = param(0, "which drawing, where no file is given", ge=0)
    divergence: str = param("js", "how pictures differ", choices=("js", "reversed"))

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same words about another picture."""
        edit = Edit(unrelated, (("file", self.picture), ("number", self.draw)))
        return {"unrelated": Branch(prompt, images=edit)}

    def combine(self, step: Step) -> Tensor:
        """VCD's form, the stronger the less the pictures matter, and not where they do not."""
        main, other = step["main"], step["unrelated"]
        j = (js if self.divergence == "js" else reversed_js)(main, other)[:, None].clamp(max=1)
        weight = (1 - j.log10()).clamp(max=self.most) * (j > self.gate)
        mixed = main + weight.nan_to_num(0) * (main - other).nan_to_num(0, neginf=0)
        return step.plausible(mixed, self.beta)
