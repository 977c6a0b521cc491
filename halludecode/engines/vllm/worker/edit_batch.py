"""In a worker: stretches of rows that are edited together inside one forward.

One forward of vLLM holds tokens of many requests, of prompts and answers, in one flat axis. An
`EditBatch` is the part of it that would be a forward of its own on the HF engine: a chunk of one
request's prompt, or one token each of several requests. A row that is computed again after
preemption takes part with its prompt and with each token it wrote, apart from each other, so that
every token meets the edits it met before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from halludecode.core.attention_block import GENERATED, IMAGE, PAD, RowKeys
from halludecode.core.errors import HookNeverFired
from halludecode.core.plan import Plan
from halludecode.core.state import State, stack
from halludecode.core.tracing import TracedStrategy
from halludecode.engines.layer_edits import EditedRows
from halludecode.engines.vllm.row_metadata import RowMetadata
from halludecode.engines.vllm.worker import kv_cache as paged
from halludecode.engines.vllm.worker.state import GroupRecord, WorkerState
from halludecode.engines.vllm.worker.step_batch import ScheduledRow, StepBatch, placed

MOST = 64  # requests of one batch: their keys are gathered side by side


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
class EditBatch(EditedRows[str]):
    """R requests (1 if these are prompt tokens), each with the same named rows.

    Args:
        plan: What acts on it.
        metadata: One per request, of any of its rows.
        spans: Row name -> one stretch per request, all of one length.
        records: One per request.
        states: Per strategy, what `prepare` returned, stacked over requests.
        prompting: Whether these are prompt tokens; then R is 1.
        carry: Per strategy, what it hands from layer to layer.
        changed: Bool [R], requests in which an edit made a difference.
        dead: Whether an edit failed; nothing is edited from then on.
        query_blocks: Ranges of queries that some strategies, by their places, may edit.
    """

    plan: Plan
    metadata: list[RowMetadata]
    spans: dict[str, list[Span]]
    records: list[GroupRecord]
    states: list[State]
    prompting: bool
    carry: list[dict[str, Any]] = field(default_factory=list)
    changed: Tensor | None = None
    dead: bool = False
    query_blocks: dict[tuple[int, ...], list[tuple[int, int]]] = field(default_factory=dict)
    _keys: dict[tuple[str, int, int, str], RowKeys] = field(default_factory=dict)
    _flat: dict[str, Tensor] = field(default_factory=dict)
    _blocks: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    # What `layer_edits` asks ----------------------------------------------------------------------
    def named_rows(self, i: int) -> dict[str, str]:
        """Local names of strategy ``i`` -> names of the rows that are here."""
        names = self.metadata[0].local_names
        local = dict(names[i]) if names else {}
        return {name: row for name, row in local.items() if row in self.spans}

    def whole_keys(self, row: str) -> RowKeys:
        """Keys of a row for all queries, on the CPU: looking there waits for no device."""
        return self.keys(row, 0, self.width(row), torch.device("cpu"))

    def stream_keys(self, row: str, like: Tensor) -> RowKeys:
        """The same where the stream is."""
        return self.keys(row, 0, self.width(row), like.device)

    def stream_places(self, row: str, like: Tensor) -> Tensor:
        """Places [R, T] in the flat axis."""
        return self.flat(row, like.device)

    def put_stream(self, x: Tensor, places: Tensor, new: Tensor) -> Tensor:
        """In place: the stream is a copy already, and what a strategy was shown another."""
        x[places] = new
        return x

    def confidences(self) -> Tensor:
        """Of tokens written so far; one that is missing was never drawn here."""
        kept = [record.sure for record in self.records]
        most = max((max(own, default=0) for own in kept), default=0) + 1
        one = next((torch.ones_like(x) for own in kept for x in own.values()), torch.ones(()))
        return torch.stack([torch.stack([own.get(t, one) for t in range(most)]) for own in kept])

    def features(self) -> Sequence[Tensor]:
        """Of each request, what was kept of its prompt."""
        if any(record.pictures is None for record in self.records):
            raise HookNeverFired("The image tokens entering layer 0 were never seen.")
        return [record.pictures for record in self.records if record.pictures is not None]

    def keep_pictures(self, x: Tensor) -> None:
        """The main row's image tokens, of the residual [tokens, D] entering layer 0."""
        if self.prompting and "main" in self.spans:
            shown = self.stream_keys("main", x).query_kind[0] == IMAGE
            self.records[0].pictures = x[self.flat("main", x.device)[0]][shown].float()

    def keep_branch(self, i: int, layer: int, heads: Tensor) -> None:
        """For the token that is drawn next; the last block of a layer is the one that emits."""
        for record, own in zip(self.records, heads, strict=True):
            record.branched[i] = layer, own

    def note_fired(self, hook: str, i: int, layer: int) -> None:
        """A declared hook was called; only the forward that emits token 1 is checked."""
        if self.emits():
            for record in self.records:
                record.fired.add((hook, i, layer))

    # Where its tokens are -------------------------------------------------------------------------
    def width(self, row: str) -> int:
        """Tokens of a row in this batch."""
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
        """Where keys and queries lie, for queries start..stop of the batch."""
        which = (row, start, stop, device.type)
        if which not in self._keys:
            tensors = self._make_keys(row, start, stop)
            self._keys[which] = RowKeys(*(placed(x, device) for x in tensors))
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
        """Whether the first token is drawn after this batch."""
        main = self.spans.get("main")
        return main is not None and main[0].start < main[0].row.prompt <= main[0].stop


def edit_batches(step: StepBatch, worker_state: WorkerState) -> list[EditBatch]:
    """Everything of one step that some strategy acts on."""
    batches: list[EditBatch] = []
    # Single tokens of requests under one plan with the same rows, which are edited side by side.
    alike: dict[tuple[str, str, tuple[str, ...]], list[tuple[RowMetadata, dict[str, Span]]]] = {}
    for rows in step.groups.values():
        metadata = next(iter(rows.values())).metadata
        plan = worker_state.plan(metadata.plan)
        if plan is None or not plan.acting:
            continue
        prompt = {
            name: [Span(row, row.start, min(row.stop, row.prompt))]
            for name, row in rows.items()
            if row.start < row.prompt
        }
        if prompt:
            batches.append(_edit_batch(worker_state, plan, [metadata], prompt, prompting=True))
        for token in _written(rows):
            kind = (metadata.plan, str(metadata.local_names), tuple(token))
            alike.setdefault(kind, []).append((metadata, token))
    for (text, _, names), tokens in alike.items():
        plan = worker_state.plan(text)
        if plan is None:
            continue
        for at in range(0, len(tokens), MOST):
            chunk = tokens[at : at + MOST]
            spans = {name: [token[name] for _, token in chunk] for name in names}
            requests = [metadata for metadata, _ in chunk]
            batches.append(_edit_batch(worker_state, plan, requests, spans, prompting=False))
    return batches


def _written(rows: Mapping[str, ScheduledRow]) -> list[dict[str, Span]]:
    """Generated tokens computed in this step: per token, the rows that compute it."""
    by_token: dict[int, dict[str, Span]] = {}
    for name, row in rows.items():
        for at in range(max(row.start, row.prompt), row.stop):
            by_token.setdefault(at - row.prompt, {})[name] = Span(row, at, at + 1)
    return [by_token[number] for number in sorted(by_token)]


def _edit_batch(
    worker_state: WorkerState,
    plan: Plan,
    metadata: list[RowMetadata],
    spans: dict[str, list[Span]],
    *,
    prompting: bool,
) -> EditBatch:
    by_request = [worker_state.states_of(each) for each in metadata]
    states = [stack([state[i] for state in by_request]) for i in range(len(plan.parts))]
    records = [worker_state.record(each.group) for each in metadata]
    carry: list[dict[str, Any]] = [{} for _ in plan.parts]
    return EditBatch(plan, metadata, spans, records, states, prompting, carry)


def acting(plan: Plan, parts: Sequence[TracedStrategy]) -> list[tuple[int, TracedStrategy]]:
    """Strategies with their places in the plan."""
    return [(next(i for i, p in enumerate(plan.parts) if p is part), part) for part in parts]
