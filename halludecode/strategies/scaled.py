"""Scaled: the plain model at temperature 1 / scale; the control of rules with a net scale.

    z = scale * l(v)

A rule whose coefficients sum to s acts as temperature 1 / s wherever its rows agree, and a lower
temperature alone answers yes/no questions better than plain sampling does (Yin et al.,
arXiv:2504.10020). Under greedy decoding it changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from halludecode.core.strategy import Strategy, param, strategy
from halludecode.strategies.apc_only import PAPER

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step


@strategy("scaled", paper=PAPER, off={"scale": 1.0})
class Scaled(Strategy):
    """Multiply the plain model's logits, contrast nothing."""

    scale: float = param(1.0, "factor on the logits, one over a temperature", gt=0)

    def combine(self, step: Step) -> Tensor:
        """Logits of the main row times the factor."""
        return step["main"] * self.scale
