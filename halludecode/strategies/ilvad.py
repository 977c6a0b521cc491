"""ILVAD: look where attention rises between layers, and heed words that did (Xie et al., 2026).

    A_l(j)  mean attention on image token j of tokens 2..T of the plain answer, top half of heads
    n_j   = #{l: A_l(j) > tau mean A_l, not so in l - 1}  where A(j) is above its mean, else 0
    M_j   = exp(alpha n_j),  n clipped at 3 standard deviations, then from 0 to 1
    g_t   = sum_l mean_h sum_j w_htj log M_j       heads: half of largest  sum w log M / sum w
    w_htj <- w_htj M_j    image keys, those heads;   layers start..stop-1 of 32, emitting queries
    w_hti <- w_hti (beta + g_i, clipped likewise, from 0 to 1)   text keys, half that pays them most

arXiv:2605.20965, from its code (ytx-ML/ILVAD); of the text only the abstract was read. As there,
weights are renormalised, g of a written token is that of the query that wrote it, of the prompt's
last token 0, and in the prompt's forward summed over layers so far. There g is clipped anew in each
edited layer and step, here once, from what was measured; where nothing rises or the answer is one
token there is a division by 0, here no edit. The beginning is read twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.state import PerImageToken
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views.evidence import carried_on, risen, stressed, top_half

if TYPE_CHECKING:
    from halludecode.core.attention import Attention
PAPER = Paper(
    arxiv="2605.20965",
    title="Finding the Correct Visual Evidence Without Forgetting: Mitigating Hallucination in "
    "LVLMs via Inter-Layer Visual Attention Discrepancy",
    authors="Xie, Yutong and Hua, Zhenglin and Wang, Ran and Ng, Wing W. Y. and Wang, Xizhao "
    "and Jia, Yuheng",
    venue="ICML",
    year=2026,
)


@strategy("ilvad", paper=PAPER, off={"alpha": 0.0})
class ILVAD(Strategy):
    """Multiply attention by a map of visual evidence, and by what tokens paid it."""

    alpha: float = param(5.0, "log of the largest factor on an image token", ge=0)
    beta: float = param(0.3, "factor on the least grounded text token", ge=0)
    tau: float = param(5.0, "times its layer's mean above which an image token is active", gt=0)
    tokens: int = param(10, "most tokens of the beginning that the map is made of", ge=2)
    start: int = param(5, "of 32 layers, the first that is edited", ge=0, le=31)
    stop: int = param(26, "of 32 layers, the first that is left alone again", ge=1, le=32)

    def activations(self, prompt: Prompt, m: ModelInfo) -> Mapping[str, ActivationRequest]:
        """The plain answer's beginning."""
        return {"begun": ActivationRequest(prompt, write=self.tokens)} if prompt.pictures else {}

    def next_activations(
        self, prompt: Prompt, activations: Mapping[str, Activations], m: ModelInfo
    ) -> Mapping[str, ActivationRequest]:
        """What its tokens but the last pay the image."""
        ids, layers = activations["begun"].token_ids[:-1], m.attending(range(m.num_layers))
        read = ActivationRequest(prompt, image=layers, answered=ids, every_token=True)
        return {"read": read} if ids else {}

    def prepare(self, activations: Mapping[str, Activations], m: ModelInfo) -> State:
        """What M is the exponential of."""
        begun, read = (activations.get(name, Activations()) for name in ("begun", "read"))
        count = sum(begun.image_counts)
        return {"heat": PerImageToken(risen(read.image, count, self.tau, self.alpha))}

    def attend(self, a: Attention) -> None:
        """Count what this layer's queries pay to evidence; then edit those that emit."""
        heat, image, text = a.key("heat"), a.image.of("main"), a.text.of("main")
        w = a.weights(a.image | a.text)  # [R, H, Q, N]
        found, seen, words = ((w * k[:, None, None]).sum(-1) for k in (heat, image, text))
        looking = top_half(found / (seen + 1e-8))
        paid = found.where(looking, 0.0).sum(1) / looking.sum(1)
        told = carried_on(a.tally("grounding", paid, queries="after_image"), a)
        heat, stress = heat[:, None, None], stressed(told, self.beta, text).log()[:, None, None]
        here = a.layer in a.m.scaled_range(self.start, self.stop)
        a.add_scores(a.image, heat * (looking & here)[..., None])
        a.add_scores(a.text, stress.where((top_half(words) & here)[..., None], 0.0))
