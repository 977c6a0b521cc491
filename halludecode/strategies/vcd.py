"""VCD: contrast the true image with a noised one (Leng et al., CVPR 2024, arXiv:2311.16922).

    z = (1 + alpha) * l(v) - alpha * l(v'),   keep y with  p(y | v) >= beta * max p(. | v)

v' is the preprocessed image after ``noise_step`` of 1000 diffusion steps (eq. 2). The paper prints
a constant-rate schedule; the official code has only a sigmoid one, which is used here. The official
sampler falls back to alpha = 0.5 where its arguments are not forwarded (InstructBLIP); we never do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.branch import Branch, Edit
from halludecode.core.logits import contrast
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views.noise import diffuse

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2311.16922",
    title="Mitigating Object Hallucinations in Large Vision-Language Models through Visual "
    "Contrastive Decoding",
    authors="Leng, Sicong and Zhang, Hang and Chen, Guanzheng and Li, Xin and Lu, Shijian and "
    "Miao, Chunyan and Bing, Lidong",
    venue="CVPR",
    year=2024,
)


@strategy("vcd", paper=PAPER, off={"alpha": 0.0, "beta": 0.0})
class VCD(Strategy):
    """Subtract what the model says of a heavily noised image."""

    alpha: float = param(1.0, "contrast strength", ge=0)
    beta: float = param(0.1, "plausibility cut-off (eq. 5)", ge=0, le=1)
    noise_step: int = param(500, "diffusion steps added to the pixels", ge=0, lt=1000)

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same prompt with noised pixels."""
        noise = Edit(diffuse, (("step", self.noise_step),), draw=0)
        return {"noised": Branch(prompt, pixels=noise)}

    def combine(self, step: Step) -> Tensor:
        """Equation 3 under the mask of equation 5."""
        mixed = contrast(step["main"], step["noised"], self.alpha)
        return step.plausible(mixed, self.beta)
