"""CODE: subtract what the model says of its own description (Kim et al., NeurIPS 2024).

    D = 1/2 * sum_w log2(|p(w | v) - p(w | d)|^power + 1) * (p(w | v) + p(w | d))     in [0, 1]
    z = (2 - D) * l(v) - (1 - D) * l(d),   keep y with  p(y | v) >= D * max p(. | v)

arXiv:2406.01920. d is the description that the model writes of each picture beforehand; in the
second row it stands in the picture's place. The nearer both views, the stronger the contrast and
the wider the choice. The released function has power 0.2 and its command line 0.7; it declares a
beta that nothing reads. ``request`` is word for word what the released code asks LLaVA for.
``strength`` is our off switch: it scales the contrast and the cut-off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.branch import Branch
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views.description import requests

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2406.01920",
    title="CODE: Contrasting Self-generated Description to Combat Hallucination in Large "
    "Multi-modal Models",
    authors="Kim, Junho and Kim, Hyunjun and Kim, Yeonju and Ro, Yong Man",
    venue="NeurIPS",
    year=2024,
)
REQUEST = (  # IVY-LVLM/CODE, models/llava-model-hf.py
    "Provide a detailed description of the image, covering all visible elements and their "
    "interactions, so as to thoroughly answer any potential questions about the image."
)


def divergence(p: Tensor, q: Tensor, power: float) -> Tensor:
    """[B, 1] in [0, 1]: how far two distributions [B, V] are apart (eq. 4's bounded divergence)."""
    apart = ((p - q).abs() ** power + 1).log2()
    return (apart * (p + q)).sum(-1, keepdim=True) / 2


@strategy("code", paper=PAPER, off={"strength": 0.0})
class CODE(Strategy):
    """Subtract what a description alone suggests, by how well it agrees."""

    power: float = param(0.2, "exponent of the divergence; the command line's is 0.7", gt=0)
    strength: float = param(1.0, "share of the contrast; 0 writes no description", ge=0, le=1)
    tokens: int = param(512, "most tokens of a description", ge=1)
    request: str = param(REQUEST, "what to ask for the description")

    def activations(self, prompt: Prompt, m: ModelInfo) -> Mapping[str, ActivationRequest]:
        """One description per picture."""
        asked = requests(prompt, self.request) if self.strength else []
        return {str(i): ActivationRequest(each, write=self.tokens) for i, each in enumerate(asked)}

    def prepare(self, activations: Mapping[str, Activations], m: ModelInfo) -> State:
        """The descriptions, in the pictures' order."""
        return {f"text {name}": written.text for name, written in activations.items()}

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The prompt with a description in every picture's place."""
        texts = [state.get(f"text {i}", "") for i in range(len(prompt.pictures))]
        return {"described": Branch(prompt.words_for_pictures(texts))}

    def combine(self, step: Step) -> Tensor:
        """Contrast and cut-off by the divergence of both views."""
        main, other = step["main"], step["described"]
        p = main.softmax(-1)
        d = divergence(p, other.softmax(-1), self.power)
        mixed = main + self.strength * (1 - d) * (main - other).nan_to_num(0, neginf=0)
        return step.among(mixed, p >= self.strength * d * p.amax(-1, keepdim=True))
