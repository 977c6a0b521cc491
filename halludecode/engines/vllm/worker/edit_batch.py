"""In a worker: stretches of rows that are edited together inside one forward.

A unit is what a forward of the HF engine would be: a chunk of one request's prompt, or one token
each of several requests. A row that is computed again after preemption takes part with its prompt
and with each token it wrote, apart from each other, so that every token meets the edits it met
before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from halludecode.core.attention_block import GENERATED, PAD, RowKeys
from halludecode.core.plan import Plan
from halludecode.core.state import State, stack
from halludecode.core.tracing import TracedStrategy
from halludecode.engines.vllm.row_metadata import RowMetadata
from halludecode.engines.vllm.worker import kv_cache as paged
from halludecode.engines.vllm.worker.state import GroupRecord, WorkerState
from halludecode.engines.vllm.worker.step_batch import ScheduledRow, StepBatch, placed

MOST = 64  # requests of one unit: their keys are gathered side by side


@dataclass(frozen=True)
class Span:
    """Tokens start..stop (positions) of one row, computed in this step."""

    row: ScheduledRow
    start: int
    stop: int

    @property
    def flat(self) -> slice:
        """Their places in the flat token batch."""
        first = self.row.first + self.start - self.row.start
        return slice(first, first + self.stop - self.start)


@dataclass
class EditBatch:
    """See the module.

    Args:
        plan: What acts on it.
        tags: One per request (R).
        spans: Row name -> one stretch per request, all of one length.
        notes: One per request.
        prompting: Whether these are prompt tokens; then R is 1.
        cuts: Blocks of queries that some parts, by their places in the plan, may edit.
    """

    plan: Plan
    tags: list[RowMetadata]
    spans: dict[str, list[Span]]
    notes: list[GroupRecord]
    states: list[State]
    prompting: bool
    carry: list[dict[str, Any]] = field(default_factory=list)
    changed: Tensor | None = None
    dead: bool = False
    cuts: dict[tuple[int, ...], list[tuple[int, int]]] = field(default_factory=dict)
    _keys: dict[tuple[str, int, int, str], RowKeys] = field(default_factory=dict)
    _flat: dict[str, Tensor] = field(default_factory=dict)
    _blocks: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def names(self, i: int) -> dict[str, str]:
        """Local names of part ``i`` -> names of the rows that are here."""
        local = dict(self.tags[0].local_names[i]) if self.tags[0].local_names else {}
        return {name: row for name, row in local.items() if row in self.spans}

    def width(self, row: str) -> int:
        """Tokens of a row in this unit."""
        span = self.spans[row][0]
        return span.stop - span.start

    def reach(self, row: str) -> int:
        """Keys of any request: those its last token sees, and all of its prompt.

        A chunk that ends before the picture must know, as a whole prompt does, that one follows.
        """
        return max(max(span.stop, span.row.prompt) for span in self.spans[row])

    def flat(self, row: str, device: torch.device) -> Tensor:
        """int64 [R, T]: places of the tokens in the flat batch."""
        if row not in self._flat:
            places = [list(range(s.flat.start, s.flat.stop)) for s in self.spans[row]]
            self._flat[row] = placed(places, device)
        return self._flat[row]

    def blocks(self, row: str, block_table: Tensor, size: int) -> Tensor:
        """Int [R, n]: the row's blocks of KV cache, which many layers have in common."""
        which = (row, block_table.data_ptr())
        if which not in self._blocks:
            at = placed([span.row.index for span in self.spans[row]], block_table.device)
            self._blocks[which] = paged.tables(block_table, at, self.reach(row), size)
        return self._blocks[which]

    def keys(self, row: str, start: int, stop: int, device: torch.device) -> RowKeys:
        """Where keys and queries lie, for queries start..stop of the unit."""
        which = (row, start, stop, device.type)
        if which not in self._keys:
            made = self._make_keys(row, start, stop)
            self._keys[which] = RowKeys(*(placed(x, device) for x in made))
        return self._keys[which]

    def _make_keys(self, row: str, start: int, stop: int) -> tuple[Tensor, ...]:
        spans = self.spans[row]
        wide = self.reach(row)
        kinds = torch.full((len(spans), wide), PAD, dtype=torch.int8)
        pictures = torch.full((len(spans), wide), -1, dtype=torch.int16)
        for r, span in enumerate(spans):
            prompt = span.row.prompt
            kinds[r, :prompt], pictures[r, :prompt] = span.row.layout
            kinds[r, prompt : span.stop] = GENERATED
        first = torch.tensor([[span.start] for span in spans])
        position = first + torch.arange(start, stop)
        length = torch.tensor([span.row.prompt for span in spans])
        return kinds, pictures, position, kinds.gather(1, position), length

    def emits(self) -> bool:
        """Whether the first token is drawn after this unit."""
        main = self.spans.get("main")
        return main is not None and main[0].start < main[0].row.prompt <= main[0].stop

    def fire(self, hook: str, i: int, layer: int) -> None:
        """A declared hook was called in the forward that emits token 1."""
        if self.emits():
            for note in self.notes:
                note.fired.add((hook, i, layer))

    def note_change(self, differs: Tensor) -> None:
        """Requests (bool [R]) in which an edit made a difference."""
        self.changed = differs if self.changed is None else self.changed | differs


def edit_batches(view: StepBatch, desk: WorkerState) -> list[EditBatch]:
    """Everything of one step that some part acts on."""
    made: list[EditBatch] = []
    singles: dict[tuple[str, str, tuple[str, ...]], list[tuple[RowMetadata, dict[str, Span]]]] = {}
    for rows in view.groups.values():
        tag = next(iter(rows.values())).metadata
        plan = desk.plan(tag.plan)
        if plan is None or not plan.acting:
            continue
        prompt = {
            name: [Span(row, row.start, min(row.stop, row.prompt))]
            for name, row in rows.items()
            if row.start < row.prompt
        }
        if prompt:
            made.append(_unit(desk, plan, [tag], prompt, prompting=True))
        for one in _written(rows):
            singles.setdefault((tag.plan, str(tag.local_names), tuple(one)), []).append((tag, one))
    for (text, _, names), entries in singles.items():
        plan = desk.plan(text)
        if plan is None:
            continue
        for at in range(0, len(entries), MOST):
            some = entries[at : at + MOST]
            spans = {name: [one[name] for _, one in some] for name in names}
            made.append(_unit(desk, plan, [tag for tag, _ in some], spans, prompting=False))
    return made


def _written(rows: Mapping[str, ScheduledRow]) -> list[dict[str, Span]]:
    """Generated tokens computed in this step: per token, the rows that compute it."""
    found: dict[int, dict[str, Span]] = {}
    for name, row in rows.items():
        for at in range(max(row.start, row.prompt), row.stop):
            found.setdefault(at - row.prompt, {})[name] = Span(row, at, at + 1)
    return [found[offset] for offset in sorted(found)]


def _unit(
    desk: WorkerState,
    plan: Plan,
    tags: list[RowMetadata],
    spans: dict[str, list[Span]],
    *,
    prompting: bool,
) -> EditBatch:
    states = [stack([desk.states_of(tag)[i] for tag in tags]) for i in range(len(plan.parts))]
    notes = [desk.record(tag.group) for tag in tags]
    carry: list[dict[str, Any]] = [{} for _ in plan.parts]
    return EditBatch(plan, tags, spans, notes, states, prompting, carry)


def acting(plan: Plan, parts: Sequence[TracedStrategy]) -> list[tuple[int, TracedStrategy]]:
    """Parts with their places in the plan."""
    return [(next(i for i, p in enumerate(plan.parts) if p is part), part) for part in parts]
