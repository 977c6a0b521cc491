"""What an engine lends to `core.attention.Attention`, and what tracing writes down of its use.

Shapes: R requests, H query heads, Q query rows, N keys, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from halludecode.core.attention_block import Queries

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Trace:
    """Verbs, rows and queries a strategy used; the plan is built from it."""

    verbs: set[str] = field(default_factory=set[str])
    rows: set[str] = field(default_factory=set[str])
    queries: set[Queries] = field(default_factory=set[Queries])


@dataclass
class Hooks:
    """What the engine lends to one strategy in one layer of one forward.

    Args:
        token_mask: ``(name, fn, row) -> bool [R, N]``, computed from the residual entering the
            layer, kept.
        at_first_token: ``(name, fn) -> value``, computed in the forward that emits token 1, kept
            per layer.
        state: What `prepare` returned, stacked over requests.
        carry: From layer to later layer within one forward.
        trace: While compiling, where verbs are written down.
        allowed: Verbs found by tracing; any other raises.
        gone: Rows dropped after the first token; edits to them are skipped.
        received: ``own, weights -> float32 [R, H, N]``, see `Attention.received`.
        paid: ``keys [R, N] -> float32 [R, H, N]``, see `Attention.paid`.
        confidence: ``() -> float32 [R, Q]``, see `Attention.confidence`.
        keys_at_first_token: ``(name, fn) -> [R, .., N]``, as `at_first_token`, for later keys 0.
        branch: ``(head outputs [R, H, d])``, see `Attention.branch_off`.
        tally: ``(name, numbers [R, N], where they are, bool [R, N]) -> float32 [R, N]``, see
            `Attention.tally`.
    """

    token_mask: Callable[[str, Callable[[Tensor], Tensor], str], Tensor]
    at_first_token: Callable[[str, Callable[[], Any]], Any]
    state: Mapping[str, Any] = field(default_factory=dict[str, Any])
    carry: dict[str, Any] = field(default_factory=dict[str, Any])
    trace: Trace | None = None
    allowed: frozenset[str] | None = None
    gone: frozenset[str] = frozenset()
    received: Callable[[bool, Tensor | None], Tensor] | None = None
    paid: Callable[[Tensor], Tensor] | None = None
    confidence: Callable[[], Tensor] | None = None
    keys_at_first_token: Callable[[str, Callable[[], Tensor]], Tensor] | None = None
    branch: Callable[[Tensor], None] | None = None
    tally: Callable[[str, Tensor, Tensor], Tensor] | None = None
