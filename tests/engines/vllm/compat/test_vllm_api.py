"""What of vLLM the engine builds on is there, or is named."""

from __future__ import annotations

import pytest

import halludecode as hd
from halludecode.engines.vllm.compat import vllm_api


def test_a_name_that_vllm_no_longer_has_is_told(monkeypatch):
    assert vllm_api.missing() == []
    from vllm.v1.core.sched.scheduler import Scheduler

    monkeypatch.delattr(Scheduler, "_preempt_request")
    assert vllm_api.missing() == ["vllm.v1.core.sched.scheduler.Scheduler._preempt_request"]
    with pytest.raises(hd.MissingExtra, match=r"lacks .*_preempt_request.* install the supported"):
        hd.load("testbed", engine="vllm")
