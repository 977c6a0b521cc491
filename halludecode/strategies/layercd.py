"""LayerCD: contrast with what the tower's shallow layers show (Tong et al., 2025).

    z = (1 + alpha) * l(v_deep) - alpha * l(v_shallow),   keep y with  p(y | v) >= beta * max p

arXiv:2509.25177. The second row's image features are the projector's reading of the state after
``layer`` layers of the vision tower, in place of the one it was trained on. The official code takes
the state after the first layer, and of Cambrian's four towers only the second is cut; it falls back
to alpha = 0.5 where its arguments are not forwarded. A tower that ends in a norm has it applied to
the shallow state, too; where several layers feed the model (deepstack), deeper ones show the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.branch import Branch
from halludecode.core.logits import contrast
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views.tower import shallow

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2509.25177",
    title="Mitigating Hallucination in Multimodal LLMs with Layer Contrastive Decoding",
    authors="Tong, Bingkui and Xia, Jiaer and Zhou, Kaiyang",
    venue="arXiv",
    year=2025,
)


@strategy("layercd", paper=PAPER, off={"alpha": 0.0, "beta": 0.0})
class LayerCD(Strategy):
    """Subtract what the model says of edges and colours alone."""

    alpha: float = param(1.0, "contrast strength", ge=0)
    beta: float = param(0.1, "plausibility cut-off", ge=0, le=1)
    layer: int = param(1, "vision layers that the second row's features have been through", ge=0)

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same prompt with shallow features."""
        return {"shallow": Branch(prompt, tower=shallow(self.layer, m))}

    def combine(self, step: Step) -> Tensor:
        """VCD's rule."""
        mixed = contrast(step["main"], step["shallow"], self.alpha)
        return step.plausible(mixed, self.beta)
