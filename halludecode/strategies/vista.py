"""VISTA: steer towards what the image adds, and listen to late layers (Li et al., ICML 2025).

    v_l = h_l(last prompt token, with image) - h_l(last prompt token, without)
    h_l <- (h_l + lam * v_l) * ||h_l|| / ||h_l + lam * v_l||           every layer, every token
    z = (1 - gamma) * z_L + gamma * mean of z_l over the five layers before the last

arXiv:2502.03628. The official code steers each MLP's output instead of the residual, scales lam by
1 + max(0, cos(x, -v)), decodes six layers without the final norm, and adds a unit artefact of a
one-sample PCA; here directions come from the plain model and the final norm is used. The authors
advise lam = 0.01 for yes/no questions; 0.17 of the paper's captions repeats itself for others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from halludecode.core.activations import ActivationRequest, Activations
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


def steered(x: Tensor, v: Tensor, lam: float) -> Tensor:
    """``x + lam * v`` at the length of x; x and v are [.., D]."""
    before, moved = x.float(), x.float() + lam * v.float()
    sizes = (before.square().sum(-1, keepdim=True), moved.square().sum(-1, keepdim=True))
    return moved * (sizes[0] / sizes[1].clamp_min(1e-12)).sqrt()


@strategy("vista", paper=PAPER, off={"lam": 0.0, "gamma": 0.0})
class VISTA(Strategy):
    """Add the image's own direction in every layer, and the late layers' opinion."""

    lam: float = param(0.1, "length of the step along the image's direction", ge=0)
    gamma: float = param(0.3, "share of the late layers' mean logits", ge=0, le=1)

    def early(self, m: ModelInfo) -> Iterable[int]:
        """What enters the last five layers is what the five before the last put out."""
        return range(max(m.num_layers - 5, 1), m.num_layers)

    def activations(self, prompt: Prompt, m: ModelInfo) -> Mapping[str, ActivationRequest]:
        """The last prompt token in every layer, with and without the image."""
        if not prompt.pictures:
            return {}
        every = tuple(range(m.num_layers))
        blind = ActivationRequest(prompt.without_images(), hidden=every)
        return {"sighted": ActivationRequest(prompt, hidden=every), "blind": blind}

    def prepare(self, activations: Mapping[str, Activations], m: ModelInfo) -> State:
        """One direction a layer: [L, D]; none without an image."""
        import torch

        if not activations:
            return {"v": torch.zeros(m.num_layers, m.hidden_size)}
        return {"v": activations["sighted"].hidden - activations["blind"].hidden}  # type: ignore[operator]

    def steer(self, h: ResidualStream) -> Tensor:
        """The residual leaving a layer, at its own length."""
        return steered(h.x, h.state["v"][:, h.layer, None], self.lam) if self.lam else h.x

    def combine(self, step: Step) -> Tensor:
        """Self-logits augmentation."""
        late = [step.early(n, norm=True) for n in step.layers]
        return (1 - self.gamma) * step["main"] + self.gamma * sum(late) / len(late)
