"""Parity with official code: our numbers are theirs, and the page is what its command writes."""

from __future__ import annotations

import re

import pytest

from benchmarks import parity
from halludecode.core.registry import STRATEGIES

TOLERANCE = 1e-4  # of log-probabilities in float32; a method whose numbers are larger says so here
LOOSER: dict[str, float] = {}
NUMBER = re.compile(r"\b\d+e[-+]?\d+\b")


@pytest.mark.parametrize("name", parity.names())
def test_ours_are_the_official_numbers(name):
    about = parity.read(name)
    assert {"code", "commit", "licence", "setting", "differs", "cases"} <= set(about)
    assert len(about["commit"]) == 40, "a whole commit, so that it can be found"
    assert about["cases"] or about.get("reported"), "vectors, or a run that was measured"
    for case in about["cases"]:
        assert parity.difference(case) < LOOSER.get(name, TOLERANCE)


def test_the_page_is_what_the_command_writes():
    """Its last digits are rounding, which depends on threads and processor."""
    pages = [parity.PAGE.read_text(encoding="utf-8"), parity.page(parity.names())]
    kept, made = (NUMBER.sub("#", text) for text in pages)
    assert kept == made
    for one, other in zip(*(NUMBER.findall(text) for text in pages), strict=True):
        small, large = sorted((float(one), float(other)))
        assert large <= max(3 * small, 1e-7), (one, other)


def test_every_strategy_is_there_or_has_a_reason():
    known = set(STRATEGIES.names())
    assert set(parity.NOT_HERE) == known - set(parity.names())
    assert set(parity.names()) - known == {"tam"}  # an explanation


def test_a_token_banned_on_one_side_alone_is_infinitely_far():
    case = {"spec": "vcd(beta=0)", "rows": {"main": [1.0, 0.0], "noised": [1.0, 0.0]}}
    assert parity.difference({**case, "scores": [1.0, 0.0]}) == pytest.approx(0, abs=1e-6)
    assert parity.difference({**case, "scores": [1.0, None]}) == float("inf")
