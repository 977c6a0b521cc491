"""ACT: calibrate attention sinks behind the first token (Yu et al., ICML 2024, arXiv:2406.15765).

    a_k = sum_{i >= k} w_ik / (N - k)                a sink where  a_k > alpha / N,  never token 0
    w_k <- beta * w_k  for sinks,  the freed weight to all other keys in proportion to theirs

In heads found by `halludecode calibrate`, where this edit alone raises the score; layers 2..L-2.
Given for text models; image tokens are among the sinks (`var` moves attention from those instead).
The code's threshold is a fixed 0.1 (``tau``). It drops the first sink *found*, which need not be
token 0, and flags at random with a KV cache; here sinks are those of the prompt, for later queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from halludecode.core.artifact import tensor
from halludecode.core.heads import alone, one_heads, pictured
from halludecode.core.strategy import Calibration, ModelInfo, Paper, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention

PAPER = Paper(
    arxiv="2406.15765",
    title="Unveiling and Harnessing Hidden Attention Sinks: Enhancing Large Language Models "
    "without Training through Attention Calibration",
    authors="Yu, Zhongzhi and Wang, Zheng and Fu, Yonggan and Shi, Huihong and Shaikh, Khalid and "
    "Lin, Yingyan Celine",
    venue="ICML",
    year=2024,
)


@strategy("act", paper=PAPER, off={"beta": 1.0})
class ACT(Strategy):
    """Damp later sinks in chosen heads."""

    beta: float = param(0.4, "share of a sink's attention that it keeps", gt=0, le=1)
    alpha: float = param(5.0, "a sink receives more than alpha / N on average", gt=0)
    tau: float | None = param(None, "that threshold itself, in place of alpha / N", gt=0)

    artifact = "required"
    artifact_params = ()

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """2..L-2 with a chosen head; all of them where there is none, so that it shows."""
        heads, most = self.heads(m), range(2, max(m.num_layers - 1, 3))
        return [i for i in most if heads is not None and bool(heads[i].any())] or most

    def heads(self, m: ModelInfo) -> Tensor | None:
        """Bool [L, H]: heads in which the edit alone raised the score."""
        gain = tensor(m, self, "gain", (m.num_layers, m.num_heads))
        return None if gain is None else gain > 0

    def calibrate(self, cal: Calibration, m: ModelInfo) -> Mapping[str, Tensor]:
        """Float32 [L, H]: what the edit does to the score in each head alone."""
        plain = cal.score(replace(self, beta=1.0), {"gain": one_heads(m, ())})
        return {"gain": alone(cal, m, lambda h: cal.score(self, {"gain": h.float()}) - plain)}

    def attend(self, a: Attention) -> None:
        """As a bias on the sinks' scores, so that softmax shares out what they lose."""
        sinks = a.keys_at_first_token("sinks", lambda: self.sinks(a))[:, :, None]  # [R, H, 1, N]
        every = a.image | ~a.image
        held = (a.weights(every) * sinks).sum(-1, keepdim=True)
        rest = (1 - held).clamp_min(1e-9) / (1 - self.beta * held).clamp_min(1e-9)
        a.add_scores(every, sinks * (self.beta * rest).log(), queries="all")

    def sinks(self, a: Attention) -> Tensor:
        """Float 0 or 1 [R, H, N], in the chosen heads of requests with a picture."""
        received, first = a.received(), a.first.of("main")
        left = received.new_tensor(range(received.shape[-1], 0, -1))  # N - k
        edge = self.alpha / left[first.float().argmax(-1)][:, None, None]
        means = received / left > (edge if self.tau is None else self.tau)
        heads = self.heads(a.m)
        chosen = pictured(a) if heads is None else pictured(a) & heads[a.layer].to(first.device)
        return (means & ~first[:, None] & chosen[..., None]).float()
