"""What a strategy that searches over beams tells the engine; the loop belongs to the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Peek:
    """One step of W beams with n candidate tokens each, every candidate tried in a forward.

    Args:
        written: Tokens of the answer so far, the same for every beam.
        attention: float32 [W, n, A, A], the ``layer``'s attention among the answer's positions, the
            candidate's row last, largest over heads.
        image: float32 [W, n], the candidate row's attention mass on the image, largest over heads.
    """

    written: int
    attention: Tensor
    image: Tensor


@dataclass(frozen=True)
class BeamSearch:
    """Beams scored by what their candidates attend to.

    Args:
        width: Beams W.
        peek: Candidates n tried per beam and step.
        layer: Decoder layer whose attention is kept.
        penalty: ``Peek -> ([W, n] subtracted from the candidates' logits, int [W, n] position it
            points at)``.
        rollback: ``positions pointed at, one per step -> position to return to, or None``.
    """

    width: int
    peek: int
    layer: int
    penalty: Callable[[Peek], tuple[Tensor, Tensor]]
    rollback: Callable[[Sequence[Tensor]], int | None]
