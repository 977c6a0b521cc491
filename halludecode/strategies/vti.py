"""VTI: steer tower and decoder, each in one direction for all requests (Liu et al., ICLR 2025).

    MLP(x) <- ||MLP(x)|| n(n(MLP(x)) + 0.1 lam n(v_l)),   n(y) = y / ||y||,   every layer and token
    v = mean_i d_i + first principal axis of the d_i      (one vector over all layers)
    decoder:  d_i = h(true caption's last token) - h(hallucinated caption's)
    tower:    d_i = mean over masked copies of picture i of h - h(picture i),  each place by itself

arXiv:2410.15778. Directions are an artifact: `halludecode calibrate vti --images DIR --annotations
FILE`, lines {"image", "value", "h_value"} as in the released demonstrations; from a folder of
COCO's the hallucinated caption is the true one and a sentence on a thing that is not there.
The released code's axes also span the embeddings, its decoder axis the states after the final norm
and after a steered tower, a tower axis as many neighbouring places as there are layers (a reshape);
here none do. A tower whose pictures differ in their places has one direction a layer, their mean.
Strengths are the README's 0.9 and 0.9; the script's defaults are 0 and 0.8 (``vti@script``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.artifact import tensor
from halludecode.core.branch import Branch, Edit, TowerEdit
from halludecode.core.calibration import Calibration
from halludecode.core.residual import leaned
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views.directions import found, leaning
from halludecode.views.tower import tower_of

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.residual import ResidualStream

PAPER = Paper(
    arxiv="2410.15778",
    title="Reducing Hallucinations in Large Vision-Language Models via Latent Space Steering",
    authors="Liu, Sheng and Ye, Haotian and Xing, Lei and Zou, James",
    venue="ICLR",
    year=2025,
)


@strategy("vti", paper=PAPER, off={"image": 0.0, "text": 0.0})
class VTI(Strategy):
    """Make features stable and captions true, a little in every layer."""

    image: float = param(0.9, "strength in the vision tower", ge=0)
    text: float = param(0.9, "strength in the decoder", ge=0)
    trials: int = param(50, "masked copies of each picture", ge=1)
    ratio: float = param(0.99, "share of their patches that is masked", ge=0, le=1)
    patch: int = param(14, "side of a patch, pixels", ge=1)
    pin: str | None = param(None, "name of the artifact; None takes the last made that fits")

    artifact, artifact_params, samples = "required", ("trials", "ratio", "patch"), "pairs"
    site = "mlp"

    def calibrate(self, cal: Calibration, m: ModelInfo) -> Mapping[str, Tensor]:
        """Both directions, float32 [L, D] and [tower layers, places, Dv]."""
        return found(cal, m, self.trials, self.ratio, self.patch)

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The main row with a steered tower."""
        if not self.image:
            return {}
        tower = tower_of(m)
        tensor(m, self, "vision", (tower.read_layers, max(tower.places, 1), None))
        known = (("artifact", m.artifact), ("lam", 0.1 * self.image))
        return {"main": Branch(prompt, tower=TowerEdit("mlp", Edit(leaning, known)))}

    def steer(self, h: ResidualStream) -> Tensor:
        """The decoder's MLPs, of requests with a picture."""
        way = tensor(h.m, self, "text", (h.m.num_layers, h.m.hidden_size))
        if way is None or h.pictured is None:
            return h.x
        new = leaned(h.x, way[h.layer].to(h.x.device), 0.1 * self.text)
        return new.where(h.pictured[:, None, None], h.x.float()) if self.text else h.x
