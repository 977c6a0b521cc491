"""Draws are counter-based: they depend on seed, child, step and token id, on nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halludecode.core.errors import InvalidParameter
from halludecode.engines.api import Sampling
from halludecode.engines.sampling import Sampler, gumbel


@given(st.integers(0, 2**63 - 1), st.integers(0, 5000))
def test_noise_is_finite_and_rows_are_independent(seed, step):
    keys = torch.tensor([seed % 2**32, 1, seed % 2**32])
    noise = gumbel(keys, step, 40)
    assert noise.isfinite().all()
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(gumbel(keys[1:2], step, 40)[0], noise[1])
    assert torch.equal(gumbel(keys, step, 17), noise[:, :17])


def test_noise_is_gumbel_and_uncorrelated():
    noise = torch.cat([gumbel(torch.arange(64), step, 500).flatten() for step in range(8)])
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.var()) == pytest.approx(1.6449, abs=0.02)
    a, b = gumbel(torch.tensor([1]), 0, 5000)[0], gumbel(torch.tensor([1]), 1, 5000)[0]
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.05
    assert abs(float(torch.corrcoef(torch.stack([a[1:], a[:-1]]))[0, 1])) < 0.05


def test_draws_follow_the_distribution():
    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    sampling = Sampling(temperature=0.8, seed=3)
    sampler = Sampler(sampling, range(4000), [])
    drawn = sampler.draw(scores.expand(4000, -1), 0)
    share = torch.bincount(drawn, minlength=4) / 4000
    torch.testing.assert_close(share, (scores / 0.8).softmax(-1)[0], atol=0.03, rtol=0)


def test_top_k_and_top_p_and_minimum_length():
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(500, -1)
    assert (
        Sampler(Sampling(temperature=5, top_k=2, seed=0), range(500), []).draw(scores, 0).max() == 1
    )
    assert (
        Sampler(Sampling(temperature=1, top_p=0.6, seed=0), range(500), []).draw(scores, 0).max()
        == 0
    )
    held = Sampler(Sampling(min_new_tokens=2), [0], [0])
    assert held.penalise(scores[:1], [], 1).argmax() == 1
    assert held.penalise(scores[:1], [], 2).argmax() == 0


def test_repetition_penalty_sees_only_a_childs_own_tokens():
    sampler = Sampler(Sampling(repetition_penalty=2.0), [0, 0], [])
    scores = torch.tensor([[4.0, -1.0, 3.0]] * 2)
    out = sampler.penalise(scores, [torch.tensor([0, 1]), torch.tensor([2])], 0)
    assert out.tolist() == [[2.0, -2.0, 3.0], [4.0, -1.0, 1.5]]


@pytest.mark.parametrize(
    "bad",
    [
        {"max_new_tokens": 0}, {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0},
        {"top_k": -1}, {"repetition_penalty": 0}, {"stop": [""]}, {"n": 0}, {"n": 2},
        {"min_new_tokens": 99}, {"logprobs": -1},
    ],
)  # fmt: skip
def test_bounds(bad):
    with pytest.raises(InvalidParameter, match=next(iter(bad))):
        Sampling(**bad)


def test_a_single_stop_string_is_a_list_of_one():
    assert Sampling(stop="a").stop == ("a",)
