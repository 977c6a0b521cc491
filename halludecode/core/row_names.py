"""What rows of a batch are called, and when two of them are one."""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import chain, count

from halludecode.core.prompt import digest
from halludecode.core.tracing import TracedStrategy


def free_name(name: str, strategy: str, taken: Container[str]) -> str:
    """A row's name in the batch: its own, else with the strategy's before it, else numbered."""
    numbered = (f"{strategy}.{name}#{i}" for i in count(2))
    tries = chain((name, f"{strategy}.{name}"), numbered)
    return next(candidate for candidate in tries if candidate not in taken)


def row_hooks(parts: Sequence[TracedStrategy], owner: TracedStrategy | None, name: str) -> str:
    """Identity of the attention edits on a row: every part's on main, the owner's elsewhere.

    The row's own name is part of it: a strategy may edit two rows of one prompt differently.
    """
    acting = [p.strategy for p in (parts if owner is None else (owner,)) if name in p.attend_rows]
    return digest(name, *((s.name, sorted(s.resolved().items())) for s in acting)) if acting else ""
