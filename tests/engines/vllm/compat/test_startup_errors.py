"""Why vLLM could not start is told in its own words."""

from __future__ import annotations

import logging

import pytest

import halludecode as hd
from halludecode.engines.vllm.compat import startup_errors


def test_a_start_that_fails_is_one_sentence():
    given = {"block_size": 32, "kv_cache_memory_bytes": 64 << 20, "max_model_len": 10**6}
    with pytest.raises(
        hd.InvalidModel, match=r"testbed: vLLM cannot start \(.*max_model"
    ) as caught:
        hd.load("testbed", engine="vllm", **given)
    assert "\n" not in str(caught.value) and "or use engine='hf'" in str(caught.value)


def test_what_another_process_logs_is_the_reason(monkeypatch, caplog):
    caplog.set_level(logging.ERROR, logger="vllm")
    logger = logging.getLogger("vllm")
    monkeypatch.setattr(logger, "handlers", [])
    with (
        pytest.raises(hd.InvalidModel, match=r"m: vLLM cannot start \(weights are cut short\)"),
        startup_errors.starting("m"),
    ):
        startup_errors.listen()  # as in a worker, which inherits the environment
        try:
            raise OSError("Traceback (most recent call last)\n  weights are cut short.\n")
        except OSError:
            logger.exception("worker died")
        raise RuntimeError("a worker died")


def test_nothing_is_heard_where_nobody_waits(monkeypatch):
    logger = logging.getLogger("vllm")
    monkeypatch.setattr(logger, "handlers", [])
    startup_errors.listen()
    assert not logger.handlers
