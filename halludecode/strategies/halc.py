"""HALC: look again at each object that is named, closer and from further (Chen et al., ICML 2024).

    z_i - weight z_j  and  z_j - weight z_i   of the ``pairs`` furthest apart of ``fields`` views

arXiv:2403.00425. Where the answer names an object, a detector finds it (else: the picture's middle;
in more than three places: it stays), and its word's first token is predicted again from crops round
the place, sides times .4, 1, 1.6, 2.56. D = (KL(m || p_i) + KL(m || p_j)) / 2 ranks pairs; the best
token of each contrast is a candidate, and the one whose text so far a model of pictures and words
likes best is written. This is done before the answer, by passes that depend on each other; then the
tokens are written, after ``tokens`` the plain model's. Left out: more beams than the release's one,
DoLa as its base, skipping .3 of words by chance, its tagger (``objects`` are listed) and BLIP.
Crops of fewer than 32 pixels are enlarged, since some models make too few tokens of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views import fields
from halludecode.views.fields import Looking

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2403.00425",
    title="HALC: Object Hallucination Reduction via Adaptive Focal-Contrast Decoding",
    authors="Chen, Zhaorun and Zhao, Zhuokai and Luo, Hongyin and Yao, Huaxiu and Li, Bo and "
    "Zhou, Jiawei",
    venue="ICML",
    year=2024,
)


@strategy("halc", paper=PAPER, off={"tokens": 0})
class HALC(Strategy):
    """Write what contrasted fields of view say of each object."""

    tokens: int = param(64, "most tokens that are looked at; 0 looks at none", ge=0)
    fields: int = param(4, "fields of view (context window)", ge=2, le=8)
    growth: float = param(0.6, "share by which a field is larger than the last", ge=0, le=0.8)
    pairs: int = param(2, "pairs contrasted, each both ways (half of k)", ge=1)
    weight: float = param(0.05, "share of the other field that is subtracted", ge=0)
    threshold: float = param(0.4, "least score of a box", ge=0, le=1)
    objects: tuple[str, ...] = param((), "words looked at; () COCO's and people, 'all' each")
    detector: str = param("IDEA-Research/grounding-dino-tiny", "told what to find; id or path")
    matcher: str = param("google/siglip-base-patch16-224", "of pictures and words; id or path")

    def _search(self, prompt: Prompt) -> fields.Words:
        models = (self.objects, self.detector, self.threshold, self.matcher)
        numbers = (self.fields, self.growth, self.pairs, self.weight, self.tokens)
        return fields.looked_at(prompt, Looking(*models, *numbers))

    def activations(self, prompt: Prompt, m: ModelInfo) -> Mapping[str, ActivationRequest]:
        """The plain answer."""
        return next(self._search(prompt)) if prompt.pictures and self.tokens else {}

    def next_activations(
        self, prompt: Prompt, activations: Mapping[str, Activations], m: ModelInfo
    ) -> Mapping[str, ActivationRequest]:
        """Fields of view of the next object, its candidates, or the answer after one of them."""
        return fields.replay(self._search(prompt), activations)

    def prepare(self, activations: Mapping[str, Activations], m: ModelInfo) -> State:
        """int64 [tokens]: the answer's, -1 after its end."""
        return {"answer": fields.written(activations, max(self.tokens, 1))}

    def combine(self, step: Step) -> Tensor:
        """The token that was settled on, where it may be written; the plain model's after them."""
        only = fields.only(step["main"], step.state["answer"], step.t)
        return step.among(step["main"], only | ~only.any(-1, keepdim=True))
