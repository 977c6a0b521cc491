"""OPERA: penalise beams that lean on a summary token, or go back (Huang et al., arXiv:2311.17911).

    s_j = 1e-7 * prod_{i >= j} sigma * A_ij,     phi = max_j s_j       (CVPR 2024, sec. 3.2)
    z(c) = l(c) - w * phi(c)     for the n likeliest candidates c of each of num_beams beams
    back to j + 1 if all beams pointed at the same j more than r times     (retrospection, 3.3)

A is the last layer's attention among the answer's tokens, the candidate's row included: largest
over heads, then divided by its sum over all keys (code). In the answer's first ten tokens phi is
minus the attention to the image (code), and no beam goes back there. After a return nothing is
penalised for one token; the tokens chosen there before are forbidden. ``rule="released"`` is the
code's: beams are ranked by log-probability over the length of prompt text and answer, pointings
counted by place; with "own" the answer alone ranks, and a past follows its beam. Other than in the
code s is in log space, at most 65504, and tokens not tried or forbidden are out, not at -999.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.beam_search import BeamSearch, Peek
from halludecode.core.strategy import ModelInfo, Paper, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

PAPER = Paper(
    arxiv="2311.17911",
    title="OPERA: Alleviating Hallucination in Multi-Modal Large Language Models via Over-Trust "
    "Penalty and Retrospection-Allocation",
    authors="Huang, Qidong and Dong, Xiaoyi and Zhang, Pan and Wang, Bin and He, Conghui and "
    "Wang, Jiaqi and Lin, Dahua and Zhang, Weiming and Yu, Nenghai",
    venue="CVPR",
    year=2024,
)
EARLY, HISTORY = 10, 512  # positions that are paid for looking at the image; most steps back
LOG_UNIT, LOG_MOST = math.log(1e-7), math.log(65504)


@strategy("opera", paper=PAPER, off={"num_beams": 1, "penalty_weight": 0.0})
class OPERA(Strategy):
    """Beam search with an over-trust penalty and retrospection."""

    num_beams: int = param(5, "beams", ge=1)
    sigma: float = param(50.0, "factor on attention weights (scale_factor)", gt=0)
    threshold: int = param(15, "pointings at one token before going back (r)", ge=1)
    num_attn_candidates: int = param(5, "tokens tried per beam and step (n)", ge=1)
    penalty_weight: float = param(1.0, "weight of the penalty (w)", ge=0)
    rule: str = param("released", "how beams are ranked", choices=("released", "own"))

    def search(self, m: ModelInfo) -> BeamSearch:
        """Beams read at the last layer."""
        width, n, code = self.num_beams, self.num_attn_candidates, self.rule == "released"
        if self.penalty_weight == 0:
            return BeamSearch(width)
        rules = (self.columns, self.over_trust, self.retrospect, HISTORY, code, code)
        return BeamSearch(width, n, m.num_layers - 1, *rules)

    def columns(self, kept: Tensor, row: Tensor) -> Tensor:
        """Log of every column's product so far, [.., A], times the new row's entry."""
        entry = (self.sigma * row).log()
        entry[..., :-1] += kept
        return entry

    def over_trust(self, peek: Peek) -> tuple[Tensor, Tensor]:
        """Penalties [B, n], and the column most of a beam's candidates trust most [B]."""
        column, at = peek.kept.max(-1)
        phi = (column + LOG_UNIT).clamp(max=LOG_MOST).exp()
        phi = -peek.image if peek.written < EARLY else phi
        return self.penalty_weight * phi, at.mode(-1).values

    def retrospect(self, pointed: Tensor, used: Mapping[int, int]) -> int | None:
        """Position after the summary token, or its own once that was tried n times."""
        summary = int(pointed[:, -1].mode().values)
        overlap = (pointed == summary).sum(-1)
        if summary < EARLY or bool((overlap <= self.threshold).any()):
            return None
        most = self.num_attn_candidates
        return next((p for p in (summary + 1, summary) if used.get(p, 0) < most), None)
