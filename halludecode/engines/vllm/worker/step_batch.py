"""One step of a worker, as our code sees it: which tokens of which rows are computed.

This is the only place that reads vLLM's V1 batch; another runner needs another `StepBatch.of`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halludecode.core.attention_block import IMAGE, SYSTEM, TEXT
from halludecode.engines.vllm.row_metadata import RowMetadata
from halludecode.engines.vllm.worker.state import WorkerState


@dataclass
class ScheduledRow:
    """One row in one step.

    Args:
        index: Its place in the batch, and in the logits.
        first: Its first token in the flat token batch.
        start: Position of that token in the row.
        stop: Position after its last token of this step: the keys it can see.
        samples: Whether its next token is drawn in this step.
        request: vLLM's own state of the row.
        laid: See `lay_out`.
    """

    index: int
    first: int
    start: int
    stop: int
    samples: bool
    tag: RowMetadata
    request: Any
    laid: tuple[Tensor, Tensor]

    @property
    def prompt(self) -> int:
        """Prompt tokens."""
        return self.request.num_prompt_tokens

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
        return self.laid[1]


def placed(values: Tensor | Sequence[Any], device: torch.device) -> Tensor:
    """Numbers of this side on a device, whose work in hand is not waited for."""
    made = values if isinstance(values, Tensor) else torch.tensor(values)
    if device.type == "cpu":
        return made
    return (made.pin_memory() if device.type == "cuda" else made).to(device, non_blocking=True)


def lay_out(request: Any) -> tuple[Tensor, Tensor]:
    """Kind (int8) and picture (int16) of a row's prompt tokens."""
    length = request.num_prompt_tokens
    number = torch.full((length,), -1, dtype=torch.int16)
    for i, feature in enumerate(request.mm_features):
        place = feature.mm_position
        span = number[place.offset : place.offset + place.length]
        span[slice(None) if place.is_embed is None else place.is_embed] = i
    kind = torch.full((length,), SYSTEM, dtype=torch.int8)
    at = (number >= 0).nonzero()
    if len(at):
        kind[int(at[0]) :] = TEXT
        kind[number >= 0] = IMAGE
    return kind, number


@dataclass
class StepBatch:
    """All our rows of one step, by group and by name."""

    groups: dict[str, dict[str, ScheduledRow]]

    @classmethod
    def of(cls, runner: Any, desk: WorkerState, scheduled: dict[str, int]) -> StepBatch:
        """From vLLM's V1 runner, once its batch of the step stands."""
        batch = runner.input_batch
        groups: dict[str, dict[str, ScheduledRow]] = {}
        first = 0
        for index, name in enumerate(batch.req_ids):
            count = scheduled[name]
            request = runner.requests[name]
            tag = desk.tag(name, request.sampling_params)
            if tag is not None and tag.group not in desk.ended:
                start = int(batch.num_computed_tokens_cpu[index])
                samples = not bool(runner.discard_request_mask.np[index])
                if name not in desk.laid:
                    desk.laid[name] = lay_out(request)
                laid = desk.laid[name]
                row = ScheduledRow(index, first, start, start + count, samples, tag, request, laid)
                groups.setdefault(tag.group, {})[tag.name] = row
                desk.check_pictures(tag.group, [f.identifier for f in request.mm_features])
            first += count
        return cls(groups)

    def sampling(self) -> Iterator[dict[str, ScheduledRow]]:
        """Groups whose next token is drawn in this step."""
        for rows in self.groups.values():
            main = rows.get("main")
            if main is None or not main.samples:
                continue
            if all(
                name in rows
                for name, life in zip(main.tag.rows, main.tag.lives, strict=True)
                if life == "answer" or main.written == 0
            ):
                yield rows
