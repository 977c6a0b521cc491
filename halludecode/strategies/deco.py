"""DeCo: add the layer that is surest of a candidate (Wang et al., ICLR 2025, arXiv:2410.11779).

    C = the likeliest top_k tokens of p_N, up to the one that brings their mass to top_p
    l*, w* = argmax p_l(w) over w in C and layers first..last,   p_l = softmax(head(norm(h_l)))
    z = z_N + alpha * p_{l*}(w*) * z_{l*}      on C, nothing else

Layers are given for 32 and scaled; residuals entering them are read, with the final norm (code).
The code takes one request at a time, here each of a batch has its own candidates and layer. Its
alpha is 0.6 in its usage example, 0.5 in its table. The end token is out unless it is a candidate.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from halludecode.core.errors import InvalidParameter
from halludecode.core.strategy import ModelInfo, Paper, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2410.11779",
    title="MLLM can see? Dynamic Correction Decoding for Hallucination Mitigation",
    authors="Wang, Chenxi and Chen, Xiang and Zhang, Ningyu and Tian, Bozhong and Xu, Haoming and "
    "Deng, Shumin and Chen, Huajun",
    venue="ICLR",
    year=2025,
)


@strategy("deco", paper=PAPER, off={"alpha": 0.0})
class DeCo(Strategy):
    """Let a middle layer that still sees the object speak up among the last one's candidates."""

    alpha: float = param(0.6, "weight of the chosen layer", ge=0)
    top_k: int = param(20, "most candidates", ge=1)
    top_p: float = param(0.9, "probability at which candidates end", gt=0, le=1)
    first: int = param(20, "first layer that is tried, of 32", ge=0, le=31)
    last: int = param(28, "last layer that is tried, of 32", ge=0, le=31)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first > self.last:
            raise InvalidParameter(
                f"deco(first={self.first}, last={self.last}): the first layer is after the last."
            )

    def early(self, m: ModelInfo) -> Iterable[int]:
        """What enters the layers first to last."""
        end = m.num_layers - 1
        return range(min(m.scaled(self.first), end), min(m.scaled(self.last), end) + 1)

    def combine(self, step: Step) -> Tensor:
        """The correction, among the candidates alone."""
        import torch

        main = step["main"]
        top = main.softmax(-1).topk(min(self.top_k, main.shape[-1]))
        before = torch.nn.functional.pad(top.values.cumsum(-1)[:, :-1], (1, 0))  # mass, [B, k]
        kept = before < self.top_p
        early = torch.stack([step.early(n, norm=True) for n in step.layers])  # [L, B, V]
        sure = early.softmax(-1).gather(-1, top.indices.expand(len(early), -1, -1))
        most, layer = sure.masked_fill(~kept, 0).amax(-1).max(0)  # [B]
        anchor = early[layer, torch.arange(len(layer), device=layer.device)]
        candidates = torch.zeros_like(main, dtype=torch.bool).scatter(-1, top.indices, kept)
        return step.among(main + self.alpha * most[:, None] * anchor, candidates)
