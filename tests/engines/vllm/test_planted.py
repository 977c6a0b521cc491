"""The planted model on vLLM: its sinks are the HF engine's, and var moves them."""

from __future__ import annotations

import warnings

import pytest

import halludecode as hd
from halludecode.analysis.sinks import sinks
from halludecode.testbed import PLANTED
from tests.engines.vllm.conftest import SETTINGS
from tests.support.vllm import requests, same


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("HALLUDECODE_CACHE", str(tmp_path_factory.mktemp("cache")))
        warnings.simplefilter("ignore")  # vLLM's own
        size = {"kv_cache_memory_bytes": 64 << 20, "max_model_len": 512, "block_size": 32}
        ours = hd.load(PLANTED, engine="vllm", **size, **SETTINGS[""])
        yield ours, hd.load(PLANTED)


def test_sinks_are_the_same(engines):
    ours, hf = (sinks(engine, requests(4)) for engine in engines)
    assert (ours.model, ours.dims, ours.verdict) == (PLANTED, hf.dims, hf.verdict)
    assert ours.verdict.startswith("sinks: ")
    assert ours.survey.phi.flatten().tolist() == pytest.approx(
        hf.survey.phi.flatten().tolist(), abs=1e-3
    )
    assert ours.survey.taken.tolist() == pytest.approx(hf.survey.taken.tolist(), abs=1e-4)
    assert (ours.example.sinks == hf.example.sinks).all()


def test_var_gives_the_tokens_of_the_hf_engine(engines):
    sampling = hd.Sampling(max_new_tokens=8, logprobs=3)
    ours, hf = (engine.generate(requests(4), "var", sampling) for engine in engines)
    for a, b in zip(ours, hf, strict=True):
        assert same(a, b)
        assert (a.strategy, a.warnings) == (b.strategy, ())
    plain = engines[0].generate(requests(4), "greedy", sampling)
    assert any(
        abs(a.logprobs[0].logprob - b.logprobs[0].logprob) > 1e-3
        for a, b in zip(ours, plain, strict=True)
    )
