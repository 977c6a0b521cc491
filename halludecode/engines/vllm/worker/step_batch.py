"""In a worker: one step as our code sees it, which is which tokens of which rows are computed.

What vLLM's batch says of a row is a `RowPlace`, read by `runner_v1` or `runner_v2`.

A step has two index spaces. Hidden states, queries and attention outputs hold all tokens of the
step side by side, [tokens, ..]: a row's are a stretch that begins at ``ScheduledRow.first``. Block
tables, logits and drawn tokens have one entry per row, [rows, ..]: a row's is at
``ScheduledRow.index``. A row that decodes has one token, so that both look alike until somebody's
prompt is in the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from halludecode.core.attention_block import IMAGE, SYSTEM, TEXT
from halludecode.engines.vllm.row_metadata import RowMetadata
from halludecode.engines.vllm.worker.state import WorkerState


class RowPlace(NamedTuple):
    """Where a row, ours or not, is in vLLM's batch of a step; see `ScheduledRow`."""

    vllm_id: str
    request: Any
    index: int
    first: int
    start: int
    stop: int
    samples: bool


@dataclass
class ScheduledRow:
    """One row in one step.

    Args:
        index: Its place in the batch, and in the logits.
        first: Its first token in the flat token batch.
        start: Position of that token in the row.
        stop: Position after its last token of this step: the keys it can see.
        samples: Whether its next token is drawn in this step.
        metadata: What came with it.
        request: What the runner knows of the row, see `runner.KnownRequest`.
        layout: See `prompt_layout`.
        vllm_id: Name of vLLM's request.
    """

    index: int
    first: int
    start: int
    stop: int
    samples: bool
    metadata: RowMetadata
    request: Any
    layout: tuple[Tensor, Tensor]
    vllm_id: str = ""

    @property
    def prompt(self) -> int:
        """Prompt tokens; a row that began late has read part of the answer with its prompt."""
        return self.request.num_prompt_tokens - self.metadata.answered

    @property
    def written(self) -> int:
        """Tokens written before the one this step draws."""
        return self.stop - self.prompt

    @property
    def pictured(self) -> bool:
        """Whether it has pictures."""
        return bool(self.request.mm_features)

    @property
    def picture(self) -> Tensor:
        """int16 [prompt]: which picture a prompt token belongs to, else -1."""
        return self.layout[1]


def placed(values: Tensor | Sequence[Any], device: torch.device) -> Tensor:
    """Numbers of this side on a device, whose work in hand is not waited for."""
    tensor = values if isinstance(values, Tensor) else torch.tensor(values)
    if device.type == "cpu":
        return tensor
    # Only from pinned memory does a copy to a GPU not wait for what the GPU is still computing.
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def prompt_layout(request: Any, answered: int = 0) -> tuple[Tensor, Tensor]:
    """Kind (int8) and picture (int16) of a row's prompt tokens, but for the answer's among them."""
    length = request.num_prompt_tokens - answered
    picture = torch.full((length,), -1, dtype=torch.int16)
    for i, feature in enumerate(request.mm_features):
        place = feature.mm_position
        span = picture[place.offset : place.offset + place.length]
        span[slice(None) if place.is_embed is None else place.is_embed] = i
    kind = torch.full((length,), SYSTEM, dtype=torch.int8)
    of_image = picture >= 0
    at = of_image.nonzero()
    if len(at):
        kind[int(at[0]) :] = TEXT
        kind[of_image] = IMAGE
    return kind, picture


@dataclass
class StepBatch:
    """All our rows of one step, by group and by name."""

    groups: dict[str, dict[str, ScheduledRow]]

    @classmethod
    def of(cls, state: WorkerState, places: Iterable[RowPlace]) -> StepBatch:
        """Our rows among all that vLLM computes.

        Args:
            state: What the worker keeps.
            places: Every row of the step.
        """
        groups: dict[str, dict[str, ScheduledRow]] = {}
        places = list(places)
        for vllm_id, request, *_ in places:  # rows that join tell their main row what it is part of
            state.metadata(vllm_id, request.sampling_params)
        for vllm_id, request, *place in places:
            metadata = state.metadata(vllm_id, request.sampling_params)
            if metadata is None or metadata.group in state.ended:
                continue
            if vllm_id not in state.prompt_layouts:
                state.prompt_layouts[vllm_id] = prompt_layout(request, metadata.answered)
            layout = state.prompt_layouts[vllm_id]
            row = ScheduledRow(*place, metadata, request, layout, vllm_id)
            groups.setdefault(metadata.group, {})[metadata.name] = row
            state.check_pictures(metadata.group, [f.identifier for f in request.mm_features])
        return cls(groups)

    def sampling(self) -> Iterator[dict[str, ScheduledRow]]:
        """Groups whose next token is drawn in this step."""
        for rows in self.groups.values():
            main = rows.get("main")
            if main is None or not main.samples:
                continue
            if all(
                name in rows
                for name, life in zip(main.metadata.rows, main.metadata.lives, strict=True)
                if life == "answer" or main.written == 0
            ):
                yield rows


Rows = dict[str, ScheduledRow]  # of one group, by their names in the batch


def labels(i: int, groups: Sequence[Rows], name: str) -> list[tuple[str, str]]:
    """Group and name in the batch of the row that part ``i`` calls ``name``, as in `rows_of`."""
    requests = [rows["main"].metadata for rows in groups]
    return [(each.group, dict(each.local_names[i]).get(name, "main")) for each in requests]


def rows_of(i: int, groups: Sequence[Rows], logits: Tensor) -> dict[str, Tensor]:
    """Logits [B, V] by the names part ``i`` gives its rows.

    A request whose branches lack a row another one has (no picture, say) reads its main row there;
    a row that was dropped is left out.
    """
    by_group = [dict(rows["main"].metadata.local_names[i]) for rows in groups]
    by_name: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for local_names in by_group for name in local_names):
        labels = [local_names.get(name, "main") for local_names in by_group]
        if all(label in rows for rows, label in zip(groups, labels, strict=True)):
            at = [rows[label].index for rows, label in zip(groups, labels, strict=True)]
            by_name[name] = logits[placed(at, logits.device)]
    return by_name
