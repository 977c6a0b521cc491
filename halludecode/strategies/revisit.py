"""ReVisiT: let the image token that says most alike choose with the model (Cho and Kim, 2025).

    C = {y : p(y) >= beta * max p},   p_C, q_i: over C, of the model and of what image token i says
    i* = argmin_i JSD(p_C, q_i),   z(y) = log p_C(y) + log q_i*(y)  for y in C,  others are banned

arXiv:2506.09522. What an image token says is the LM head, final norm included, on the state that
the prompt left there. States are read in a pass before the answer, and at each token only C's rows
of the head; the code takes both from the first forward, for the whole vocabulary. It sums KL(M||p)
and KL(M||q) where Jensen and Shannon have KL(p||M) and KL(q||M): ``divergence="reversed"``, the
default. Its script for Qwen2.5-VL also asks the states of every second layer, without the norm;
here the last one's alone. The product sharpens: compare sampled results with a temperature-matched
baseline. A token that beta leaves alone is decided by the main row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.logits import NEG_INF, js, plausible, reversed_js
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2506.09522",
    title="Revisit What You See: Disclose Language Prior in Vision Tokens for Efficient Guided "
    "Decoding of LVLMs",
    authors="Cho, Beomsik and Kim, Jaehyung",
    venue="arXiv",
    year=2025,
)


def nearest(main: Tensor, seen: Tensor, divergence: str) -> Tensor:
    """Int64 []: which of N image tokens' logits [N, K] is most like some [K]."""
    return (js if divergence == "js" else reversed_js)(main.expand_as(seen), seen).argmin()


@strategy("revisit", paper=PAPER, off={"beta": 1.0})
class ReVisiT(Strategy):
    """Multiply by what the most alike image token says."""

    beta: float = param(1e-5, "plausibility cut-off; 1 leaves one token", gt=0, le=1)
    divergence: str = param("reversed", "how far a token is", choices=("reversed", "js"))

    def activations(self, prompt: Prompt, m: ModelInfo) -> Mapping[str, ActivationRequest]:
        """The states that the prompt leaves."""
        last = ActivationRequest(prompt, hidden=(m.num_layers - 1,), every_token=True)
        return {"states": last} if prompt.pictures else {}

    def prepare(self, activations: Mapping[str, Activations], m: ModelInfo) -> State:
        """Those of image tokens: [N_img, D], none without a picture."""
        import torch

        kept = activations.get("states")
        if kept is None:
            return {"seen": torch.zeros(0, m.hidden_size)}
        return {"seen": kept.hidden[0][kept.image_mask]}  # type: ignore[index]

    def combine(self, step: Step) -> Tensor:
        """Request by request, each on its own candidates."""
        main = step["main"]
        kept, scores = plausible(main, like=main, beta=self.beta) > NEG_INF, main.clone()
        for r, states in enumerate(step.state["seen"]):
            tokens = kept[r].nonzero()[:, 0]
            if len(states) and len(tokens) > 1:
                asked = tokens if step.masks else kept[r].new_ones(kept.shape[1]).nonzero()[:, 0]
                own, seen = main[r, tokens], step.decode(states, tokens)
                chosen = nearest(own, seen, self.divergence)
                said = step.decode(states[chosen], asked) - seen[chosen].logsumexp(-1)
                scores[r, asked] = main[r, asked] - own.logsumexp(-1) + said
        return step.plausible(scores, self.beta)
