"""LACING: guide by what a learned soft prompt says in the image's place (Zhao et al., EMNLP 2025).

    z = z_u + scale * (z_c - z_u)          z_c with the image, z_u with the soft prompt instead

arXiv:2411.14279. The official code has no plausibility mask on this path (``beta=0``); scripts
sweep scale from 1 to 3 and name no final one, 1.5 is our default. The prompt is an artifact: stock
weights hold none. The paper trains it together with the model, whose attention it also changes
(``attention="dual"``, see `views.dual_attention`, for weights trained so); `halludecode calibrate`
trains it alone on a frozen, unchanged model, so results are not the paper's. Where pictures differ
in their token count it is repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.artifact import tensor
from halludecode.core.branch import Branch, Edit
from halludecode.core.calibration import Calibration
from halludecode.core.logits import contrast
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views.dual_attention import dual
from halludecode.views.soft import replaced

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention
    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2411.14279",
    title="Looking Beyond Text: Reducing Language Bias in Large Vision-Language Models via "
    "Multimodal Dual-Attention and Soft-Image Guidance",
    authors="Zhao, Haozhe and Si, Shuzheng and Chen, Liang and Zhang, Yichi and Sun, Maosong and "
    "Chang, Baobao and Zhang, Minjia",
    venue="EMNLP",
    year=2025,
)


@strategy("lacing", paper=PAPER, off={"scale": 1.0, "beta": 0.0, "attention": "joint"})
class LACING(Strategy):
    """Classifier-free guidance against a trained prompt that shows nothing."""

    scale: float = param(1.5, "guidance scale; 1 is the plain model", ge=0)
    beta: float = param(0.0, "plausibility cut-off; large scales want 0.1", ge=0, le=1)
    attention: str = param("joint", "dual: image and text apart", choices=("joint", "dual"))
    pin: str | None = param(None, "name of the artifact; None takes the last made that fits")

    artifact, artifact_params = "required", ()

    @property
    def trained(self) -> str:  # type: ignore[override]
        """Dual attention is learned."""
        return "mda" if self.attention == "dual" else ""

    def attend(self, a: Attention) -> None:
        """Dual attention of both rows."""
        for row in ("main", "soft") if self.attention == "dual" else ():
            dual(a, row)

    def calibrate(self, cal: Calibration, m: ModelInfo) -> Mapping[str, Tensor]:
        """Train the soft prompt on the data's captions and yes/no answers."""
        trained = cal.soft_prompt()
        loss, edge = trained["loss"], max(1, len(trained["loss"]) // 10)
        ends = f"{float(loss[:edge].mean()):.3f} -> {float(loss[-edge:].mean()):.3f}"
        cal.notes.append(f"{len(trained['soft'])} vectors, {len(loss)} steps, loss {ends} nats")
        return trained

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same prompt with the soft prompt for every picture."""
        tensor(m, self, "soft", (None, m.hidden_size))
        return {"soft": Branch(prompt, features=Edit(replaced, (("artifact", m.artifact),)))}

    def combine(self, step: Step) -> Tensor:
        """VCD's form with alpha = scale - 1."""
        mixed = contrast(step["main"], step["soft"], self.scale - 1)
        return step.plausible(mixed, self.beta)
