"""Strategies that edit attention give on vLLM the tokens that they give on the HF engine."""

from __future__ import annotations

import pytest

import halludecode as hd
from tests.support.vllm import ACTIVE, answer_together, requests, same

NAMES = (
    "paint",
    "vaf",
    "hgai",
    "iat",
    "eah",
    "act",
    "vasparse",
    "farsight",
    "caac",
    "cmai",
    "ibd",
    "lol",
    "memvr",
    "only",
)
SAMPLING = hd.Sampling(max_new_tokens=8, min_new_tokens=6, logprobs=3)


@pytest.fixture(scope="module")
def engines(vllm_engine, testbed):
    return vllm_engine("testbed"), testbed


def test_all_of_them_together(engines, supplied):
    """In one batch, so that no strategy's values are read for another's request."""
    ours, hf = supplied(*engines)
    given = [
        (request, ACTIVE.get(name, name), SAMPLING)
        for i, name in enumerate(NAMES)
        for request in requests(2, seed=i)
    ]
    moved = set()
    for (request, spec, sampling), output in zip(given, answer_together(ours, given), strict=True):
        want = hf.generate(request, spec, sampling)[0]
        assert same(output, want), (spec, output.token_ids, want.token_ids)
        assert (output.effect, output.rows) == (want.effect, want.rows), spec
        plain = hf.generate(request, "greedy", sampling)[0]
        if want.token_ids != plain.token_ids or want.logprobs != plain.logprobs:
            moved.add(spec)
    assert len(moved) == len(NAMES), "each of them acted on some request"
