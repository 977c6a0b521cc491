"""VISTA: steer towards what the image adds, and listen to late layers (Li et al., ICML 2025).

    v_l = h_l(last prompt token, with image) - h_l(last prompt token, without)
    h_l <- (h_l + lam * v_l) * ||h_l|| / ||h_l + lam * v_l||           every layer, every token
    z = (1 - gamma) * z_L + gamma * mean of z_l over the five layers before the last

arXiv:2502.03628. ``rule="released"`` is the official code's: every MLP's output is turned towards
v_l (`core.residual.turned`), and six layers are read without the final norm. There ``lam`` is a
share of the output's length, here a multiple of v_l, so the scripts' 0.01 for yes/no questions and
0.17 for captions are of the released rule (``vista@official-pope``, ``vista@official-chair``).
Not kept: a unit that a PCA of one sample adds to one number of layer 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.residual import steered, turned
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.residual import ResidualStream
    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2502.03628",
    title="The Hidden Life of Tokens: Reducing Hallucination of Large Vision-Language Models via "
    "Visual Information Steering",
    authors="Li, Zhuowei and Shi, Haizhou and Gao, Yunhe and Liu, Di and Wang, Zhenting and "
    "Chen, Yuxiao and Liu, Ting and Zhao, Long and Wang, Hao and Metaxas, Dimitris N.",
    venue="ICML",
    year=2025,
)


@strategy("vista", paper=PAPER, off={"lam": 0.0, "gamma": 0.0})
class VISTA(Strategy):
    """Add the image's own direction in every layer, and the late layers' opinion."""

    lam: float = param(0.1, "length of the step along the image's direction", ge=0)
    gamma: float = param(0.3, "share of the late layers' mean logits", ge=0, le=1)
    rule: str = param("paper", "whose steps and late layers", choices=("paper", "released"))

    @property
    def site(self) -> str:  # type: ignore[override]
        """The residual, or what MLPs put out."""
        return "mlp" if self.rule == "released" else "residual"

    def early(self, m: ModelInfo) -> Iterable[int]:
        """What enters the last layers is what those before the last put out."""
        return range(max(m.num_layers - (6 if self.rule == "released" else 5), 1), m.num_layers)

    def activations(self, prompt: Prompt, m: ModelInfo) -> Mapping[str, ActivationRequest]:
        """The last prompt token, with and without the image."""
        if not prompt.pictures:
            return {}
        prompts = {"sighted": prompt, "blind": prompt.without_images()}
        return {n: ActivationRequest(p, hidden=(*range(m.num_layers),)) for n, p in prompts.items()}

    def prepare(self, activations: Mapping[str, Activations], m: ModelInfo) -> State:
        """One direction a layer: [L, D]; none without an image."""
        import torch

        if not activations:
            return {"v": torch.zeros(m.num_layers, m.hidden_size)}
        return {"v": activations["sighted"].hidden - activations["blind"].hidden}  # type: ignore[operator]

    def steer(self, h: ResidualStream) -> Tensor:
        """The stream at its own length, nearer to the image's direction."""
        step = turned if self.rule == "released" else steered
        return step(h.x, h.state["v"][:, h.layer, None], self.lam) if self.lam else h.x

    def combine(self, step: Step) -> Tensor:
        """Self-logits augmentation."""
        late = [step.early(n, norm=self.rule == "paper") for n in step.layers]
        return (1 - self.gamma) * step["main"] + self.gamma * sum(late) / len(late)
