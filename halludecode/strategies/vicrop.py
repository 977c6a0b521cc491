r"""ViCrop: show again, larger, what the question's attention points at (Zhang et al., ICLR 2025).

    r = A(question) / A(general),   box = the window where r is sharpest,   read [image, crop]

arXiv:2502.17422, the method ``rel-att``. A is the attention of the last prompt token to the image
in one layer, mean over heads; general is "Write a general description of the image.". Windows are
squares of ``base`` pixels times 1, 1.2, .. 2; a picture no larger than the first is shown twice, as
the official code does. It uses one layer of each model (see the presets); ``grad-att`` and
``pure-grad`` need gradients of the model and are not offered, nor is its tiling of pictures of more
than 1024 pixels. Its windows may have no patch on coarse grids (0/0, which then wins); here they
have one or more. Each picture's crop follows it; families that read one picture refuse.
"""

from __future__ import annotations

from collections.abc import Mapping

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.branch import Branch
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views.crops import beside, sharpest_box
from halludecode.views.relevance import relevance_maps

PAPER = Paper(
    arxiv="2502.17422",
    title="MLLMs Know Where to Look: Training-free Perception of Small Visual Details with "
    "Multimodal LLMs",
    authors="Zhang, Jiarui and Khayatkhoei, Mahyar and Chhikara, Prateek and Ilievski, Filip",
    venue="ICLR",
    year=2025,
)
GENERAL = "Write a general description of the image."


@strategy("vicrop", paper=PAPER, off={"sizes": 0})
class ViCrop(Strategy):
    """Give the crop where the question looks as a second picture."""

    layer: int = param(14, "of 32 layers, whose attention is read", ge=0, lt=32)
    base: int = param(336, "side of the smallest crop in pixels; the model's input size", ge=14)
    sizes: int = param(6, "crop sizes tried: base times 1, 1.2, 1.4, ...; 0 gives no crop", ge=0)

    fetch = ("relevance",)

    def activations(self, prompt: Prompt, m: ModelInfo) -> Mapping[str, ActivationRequest]:
        """The question's and a general prompt's attention to the image."""
        if not prompt.pictures or not self.sizes:
            return {}
        read = (min(m.scaled(self.layer), m.num_layers - 1),)
        return {
            "question": ActivationRequest(prompt, image=read),
            "general": ActivationRequest(prompt.with_instruction(GENERAL), image=read),
        }

    def prepare(self, activations: Mapping[str, Activations], m: ModelInfo) -> State:
        """One map of relative attention per picture."""
        if not activations:
            return {}
        return {"relevance": relevance_maps(activations["question"], activations["general"])}

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The main prompt with a crop after each picture."""
        if "relevance" not in state:
            return {}
        boxes = [
            sharpest_box(relevance, picture.image.size, self.base, self.sizes)
            for relevance, picture in zip(state["relevance"], prompt.pictures, strict=True)
        ]
        return {"main": Branch(beside(prompt, boxes))}
