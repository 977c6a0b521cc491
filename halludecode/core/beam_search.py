"""What a strategy that searches over beams tells the engine; the loop belongs to the engine.

The engine grows beams, scores them as beam search does and keeps what it needs to go back; the
strategy says what a candidate costs for what it attends to, and when to go back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Peek:
    """One step of B live beams with n candidate tokens each, all tried in one forward.

    An attention row is the ``layer``'s, largest over heads, then divided by its sum over all keys,
    the prompt's included.

    Args:
        written: Tokens of the answer so far, the same for every beam.
        kept: float64 [B, n, A], A = written + 1: what `BeamSearch.fold` made of the rows of the
            beam's tokens and of the candidate, the candidate's own position last.
        image: float64 [B, n], the candidate row's sum over the image's tokens.
    """

    written: int
    kept: Tensor
    image: Tensor


def last_row(kept: Tensor, row: Tensor) -> Tensor:
    """The plainest `BeamSearch.fold`: keeps the latest row alone."""
    return row


def no_penalty(peek: Peek) -> tuple[Tensor, Tensor]:
    """Candidates keep their logits; every beam points at position 0."""
    return peek.image * 0, peek.image[:, 0].long() * 0


def never(pointed: Tensor, used: Mapping[int, int]) -> int | None:
    """A search that never goes back."""
    return None


@dataclass(frozen=True)
class BeamSearch:
    """Beams whose candidates are scored by what they attend to. Callbacks are pure.

    With ``peek=0`` it is plain beam search: nothing is tried before it is chosen.

    Args:
        width: Most beams.
        peek: Candidates n tried per beam and step; only these can be chosen.
        layer: Decoder layer whose attention is read.
        fold: ``(kept [.., A-1], row [.., A]) -> kept [.., A]``, float64: one number per answer
            position that a beam carries along; ``row`` is a new token's attention to the answer.
        penalty: ``Peek -> ([B, n] subtracted from the candidates' logits, int [B] answer position
            each beam points at)``.
        rollback: ``(pointed [B, steps], used) -> position or None``: the answer is cut to that many
            tokens and goes on otherwise; ``used`` counts earlier returns by position.
        history: Most steps the search can go back.
        prompt_counts: A beam's log-probability is divided by the text ids of its prompt (a picture
            is one) plus its answer's without the end token, in place of its answer's tokens.
        by_slot: ``pointed`` is kept by place among the beams, in place of by what beam came from.
    """

    width: int
    peek: int = 0
    layer: int = 0
    fold: Callable[[Tensor, Tensor], Tensor] = last_row
    penalty: Callable[[Peek], tuple[Tensor, Tensor]] = no_penalty
    rollback: Callable[[Tensor, Mapping[int, int]], int | None] = never
    history: int = 512
    prompt_counts: bool = False
    by_slot: bool = False
