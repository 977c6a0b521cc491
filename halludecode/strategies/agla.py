"""AGLA: add a view with irrelevant regions blacked out (An et al., CVPR 2025, arXiv:2406.12718).

    z = l(v) + alpha * l(v_aug),   keep y with  p(y | v) >= beta * max p(. | v)

``matcher="blip"`` is the paper's: BLIP-ITM GradCAM of the bare question, masked fraction = half the
similarity. ``matcher="self"`` needs no second model: attention of the last prompt token to the
image in the middle third of layers, divided by the same map for "Describe the image." unless that
is what is asked, the lowest ``drop`` blacked out. The official code lets the augmented row read the
main row's cache from token 2 on; here it keeps its own. The rule's net scale is 1 + alpha: compare
sampled results with a temperature-matched baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.branch import Branch, Edit
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views.image_text_matcher import masked
from halludecode.views.masks import blackout
from halludecode.views.relevance import GENERIC, is_generic, relevance_maps

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2406.12718",
    title="Mitigating Object Hallucinations in Large Vision-Language Models with Assembly of "
    "Global and Local Attention",
    authors="An, Wenbin and Tian, Feng and Leng, Sicong and Nie, Jiahao and Lin, Haonan and "
    "Wang, QianYing and Chen, Ping and Zhang, Xiaoqin and Lu, Shijian",
    venue="CVPR",
    year=2025,
)


@strategy("agla", paper=PAPER, off={"alpha": 0.0, "beta": 0.0})
class AGLA(Strategy):
    """Sum of a global view and a local, question-focused one."""

    alpha: float = param(2.0, "weight of the masked view", ge=0)
    beta: float = param(0.5, "plausibility cut-off", ge=0, le=1)
    matcher: str = param("self", "what finds the relevant regions", choices=("self", "blip"))
    drop: float = param(0.2, "fraction blacked out (matcher=self)", ge=0, lt=1)
    blip: str = param("Salesforce/blip-itm-large-coco", "BLIP model id or path (matcher=blip)")

    fetch = ("relevance",)

    def activations(self, prompt: Prompt, m: ModelInfo) -> Mapping[str, ActivationRequest]:
        """The question's attention to the image, and a generic prompt's."""
        if self.matcher == "blip" or not prompt.pictures:
            return {}
        third = m.num_layers // 3
        middle = m.attending(range(third, max(2 * m.num_layers // 3, third + 1)))
        asked = {"question": prompt}
        if not is_generic(prompt.question):
            asked["generic"] = prompt.with_instruction(GENERIC)
        return {name: ActivationRequest(each, image=middle) for name, each in asked.items()}

    def prepare(self, activations: Mapping[str, Activations], m: ModelInfo) -> State:
        """One relevance map per picture."""
        if not activations:
            return {}
        return {"relevance": relevance_maps(activations["question"], activations.get("generic"))}

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same prompt with masked pictures."""
        edit = Edit(blackout, (("drop", self.drop),), use=("relevance",))
        if self.matcher == "blip":
            edit = Edit(masked, (("question", prompt.question), ("model", self.blip)))
        return {"masked": Branch(prompt, images=edit)}

    def combine(self, step: Step) -> Tensor:
        """Global plus alpha times local, under the plausibility mask."""
        mixed = step["main"].add(step["masked"], alpha=self.alpha)
        return step.plausible(mixed, self.beta)
