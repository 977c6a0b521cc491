"""What counts as the same answer."""

from __future__ import annotations

import math

import pytest

import halludecode as hd
from halludecode.engines.api import Choice, Timings, TokenLogprob
from tests.support.vllm import edge_gaps, requests, same


def answer(*steps: dict[int, float]) -> hd.Output:
    """Greedy: each step's most likely token is the one written."""
    ids = tuple(max(step, key=step.get) for step in steps)
    told = tuple(TokenLogprob(i, "", step[i], step) for i, step in zip(ids, steps, strict=True))
    choice = Choice("", ids, "length", told)
    return hd.Output((choice,), "vcd", None, Timings(), ("main",))


PLAIN = {1: -0.5, 2: -0.50002, 3: -2.5}
SHIFTED = {1: -0.51, 2: -0.51002, 3: -2.51}  # a token at the mask's edge was left out
OTHER = {1: -0.51, 2: -0.52, 3: -2.5}
TIED = {1: -0.50002, 2: -0.5, 3: -2.5}


@pytest.mark.parametrize(
    ("mine", "equal"),
    [
        ((PLAIN, PLAIN, PLAIN), True),
        ((PLAIN, SHIFTED, PLAIN), False),
        ((PLAIN, OTHER, PLAIN), False),
        ((PLAIN, TIED, OTHER), True),
        ((PLAIN, PLAIN), False),
    ],
)
def test_same(mine, equal):
    assert same(answer(*mine), answer(PLAIN, PLAIN, PLAIN)) is equal


@pytest.mark.parametrize(("gap", "equal"), [(5e-5, True), (2e-3, False)])
def test_a_shifted_step_must_lie_at_the_edge_of_a_mask(gap, equal):
    made, want = answer(PLAIN, SHIFTED, PLAIN), answer(PLAIN, PLAIN, PLAIN)
    assert same(made, want, lambda: [1.0, gap, 1.0]) is equal
    assert not same(answer(PLAIN, OTHER, PLAIN), want, lambda: [1.0, 5e-5, 1.0])
    assert not same(made, want, list), "a strategy without a mask has no edge"


def test_the_distance_to_the_edge_is_measured(testbed):
    request = requests(1)[0]
    sampling = hd.Sampling(max_new_tokens=4, min_new_tokens=4, logprobs=3)
    step = testbed.generate(request, "greedy", sampling)[0].logprobs[0]
    first, second = sorted(step.top.values(), reverse=True)[:2]
    spec = f"apc_only(beta={math.exp(second - first)!r})"  # the second word is on the edge
    gaps = edge_gaps(testbed, request, spec, sampling)
    assert len(gaps) == 4 and gaps[0] < 1e-4
    assert len(edge_gaps(testbed, request, "vcd+ritual", sampling)) == 4
    assert not edge_gaps(testbed, request, "m3id", sampling)
