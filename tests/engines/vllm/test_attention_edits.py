"""Strategies that act inside a forward give on vLLM the tokens that they give on the HF engine."""

from __future__ import annotations

import pytest
import torch

import halludecode as hd
from halludecode.core.activations import ActivationRequest
from halludecode.core.branch import Edit
from halludecode.views.patches import masked
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
    "adaiat",
    "imccd",
    "only",
    "revisit",
    "vti",
    "ilvad",
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


def test_attention_on_all_keys_is_that_of_the_hf_engine(engines):
    ours, hf = engines
    asked = ActivationRequest(hf.prompt_of(requests(1)[0]), image=(1,), keys=(1, 3))
    made, wanted = (engine.activations(asked, remember=False) for engine in (ours, hf))
    torch.testing.assert_close(made.keys, wanted.keys, atol=1e-5, rtol=1e-4)
    assert made.keys.sum(-1).sub(1).abs().max() < 1e-5
    assert made.image.shape[-1] < made.keys.shape[-1]


def test_the_towers_states_are_those_of_the_hf_engine(engines):
    ours, hf = engines
    edit = Edit(masked, (("ratio", 0.5), ("patch", 12)), draw=0)
    for pixels in (None, edit):
        prompt = hf.prompt_of(requests(1)[0])
        asked = ActivationRequest(prompt, tower=(0, 2), pixels=edit if pixels else None)
        states = [engine.activations(asked, remember=False).tower for engine in (ours, hf)]
        assert states[0].shape == (2, 101, 192)
        torch.testing.assert_close(*states, atol=1e-4, rtol=1e-4)
