"""In a worker: what a request bans, allows or pushes, on all rows of its group before they combine.

After rows are combined vLLM applies its own masks to the main row. A plausibility cut would by then
have left only tokens that the request bans, so everything of that kind is done here first: the
request's own rules, the mask of a grammar (which vLLM puts on the row of the request that has it,
the main one), and end tokens below the minimum length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from halludecode.engines.token_rules import NEG_INF, exhausted
from halludecode.engines.vllm.worker.state import WorkerState
from halludecode.engines.vllm.worker.step_batch import ScheduledRow, placed

Rows = dict[str, ScheduledRow]


def ban(
    groups: Sequence[Rows],
    logits: Tensor,
    written: Callable[[ScheduledRow], Sequence[int]],
    state: WorkerState,
) -> Tensor:
    """Logits [rows, V] of a step under what its requests ban, allow or push.

    Args:
        groups: Whose token is drawn.
        logits: As the forward gave them, a grammar's mask applied; left as they are.
        written: Tokens written so far by a row; asked for where rules look back at them.
        state: Of the worker; a group that is left nothing to write fails there.
    """
    out = logits
    short: dict[tuple[int, ...], list[int]] = {}  # end tokens -> rows that may not end, else free
    for rows in groups:
        main = rows["main"]
        params = main.request.sampling_params
        ends = tuple(params.stop_token_ids or ()) if params.min_tokens > main.written else ()
        ruled = bool(main.metadata.token_rules) or params.structured_outputs is not None
        if ruled or ends:
            out = logits.float().clone() if out is logits else out
        if ruled:
            _ban_group(rows, out, written, state, ends)
        elif ends:
            short.setdefault(ends, []).extend(row.index for row in rows.values())
    for ends, places in short.items():  # most batches have one kind: one write for all their rows
        out[placed(places, out.device)[:, None], placed(list(ends), out.device)] = NEG_INF
    return out


def _ban_group(
    rows: Rows,
    out: Tensor,
    written: Callable[[ScheduledRow], Sequence[int]],
    state: WorkerState,
    ends: Sequence[int],
) -> None:
    main = rows["main"]
    structured = main.request.sampling_params.structured_outputs is not None
    at = placed([row.index for row in rows.values()], out.device)
    own = out[at]
    if structured:
        own = own.masked_fill(out[main.index] == NEG_INF, NEG_INF)
    record = state.record(main.metadata.group)
    if main.metadata.token_rules:
        own = own + record.added_by(main.metadata, out, lambda: written(main))
    if ends:
        held = own.index_fill(-1, placed(list(ends), out.device), NEG_INF)
        # A grammar that only lets the answer end wins over the minimum length, as it does in vLLM.
        own = torch.where(_empty(held), own, held) if structured else held
    # What can leave nothing depends on what was written; the rest was checked before.
    if (structured or (record.rules and record.rules.looks_back)) and bool(_empty(own)[0]):
        record.fail(exhausted(main.written), "token rules")
    out[at] = own


def _empty(rows: Tensor) -> Tensor:
    """Bool [rows, 1]: no token is left."""
    return rows.amax(-1, keepdim=True) == NEG_INF
