"""VDGD: answer with words that the model's own description supports (Ghosh et al., ICLR 2025).

    candidates: the tokens before the largest drop of the sorted p(. | v, description)     (elbow)
    z(w) = max_j ln q_j(w) = -min_j KL(onehot(w) || q_j)     on candidates, -inf elsewhere

arXiv:2405.15683. q_j is what predicted token j of the description, which also stands before the
question. The official code takes T = 0.5 and top-p 0.5 for the elbow (``truncation="top_p"``), asks
for the mean in its README, and divides the divergence by the vocabulary's size, which makes its
choice all but uniform; that is not offered. The elbow is quoted second-hand. ``free_end`` lets the
token that ended the description keep its own probability: only one position can support it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.branch import Branch
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views.description import described, descriptions, end_apart, grounds

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2405.15683",
    title="Visual Description Grounding Reduces Hallucinations and Boosts Reasoning in LVLMs",
    authors="Ghosh, Sreyan and Evuru, Chandra Kiran Reddy and Kumar, Sonal and Tyagi, Utkarsh and "
    "Nieto, Oriol and Jin, Zeyu and Manocha, Dinesh",
    venue="ICLR",
    year=2025,
)


def candidates(main: Tensor, truncation: str) -> Tensor:
    """Bool [B, V]: tokens before the largest drop, or the nucleus of T = 0.5 and top-p 0.5."""
    p = (main / 0.5 if truncation == "top_p" else main).softmax(-1)
    order = p.sort(dim=-1, descending=True).values
    last = (order[:, :-1] - order[:, 1:]).argmax(-1, keepdim=True)
    if truncation == "top_p":
        last = (order.cumsum(-1) - order < 0.5).sum(-1, keepdim=True) - 1
    return p >= order.gather(-1, last)


@strategy("vdgd", paper=PAPER, off={"strength": 0.0})
class VDGD(Strategy):
    """Choose among likely tokens the one the description supports best."""

    strength: float = param(1.0, "share of the re-scoring; 0 writes no description", ge=0, le=1)
    truncation: str = param("elbow", "what makes a candidate", choices=("elbow", "top_p"))
    reduction: str = param("min", "over description tokens", choices=("min", "avg", "sum"))
    free_end: bool = param(False, "the end token keeps its own probability")
    tokens: int = param(1024, "most tokens of a description", ge=1)
    request: str | None = param(None, "what to ask for instead; {question} is filled in")

    def activations(self, prompt: Prompt, m: ModelInfo) -> Mapping[str, ActivationRequest]:
        """One description per picture, with the logits that predicted it."""
        return descriptions(prompt, self.request, self.tokens) if self.strength else {}

    def prepare(self, activations: Mapping[str, Activations], m: ModelInfo) -> State:
        """The descriptions, what they support (one [V] tensor), and the token that ended them."""
        return grounds(list(activations.values()), m.vocab_size, self.reduction, self.tokens)

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The main prompt with the description in it."""
        return {"main": Branch(described(prompt, state["text"]))} if state["text"] else {}

    def combine(self, step: Step) -> Tensor:
        """Evidence in place of the model's own opinion, on its candidates."""
        main, scores = step["main"], step.state["evidence"]
        backed = scores.any(-1, keepdim=True)  # all zero where nothing was described
        among = candidates(main, self.truncation)
        if self.free_end:
            scores = end_apart(scores, main, among, step.state["end"])
        return step.among(main.lerp(scores, self.strength).where(backed, main), among | ~backed)
