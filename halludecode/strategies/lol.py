"""LOL: contrast with a noised picture at the last layer and at a lower one (Chen et al., 2024).

    F_l = log q_l(v) - log q_l(v'),     q_l = softmax(head(h_l)),  q_N the model's own distribution
    z = F_N + omega * F_{l*},           l* by DoLa's rule,    keep y with  q_N(y) >= beta * max q_N

arXiv:2408.08769. The paper contrasts a text model with a copy of itself that was tuned to
hallucinate, helped by an instruction; no code of it could be read, and its fusion weight and choice
of layer are not known. This is the training-free form for pictures: the other model is the same one
on VCD's noised picture, l* is the layer of the main row that differs most from its last (`dola`,
every row for itself, no final norm before the head), and ``omega`` is ours. Experimental. The
noised row is read in every layer, so it never waits. The net scale is 0: prefer greedy decoding.
``strength`` is the share of log q_N(v') that is subtracted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from halludecode.core.branch import Branch, Edit
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.strategies.dola import divergence, tried
from halludecode.views.noise import diffuse

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2408.08769",
    title="Lower Layers Matter: Alleviating Hallucination via Multi-Layer Fusion Contrastive "
    "Decoding with Truthfulness Refocused",
    authors="Chen, Dingwei and Fang, Feiteng and Ni, Shiwen and Liang, Feng and Hu, Xiping and "
    "Argha, Ahmadreza and Alinejad-Rokny, Hamid and Yang, Min and Li, Chengming",
    venue="arXiv",
    year=2024,
)


@strategy("lol", paper=PAPER, off={"strength": 0.0, "omega": 0.0, "beta": 0.0})
class LOL(Strategy):
    """Subtract what a noised picture suggests, in the last layer and in a lower one."""

    omega: float = param(0.3, "weight of the lower layer", ge=0)
    strength: float = param(1.0, "share of the last layer's contrast", ge=0)
    beta: float = param(0.1, "plausibility cut-off", ge=0, le=1)
    noise_step: int = param(500, "diffusion steps added to the pixels", ge=0, lt=1000)
    bucket: str = param("high", "which half of the layers is tried", choices=("low", "high"))

    def early(self, m: ModelInfo) -> Iterable[int]:
        """Those that DoLa tries."""
        return tried(self.bucket, m)

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same prompt with noised pixels, as VCD has it."""
        noise = Edit(diffuse, (("step", self.noise_step),), draw=0)
        return {"noised": Branch(prompt, pixels=noise)}

    def combine(self, step: Step) -> Tensor:
        """Both contrasts, each row's lower layer its own."""
        import torch

        def lower(row: str) -> Tensor:
            early = [step.early(n, row=row) for n in step.layers]
            return torch.stack(early).log_softmax(-1)  # [layers, B, V]

        last, noised = (step[row].log_softmax(-1).clamp_min(-1e3) for row in ("main", "noised"))
        seen = lower("main")
        chosen = divergence(last, seen, "code").argmax(0)  # [B]
        at = chosen, torch.arange(len(chosen), device=chosen.device)
        mixed = last - self.strength * noised + self.omega * (seen[at] - lower("noised")[at])
        return step.plausible(mixed, self.beta)
