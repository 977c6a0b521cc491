"""LCD: subtract the language's opinion, the surer it is (Manevich and Tsarfaty, ACL Findings 2024).

    z = (1 + a_t) * l(v) - a_t * l(no v),   a_t = alpha / H(p(. | no v))
    keep y with  p(y | v) >= beta * max p(. | v)

arXiv:2408.04664. The paper's second model is the language model that the vision-language model was
made of, and so it is in the released code (Vicuna beside LLaVA); here the model itself reads the
prompt without its pictures. Rule and constants are the code's. H, in nats, comes near 0 where one
token is certain: ``most`` bounds the weight, which is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.branch import Branch
from halludecode.core.logits import entropy
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2408.04664",
    title="Mitigating Hallucinations in Large Vision-Language Models (LVLMs) via "
    "Language-Contrastive Decoding (LCD)",
    authors="Manevich, Avshalom and Tsarfaty, Reut",
    venue="Findings of ACL",
    year=2024,
)


@strategy("lcd", paper=PAPER, off={"alpha": 0.0, "beta": 0.0})
class LCD(Strategy):
    """Subtract what language alone expects, most where it expects one thing."""

    alpha: float = param(2.0, "contrast strength at an entropy of one nat", ge=0)
    beta: float = param(0.1, "plausibility cut-off", ge=0, le=1)
    most: float = param(100.0, "largest weight of the contrast", gt=0)

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same prompt without the image."""
        return {"blind": Branch(prompt.without_images())}

    def combine(self, step: Step) -> Tensor:
        """VCD's form with a weight of its own for every token."""
        main, blind = step["main"], step["blind"]
        weight = (self.alpha / entropy(blind)[:, None].clamp_min(1e-9)).clamp(max=self.most)
        mixed = main + weight * (main - blind).nan_to_num(0, neginf=0)
        return step.plausible(mixed, self.beta)
