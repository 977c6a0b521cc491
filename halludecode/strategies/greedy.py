"""Greedy: the plain model's own choice; the baseline everything is compared with.

z = l(v)
"""

from __future__ import annotations

from halludecode.core.strategy import Strategy, strategy


@strategy("greedy")
class Greedy(Strategy):
    """The identity."""
