"""IMCCD: contrast with a row whose most attended image values are levelled (Li et al., 2025).

    both rows:  s_ij as if image token j stood at start + (j - start) / closer,  text likewise
    that row:   v_hj <- mean of v_h over image tokens and dimensions   where  s_hij > m_i
    z = (1 + alpha) l - alpha l',   keep y with  p(y) >= beta * max p

arXiv:2501.01926, later "Cross-Modal Attention Calibration" (CVPR 2026). Text queries after the
picture, image keys, every layer; s are scores under the new positions, m_i their mean over heads
and image tokens, of one query: so in the released code for written tokens, while for the prompt it
takes one mean over all its text queries. Where its scripts hand over the tokenizer (captions) it
also leaves out the contrast at tokens that look at the picture less than those so far did; as its
POPE script does, this does not. Of several pictures, all are drawn together. alpha and beta are 1
and 0.2 (captions), 3 and 0.2 (POPE), 1 and 0.5 (MME) there, see the presets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.branch import Branch
from halludecode.core.logits import contrast
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention
    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2501.01926",
    title="Mitigating Hallucination for Large Vision-Language Model by Inter-Modality Correlation "
    "Calibration Decoding",
    authors="Li, Jiaming and Zhang, Jiacheng and Jie, Zequn and Ma, Lin and Li, Guanbin",
    venue="arXiv",
    year=2025,
)


@strategy("imccd", paper=PAPER, off={"alpha": 0.0, "beta": 0.0, "closer": 1.0})
class IMCCD(Strategy):
    """Subtract what is said without the picture's most attended values."""

    alpha: float = param(1.0, "contrast strength", ge=0)
    beta: float = param(0.2, "plausibility cut-off", ge=0, le=1)
    closer: float = param(3.0, "how many times nearer image tokens stand to each other", ge=1)

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same prompt, with values of its own."""
        return {"levelled": Branch(prompt)}

    def attend(self, a: Attention) -> None:
        """Draw the picture together in both rows, then level its values in one."""
        for row in ("main", "levelled"):
            at, image = a.standing(row), a.image.of(row)
            nearer = at - (1 - 1 / self.closer) * (image.cumsum(-1) - image.int()).clamp_min(0)
            asking = (a.own_key.of(row) * nearer[:, None]).sum(-1)  # [R, Q]
            a.reposition(a.image, asking, nearer, rows=(row,), queries="after_image")
        scores, image = a.scores(a.image, row="levelled"), a.image.of("levelled")[:, None, None]
        count = (image.sum(-1) * scores.shape[1]).clamp_min(1)[..., None]
        mean = scores.where(image, 0.0).sum((1, 3), keepdim=True) / count
        a.average_values(a.image, scores > mean, rows=("levelled",), queries="after_image")

    def combine(self, step: Step) -> Tensor:
        """VCD's rule."""
        mixed = contrast(step["main"], step["levelled"], self.alpha)
        return step.plausible(mixed, self.beta)
