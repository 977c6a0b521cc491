"""DAMRO: contrast with the tower's attention outliers alone (Gong et al., EMNLP 2024).

    z = (1 + alpha) * l(v) - alpha * l(v_outliers),   keep y with  p(y | v) >= beta * max p(. | v)

arXiv:2410.04514. The second row sees only the k image tokens that the vision tower's CLS token
attends to most, in falling order; later positions move up. The official code compares full-width
queries and keys as one head (``heads="fullwidth"``); the paper's words suggest the mean over heads,
the default here. It also skips temperature and penalties, which here act as usual. Towers without a
CLS token rank by the mean attention received, which no paper has tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.branch import Branch, Edit
from halludecode.core.logits import contrast
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2410.04514",
    title="DAMRO: Dive into the Attention Mechanism of LVLM to Reduce Object Hallucination",
    authors="Gong, Xuan and Ming, Tianshi and Wang, Xinpeng and Wei, Zhihua",
    venue="EMNLP",
    year=2024,
)


def chosen(features: Tensor, *, picks: Tensor) -> Tensor:
    """[k, D]: rows ``picks`` (int64 [k]) of a picture's features [N, D]."""
    return features[picks.to(features.device)]


@strategy("damro", paper=PAPER, off={"alpha": 0.0, "beta": 0.0})
class DAMRO(Strategy):
    """Subtract what the model says from background registers alone."""

    alpha: float = param(2.0, "contrast strength", ge=0)
    k: int = param(10, "image tokens the second row sees", ge=1)
    beta: float = param(0.1, "plausibility cut-off", ge=0, le=1)
    heads: str = param("mean", "how the tower's attention is read", choices=("mean", "fullwidth"))

    fetch = ("picks",)

    def activations(self, prompt: Prompt, m: ModelInfo) -> Mapping[str, ActivationRequest]:
        """The tower's layer that feeds the projector."""
        if not prompt.pictures or m.vision is None:
            return {}
        layer = m.vision.feature_layer % m.vision.layers
        kind = "fullwidth" if self.heads == "fullwidth" else "split"
        return {"tower": ActivationRequest(prompt, vision=(layer,), vision_heads=kind)}

    def prepare(self, activations: Mapping[str, Activations], m: ModelInfo) -> State:
        """int64 [pictures, k]: the most attended tokens of each picture."""
        import torch

        tower = activations.get("tower", Activations())
        if tower.vision is None:
            return {}
        counts = tower.image_counts
        each = torch.split(tower.vision[0].mean(0), list(counts))  # [N_img] of every picture
        return {"picks": torch.stack([torch.topk(r, min(self.k, *counts))[1] for r in each])}

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same prompt with k tokens a picture."""
        if not state:
            return {"outliers": Branch(prompt)}
        edit = Edit(chosen, use=("picks",))
        return {"outliers": Branch(prompt, features=edit, tokens=state["picks"].shape[-1])}

    def combine(self, step: Step) -> Tensor:
        """VCD's rule."""
        return step.plausible(contrast(step["main"], step["outliers"], self.alpha), self.beta)
