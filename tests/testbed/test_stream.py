from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halludecode.testbed.stream import SIGMA, Stream


def test_a_stream_depends_on_its_address_alone():
    draws = [Stream(1, 2, 3, 4).below(10**9), Stream(1, 2, 3, 4).below(10**9)]
    others = {
        Stream(*address).below(10**9)
        for address in ((0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0))
    }
    assert draws[0] == draws[1]
    assert len(others | {draws[0]}) == 5


def test_first_draws_are_known():
    stream = Stream(7, 1, 2, 3)
    assert [stream.below(1000) for _ in range(5)] == [580, 505, 79, 596, 654]
    assert Stream(7, 1).normals(6).tolist() == [-19, 75, -45, 134, -101, -28]


@given(st.integers(1, 2**31), st.integers(0, 2**64 - 1))
def test_below_stays_below(n, seed):
    assert 0 <= Stream(seed, 0).below(n) < n


@given(st.lists(st.integers(), max_size=20), st.integers(0, 1000))
def test_shuffling_keeps_the_items(items, seed):
    assert sorted(Stream(seed, 0).shuffled(items)) == sorted(items)


def test_weights_are_kept():
    stream = Stream(0, 0)
    seen = Counter(stream.weighted("abc", (1, 3, 2)) for _ in range(6000))
    assert [seen[c] for c in "abc"] == pytest.approx([1000, 3000, 2000], rel=0.1)


def test_normals_are_gaussian():
    draws = Stream(0, 0).normals(400, 500)
    assert draws.dtype == np.int32
    assert draws.mean() == pytest.approx(0, abs=1)
    assert draws.std() == pytest.approx(SIGMA, rel=0.01)
    inside = [(abs(draws) <= k * SIGMA).mean() for k in (1, 2, 3)]
    assert inside == pytest.approx([0.683, 0.954, 0.997], abs=0.005)


def test_an_odd_number_of_normals_is_given():
    assert Stream(0, 0).normals(7).shape == (7,)
    assert Stream(0, 0).normals(7).tolist() == Stream(0, 0).normals(8).tolist()[:7]
