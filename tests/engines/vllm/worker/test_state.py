"""What a worker keeps of requests, and for how long."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from halludecode.core.plan import typical_model_info
from halludecode.engines.vllm.row_metadata import RowMetadata
from halludecode.engines.vllm.worker import state as desk_module
from halludecode.engines.vllm.worker.state import WorkerState
from halludecode.engines.vllm.worker.step_batch import StepBatch


def runner_of(desk: WorkerState, *names: str):
    """A runner that computes one token of some rows of group "g": "g" itself, or "g#1"."""
    requests = {}
    for name in names:
        role = int(name.partition("#")[2] or 0)
        tag = RowMetadata("g", role, ["main", "noised"], ["answer", "answer"], job="j")
        params = SimpleNamespace(extra_args=tag.extra())
        requests[name] = SimpleNamespace(
            sampling_params=params, mm_features=[], num_prompt_tokens=4
        )
    count = len(names)
    batch = SimpleNamespace(req_ids=list(names), num_computed_tokens_cpu=np.full(count, 4))
    masks = SimpleNamespace(np=np.zeros(count, dtype=bool))
    return SimpleNamespace(input_batch=batch, requests=requests, discard_request_mask=masks)


def view(desk: WorkerState, *names: str) -> StepBatch:
    return StepBatch.of(runner_of(desk, *names), desk, dict.fromkeys(names, 1))


def test_a_step_that_runs_on_after_the_end_leaves_no_note():
    """Asynchronous scheduling starts the next step before the end of this one is known."""
    desk = WorkerState()
    assert list(view(desk, "g", "g#1").sampling())
    desk.note("g").differs = [(at, (torch.tensor([False, True]), 1)) for at in (0, 1, 4)]
    assert desk.report(["g"])[0]["differs"] == [0, 1, 4]
    assert not view(desk, "g", "g#1").groups, "its rows run on, nothing acts on them"
    desk.drop_tag("g")
    desk.drop_tag("g#1")
    assert not (desk.notes or desk.ended or desk._rows or desk._tags)


def test_rows_without_their_main_row_are_nobodys():
    desk = WorkerState()
    assert view(desk, "g", "g#1").groups
    desk.note("g").differs = [(at, (torch.tensor([False, True]), int(at > 0))) for at in (0, 1, 2)]
    desk.drop_tag("g")
    assert not view(desk, "g#1").groups
    assert desk.report(["g"])[0]["differs"] == [1, 2], "the note waits for its reader"
    desk.drop_tag("g#1")
    assert not (desk.notes or desk.ended or desk._rows)


def test_a_row_that_was_preempted_comes_back_to_its_group():
    desk = WorkerState()
    assert view(desk, "g", "g#1").groups
    assert view(desk, "g#1").groups["g"].keys() == {"noised"}, "the main row is held, not gone"
    assert view(desk, "g", "g#1").groups["g"].keys() == {"main", "noised"}


def test_compiled_plans_are_bounded(monkeypatch):
    monkeypatch.setattr(desk_module, "KEPT", 3)
    desk = WorkerState()
    desk.model_info = typical_model_info()
    made = [desk.plan(f"vcd(alpha={n})") for n in range(1, 6)]
    assert len(desk._plans._entries) == 3
    assert desk.plan("vcd(alpha=5)") is made[-1]
    assert desk.plan("vcd(alpha=1)") is not made[0]
