"""ICD: subtract what the model says in a role that disturbs it (Wang et al., ACL Findings 2024).

    z = (1 + alpha) * l(v, x) - alpha * l(v, role + x),   keep y with  p(y) >= beta * max p

arXiv:2403.18715. The paper prints ``l - alpha * l'``; the released code has VCD's form, which is
used here. Its five roles are swept and the confused one is our default; the positive ones disturb
as well. The role stands before the question, as in the released code for MiniGPT-4; for LLaVA it
is the system message there (``place="system"``), and for InstructBLIP only the Q-Former reads it.
The released sum with VCD has two masked contrasts; here ``icd+vcd`` adds both under one mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.branch import Branch
from halludecode.core.logits import contrast
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2403.18715",
    title="Mitigating Hallucinations in Large Vision-Language Models with Instruction Contrastive "
    "Decoding",
    authors="Wang, Xintong and Pan, Jingheng and Ding, Liang and Biemann, Chris",
    venue="Findings of ACL",
    year=2024,
)
ROLES: Mapping[str, str] = {  # word for word: p1k0pan/ICD, gen_scripts/icd_llava_pope.py
    "confused": "You are a confused objects detector to provide a fuzzy overview or impression of "
    "the image.",
    "general": "You are an object detector to provide a general overview or impression of the "
    "image.",
    "avoiding": "I want you avoid any specific identification or categorization of the objects "
    "depicted.",
    "detector": "You are an object detector to recognize every different objects.",
    "thorough": "You are an object detector to recognize every different objects by focusing the "
    "shapes, colors and relationships of objects.",
}


@strategy("icd", paper=PAPER, off={"alpha": 0.0, "beta": 0.0})
class ICD(Strategy):
    """Subtract what a disturbing instruction makes of the same picture."""

    alpha: float = param(1.0, "contrast strength", ge=0)
    beta: float = param(0.1, "plausibility cut-off", ge=0, le=1)
    role: str = param("confused", "which of the paper's roles", choices=tuple(ROLES))
    words: str | None = param(None, "words of a role of your own, in place of the paper's")
    place: str = param("question", "where the role stands", choices=("question", "system"))

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same pictures and question under the role."""
        role = ROLES[self.role] if self.words is None else self.words
        if self.place == "system":
            return {"disturbed": Branch(prompt.with_system(role))}
        return {"disturbed": Branch(prompt.map_question(lambda asked: f"{role} {asked}".strip()))}

    def combine(self, step: Step) -> Tensor:
        """VCD's rule."""
        mixed = contrast(step["main"], step["disturbed"], self.alpha)
        return step.plausible(mixed, self.beta)
