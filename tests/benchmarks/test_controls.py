"""The page on data with a known truth, a few rounds of it."""

from __future__ import annotations

import pytest

from benchmarks import controls

ROUNDS = 8


@pytest.mark.parametrize("case", controls.CASES, ids=lambda case: f"{case.control}: {case.told}")
def test_controls_find_what_is_there_and_not_what_is_not(case):
    ((_, plain, found),) = controls.rates(ROUNDS, (case,))
    assert 0 <= plain <= 1
    if not case.null:
        assert found >= 0.4
    elif case.told in ("two things fewer in as many words", "one thing fewer"):
        assert (found > 0.5) == (case.control == "equal length" and "words" in case.told)
    elif "varies more" in case.told:
        assert found > 0.25  # what makes d' parametric
    else:
        assert found <= 0.25  # 5 % are meant: three of eight have a chance of 0.6 %


def test_rounds_are_the_same_each_time():
    (case,) = (c for c in controls.CASES if c.control == "unanswered" and c.null)
    assert list(controls.rates(3, (case,))) == list(controls.rates(3, (case,)))
