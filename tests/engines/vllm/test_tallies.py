"""What `Attention.tally` keeps of tokens outlives a preemption, after which they are read again."""

from __future__ import annotations

import pytest
import torch

import halludecode as hd
from tests.support.vllm import ACTIVE, answer_together, requests, same, scheduler_of, worker_of

ASKED = [
    (request, ACTIVE["ilvad"], hd.Sampling(max_new_tokens=48, min_new_tokens=46, logprobs=3))
    for request in requests(6)
]


@pytest.fixture
def told(vllm_engine, monkeypatch):
    """Answers in a cache too small for all of them; the tallies by group; who began again."""
    from vllm.v1.core.sched.scheduler import Scheduler

    engine = vllm_engine("testbed", tight="whole")
    state, tallies, again = worker_of(engine).model_runner.hd_state, {}, []
    report, preempt = state.report, Scheduler._preempt_request

    def reported(groups):
        for group in groups:
            if group in state.records and (kept := state.records[group].tallies):
                (tallies[group],) = kept.values()  # [layers, tokens or more]
        return report(groups)

    def preempted(self, request, *args, **kwargs):
        if request.num_output_tokens > 1:
            again.append(request.request_id)
        return preempt(self, request, *args, **kwargs)

    monkeypatch.setattr(state, "report", reported)
    monkeypatch.setattr(Scheduler, "_preempt_request", preempted)

    def answer(asked):
        tallies.clear(), again.clear()
        scheduler_of(engine).counts.clear()
        outputs = answer_together(engine, asked)
        kept = [tallies[group] for group in sorted(tallies, key=lambda name: (len(name), name))]
        return outputs, kept, list(again)

    return answer


@pytest.mark.full
def test_numbers_of_tokens_are_the_same_after_preemption(told):
    together, tallies, again = told(ASKED)
    assert again, "no answer began again"
    for one, output, kept in zip(ASKED, together, tallies, strict=True):
        (want,), (wanted,), never = told([one])
        assert not never and same(output, want)
        assert output.token_ids == want.token_ids and output.effect == want.effect
        width = min(kept.shape[-1], wanted.shape[-1])
        assert kept[:, :width].count_nonzero(-1).min() > 46  # words of the question and the answer
        torch.testing.assert_close(kept[:, :width], wanted[:, :width], atol=1e-4, rtol=1e-4)
        assert not kept[:, width:].any() and not wanted[:, width:].any()
