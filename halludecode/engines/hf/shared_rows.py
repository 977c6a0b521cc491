"""Several settings on one batch: rows that settings have in common are computed once.

Settings that edit nothing inside the model, or edit the same, agree in what their main rows compute
for as long as their tokens agree; rows beside main they share where prompt and picture are equal.
So the prompts are read once for all settings, and a batch row is kept per *different* answer so
far. A row is copied where settings part. Rows run from the prompt on, whatever ``extra_rows`` says:
what one setting decides without them, another needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from halludecode.core.plan import Plan, alike, united
from halludecode.core.state import State
from halludecode.engines.hf.attention_metadata import RowPlacement
from halludecode.engines.hf.batch import Batch
from halludecode.engines.hf.decode_loop import COMPACT, DecodeLoop
from halludecode.engines.inputs.rows import PreparedRequest
from halludecode.models.feed_forward import Branched


def sharing(plans: Sequence[Plan]) -> list[list[int]]:
    """Numbers of the plans that can run on one batch, in groups."""
    groups: dict[Any, list[int]] = {}
    for i, plan in enumerate(plans):
        groups.setdefault(alike(plan) if alike(plan) is not None else i, []).append(i)
    return list(groups.values())


@dataclass(frozen=True)
class _Seen:
    """What a combination reads of a forward: early layers of its rows, and edits that hit."""

    early: dict[int, Tensor]
    changed: Tensor | None

    def note_confidence(self, main: Tensor) -> None:
        """Nothing: `SharedRows` tells the shared batch of all rows at once."""


class RowsOfOne:
    """The rows of a shared batch that one setting reads, in the shape of a `Batch` of its own.

    Args:
        batch: The shared one.
        plan: The setting's.
        places: Places of its parts in the shared plan.
        nodes: The batch's requests that hold its unfinished answers, in their order.
    """

    def __init__(self, batch: Batch, plan: Plan, places: Sequence[int], nodes: list[int]) -> None:
        self.plan, self.row_builder, self.decode = plan, batch.row_builder, batch.decode
        self._branch = [batch.branch(i) for i in places]
        self._nodes = nodes
        self.requests = [_as_own(batch.requests[n], places) for n in nodes]
        self.states = [_of(batch.states[i], nodes) for i in places]
        self.at = list(nodes)  # of the shared batch's rows; main rows are numbered as requests
        self.index: list[dict[str, RowPlacement]] = []
        taken: dict[tuple[int, ...], RowPlacement] = {}
        for i in places:
            named: dict[str, RowPlacement] = {}
            for name, place in batch.index[i].items():
                rows = tuple(place.rows[n] for n in nodes)
                if rows not in taken and rows != tuple(nodes):
                    taken[rows] = RowPlacement.of(range(len(self.at), len(self.at) + len(rows)))
                    self.at += rows
                named[name] = taken.get(rows) or RowPlacement.of(range(len(nodes)))
            self.index.append(named)
        context = batch.context
        self.context = _Seen(
            {layer: x[self.at] for layer, x in context.early.items()},
            context.changed[nodes] if context.changed is not None else None,
        )
        self.rows = [(n % len(nodes), "") for n in range(len(self.at))]  # whose tokens they hold

    def branch(self, i: int) -> Branched | None:
        """What `Step.branch` gives the i-th part, of its unfinished answers."""
        whole = self._branch[i]
        return None if whole is None else lambda *how: whole(*how)[self._nodes]


def _as_own(request: PreparedRequest, places: Sequence[int]) -> PreparedRequest:
    """A request with the rows of some parts alone, by the parts' own names."""
    local = tuple(request.local[i] for i in places)
    rows = {name: request.rows[row] for names in local for name, row in names.items()}
    own = tuple({name: name for name in names} for names in local)
    state = tuple(request.state[i] for i in places)
    return replace(request, rows={"main": request.rows["main"], **rows}, local=own, state=state)


def _of(state: State, nodes: list[int]) -> State:
    return {
        name: value[nodes] if isinstance(value, Tensor) else [value[n] for n in nodes]
        for name, value in state.items()
    }


class SharedRows:
    """Writes the answers of several settings to the same requests.

    Args:
        plans: The settings, `alike`.
        batch: That of the plan they are `united` in, prefilled.
        make_loop: What chooses a setting's tokens, given its rows.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        batch: Batch,
        make_loop: Callable[[RowsOfOne], DecodeLoop],
    ) -> None:
        self.plans, self.batch = plans, batch
        _, self.places = united(plans)
        everyone = list(range(len(self.batch.requests)))
        self.nodes = [list(everyone) for _ in plans]  # per setting, of its unfinished answers
        shown = [self._rows_of(k) for k in range(len(plans))]
        self.requests = [list(rows.requests) for rows in shown]
        self.loops = [make_loop(rows) for rows in shown]

    def run(self, logits: Tensor, most: int) -> None:
        """From the prefill's logits to the last token of the last setting, ``most`` at most."""
        for step in range(most):
            self.batch.context.note_confidence(logits[: len(self.batch.requests)])
            fed: list[dict[int, int]] = []
            for k, loop in enumerate(self.loops):
                rows = self._rows_of(k) if self.nodes[k] else None
                fed.append(loop.choose(rows, logits[rows.at], step) if rows else {})
            if step + 1 == most or not any(fed):
                return
            logits = self.batch.step(self._part(fed, step))

    def _rows_of(self, k: int) -> RowsOfOne:
        return RowsOfOne(self.batch, self.plans[k], self.places[k], self.nodes[k])

    def _part(self, fed: Sequence[dict[int, int]], step: int) -> Tensor:
        """Give every different answer a request of the batch; int64 [requests] their tokens."""
        ways: dict[tuple[int, int], None] = {}
        for nodes, tokens in zip(self.nodes, fed, strict=True):
            ways.update(((nodes[i], token), None) for i, token in tokens.items())
        brief = step == 0 and any(
            row.life == "prefill" for r in self.batch.requests for row in r.rows.values()
        )
        count = len(self.batch.requests)
        alone = len({node for node, _ in ways}) == len(ways)
        if alone and len(ways) > COMPACT * count and not brief:  # the finished ones wait in place
            at = {way: way[0] for way in ways}
            token = torch.zeros(count, dtype=torch.long)
            for node, chosen in ways:
                token[node] = chosen
        else:
            at = {way: place for place, way in enumerate(ways)}
            self.batch.select([node for node, _ in ways], drop_prefill_rows=brief)
            token = torch.tensor([chosen for _, chosen in ways])
        self.nodes = [
            [at[nodes[i], chosen] for i, chosen in tokens.items()]
            for nodes, tokens in zip(self.nodes, fed, strict=True)
        ]
        return token
