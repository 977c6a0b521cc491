"""What a worker keeps of requests, and for how long."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from halludecode.core.plan import typical_model_info
from halludecode.engines.vllm.row_metadata import RowMetadata
from halludecode.engines.vllm.worker import state as state_module
from halludecode.engines.vllm.worker.runner_v1 import places
from halludecode.engines.vllm.worker.state import WorkerState
from halludecode.engines.vllm.worker.step_batch import StepBatch


def runner_of(state: WorkerState, *names: str):
    """A runner that computes one token of some rows of group "g": "g" itself, or "g#1"."""
    requests = {}
    for name in names:
        role = int(name.partition("#")[2] or 0)
        metadata = RowMetadata(
            "g", role, ["main", "noised"], ["answer", "answer"], request_name="r"
        )
        params = SimpleNamespace(extra_args=metadata.extra_args())
        requests[name] = SimpleNamespace(
            sampling_params=params, mm_features=[], num_prompt_tokens=4
        )
    count = len(names)
    batch = SimpleNamespace(req_ids=list(names), num_computed_tokens_cpu=np.full(count, 4))
    masks = SimpleNamespace(np=np.zeros(count, dtype=bool))
    return SimpleNamespace(input_batch=batch, requests=requests, discard_request_mask=masks)


def step(state: WorkerState, *names: str) -> StepBatch:
    return StepBatch.of(state, places(runner_of(state, *names), dict.fromkeys(names, 1)))


def test_a_step_that_runs_on_after_the_end_leaves_no_record():
    """Asynchronous scheduling starts the next step before the end of this one is known."""
    state = WorkerState()
    assert list(step(state, "g", "g#1").sampling())
    state.record("g").differs = [(at, (torch.tensor([False, True]), 1)) for at in (0, 1, 4)]
    assert state.report(["g"])[0]["differs"] == [0, 1, 4]
    assert not step(state, "g", "g#1").groups, "its rows run on, nothing acts on them"
    state.drop_row("g")
    state.drop_row("g#1")
    assert not (state.records or state.ended or state._rows or state._metadata)


def test_rows_without_their_main_row_are_nobodys():
    state = WorkerState()
    assert step(state, "g", "g#1").groups
    state.record("g").differs = [
        (at, (torch.tensor([False, True]), int(at > 0))) for at in (0, 1, 2)
    ]
    state.drop_row("g")
    assert not step(state, "g#1").groups
    assert state.report(["g"])[0]["differs"] == [1, 2], "the record waits for its reader"
    state.drop_row("g#1")
    assert not (state.records or state.ended or state._rows)


def test_a_row_that_was_preempted_comes_back_to_its_group():
    state = WorkerState()
    assert step(state, "g", "g#1").groups
    assert step(state, "g#1").groups["g"].keys() == {"noised"}, "the main row is held, not gone"
    assert step(state, "g", "g#1").groups["g"].keys() == {"main", "noised"}


def test_compiled_plans_are_bounded(monkeypatch):
    monkeypatch.setattr(state_module, "KEPT", 3)
    state = WorkerState()
    state.model_info = typical_model_info()
    made = [state.plan(f"vcd(alpha={n})") for n in range(1, 6)]
    assert len(state._plans._entries) == 3
    assert state.plan("vcd(alpha=5)") is made[-1]
    assert state.plan("vcd(alpha=1)") is not made[0]
