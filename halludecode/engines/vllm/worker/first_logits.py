"""In a worker: logits of an answer's first token, for strategies that go on reading them.

They are kept before bans, so that what was banned for token 1 alone (an end token, say) is not
banned for good; see `core.step.Step.first`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from halludecode.core.tracing import TracedStrategy
from halludecode.engines.vllm.worker.state import WorkerState
from halludecode.engines.vllm.worker.step_batch import Rows, rows_of


def keep(state: WorkerState, groups: Sequence[Rows], logits: Tensor) -> None:
    """Keep those of groups that have written nothing yet."""
    for rows in groups:
        main = rows["main"]
        plan = state.plan(main.metadata.plan) if main.written == 0 else None
        for i, part in enumerate(plan.parts if plan else ()):
            if part.firsts:
                named = rows_of(i, [rows], logits)
                kept = state.record(main.metadata.group).first_logits
                for name in part.firsts:  # without a picture there is no row beside main
                    kept[i, name] = named.get(name, named["main"])[0].float().clone()


def of(
    state: WorkerState, groups: Sequence[str], i: int, part: TracedStrategy
) -> dict[str, Tensor]:
    """By row, float32 [B, V]: what was kept of groups for part ``i`` of their plan."""
    records = [state.record(group) for group in groups]
    return {name: torch.stack([r.first_logits[i, name] for r in records]) for name in part.firsts}
