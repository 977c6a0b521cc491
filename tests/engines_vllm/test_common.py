"""What counts as the same answer."""

from __future__ import annotations

import pytest

import halludecode as hd
from halludecode.engines.base import Choice, Timings, TokenLogprob
from tests.engines_vllm.common import same


def answer(*steps: dict[int, float]) -> hd.Output:
    """Greedy: each step's most likely token is the one written."""
    ids = tuple(max(step, key=step.get) for step in steps)
    told = tuple(TokenLogprob(i, "", step[i], step) for i, step in zip(ids, steps, strict=True))
    choice = Choice("", ids, "length", told)
    return hd.Output((choice,), "vcd", None, Timings(), ("main",))


PLAIN = {1: -0.5, 2: -1.5, 3: -2.5}
SHIFTED = {1: -0.51, 2: -1.51, 3: -2.51}  # a token at the mask's edge was left out
OTHER = {1: -0.51, 2: -1.52, 3: -2.5}
TIED = {1: -0.50001, 2: -0.5, 3: -2.5}


@pytest.mark.parametrize(
    ("mine", "equal"),
    [
        ((PLAIN, PLAIN, PLAIN), True),
        ((PLAIN, SHIFTED, PLAIN), True),
        ((SHIFTED, SHIFTED, PLAIN), False),
        ((PLAIN, OTHER, PLAIN), False),
        ((PLAIN, TIED, OTHER), True),
        ((PLAIN, PLAIN), False),
    ],
)
def test_same(mine, equal):
    assert same(answer(*mine), answer(PLAIN, PLAIN, PLAIN)) is equal
