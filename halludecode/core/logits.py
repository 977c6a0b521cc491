"""Pure, batched float32 arithmetic on logits; `-inf` marks a banned token.

On a processor a masked copy of [B, V] costs as much as ten to thirty sums of that size (measured at
V = 152 000), so masks are added as 0 or `-inf` and left out where nothing is banned. Only tensor
methods are used, so importing this module does not import torch. Shapes: B rows, V vocabulary size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NEG_INF = float("-inf")


def plausible(scores: Tensor, *, like: Tensor, beta: float) -> Tensor:
    """Keep token w where ``p(w) >= beta * max p`` under ``like``, else `-inf` (VCD eq. 5).

    Args:
        scores: Combined scores to mask, float32 [B, V].
        like: Raw logits of the main row, float32 [B, V]; the cut-off is per row.
        beta: 0 keeps every token, 1 keeps only ties of the maximum.
    """
    if beta <= 0:
        return scores
    above = like - (like.amax(-1, keepdim=True) + math.log(beta))
    # -inf below the cut-off; inf above it and nan on it become 0.
    mask = above.mul_(math.inf).nan_to_num_(nan=0, posinf=0, neginf=NEG_INF)
    return mask.add_(scores)


def alone(like: Tensor, beta: float) -> Tensor:
    """Bool [B]: rows of which `plausible` keeps one token.

    Args:
        like: Raw logits of the main row, float32 [B, V].
        beta: As there, above 0.
    """
    return (like - (like.amax(-1, keepdim=True) + math.log(beta)) >= 0).sum(-1) == 1


def contrast(main: Tensor, other: Tensor, weight: float) -> Tensor:
    """``(1 + weight) * main - weight * other``, both logits float32 [B, V]."""
    if weight == 0:
        return main
    return ((1 + weight) * main).sub_(other, alpha=weight)


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy in nats of softmax(logits), [..., V] -> [...]."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(log_p == NEG_INF, 0)).sum(-1)


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) in nats of two softmax distributions, [..., V] -> [...]."""
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    gap = (log_p - log_q).masked_fill(log_p == NEG_INF, 0)
    return (log_p.exp() * gap).sum(-1)


def js(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats, [..., V] -> [...]; at most ln 2."""
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    mixture = log_p.logaddexp(log_q) - math.log(2)  # of tokens too rare for float32, too
    return (kl(p_logits, mixture) + kl(q_logits, mixture)) / 2


def reversed_js(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """``(KL(m || p) + KL(m || q)) / 2`` with their mixture m, where `js` has KL(p || m)."""
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    mixture = log_p.logaddexp(log_q) - math.log(2)
    return (kl(mixture, log_p) + kl(mixture, log_q)) / 2


def compose(main: Tensor, parts: list[Tensor]) -> Tensor:
    """Several strategies on one step: ``main + sum(part - main)``, masks intersected.

    A single part is returned bit for bit. The sum does not depend on the order beyond rounding, and
    a token any part banned stays banned.
    """
    if not parts:
        return main
    if len(parts) == 1:
        return parts[0]
    banned = main == NEG_INF
    total = main.masked_fill(banned, 0)
    base = total
    for part in parts:
        banned = banned | (part == NEG_INF)
        total = total + (part.masked_fill(part == NEG_INF, 0) - base)
    return total.masked_fill(banned, NEG_INF)


def unban(other: Tensor, main: Tensor) -> Tensor:
    """A token banned in another row but not in main takes main's logit, so no +inf can arise."""
    return other if unbanned(other) else other.where(other != NEG_INF, main)


def unbanned(logits: Tensor) -> bool:
    """Whether nothing is banned, where finding out is cheaper than a mask: on the CPU.

    Elsewhere masks are cheap and an answer would wait for the device.
    """
    return logits.device.type == "cpu" and bool(logits.amin() > NEG_INF)
