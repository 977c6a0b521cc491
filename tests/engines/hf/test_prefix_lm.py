"""Prompts whose tokens all see each other: PaliGemma 2, whose Gemma 2 also has sliding windows."""

from __future__ import annotations

import pytest

import halludecode as hd
from tests.models.test_spans import LONG, asked, plain
from tests.support import families, specs
from tests.support.families import google


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tmp_path_factory.mktemp("paligemma2")
    families.build("paligemma", path, google.paligemma2)
    return hd.load(str(path))


def test_the_second_generation_is_plain_transformers(engine):
    cases = asked("paligemma")
    expected = [tuple(plain(engine, "paligemma", *case)) for case in cases]
    assert len(set(expected)) == len(expected)
    together = engine.generate([hd.Request(*case) for case in cases], "greedy", LONG)
    assert [output.token_ids for output in together] == expected


@pytest.mark.parametrize("name", specs.FEWER)
def test_strategies_act_on_it(engine, name):
    """Rows that begin late read the words of the prompt and of the answer in one forward."""
    requests = [hd.Request(*case) for case in asked("paligemma")[:3]]
    greedy = engine.generate(requests, "greedy", LONG)
    edited = engine.generate(requests, specs.active(name), LONG)
    assert [o.token_ids for o in edited] != [o.token_ids for o in greedy]
    for request, output in zip(requests, edited, strict=True):
        assert engine.generate(request, specs.active(name), LONG)[0].token_ids == output.token_ids
    engine.extra_rows = "always"
    try:
        at_once = engine.generate(requests, specs.active(name), LONG)
    finally:
        engine.extra_rows = "on_demand"
    assert [o.token_ids for o in at_once] == [o.token_ids for o in edited]


def test_a_search_is_refused_where_windows_slide(engine):
    request = hd.Request(*asked("paligemma")[0])
    with pytest.raises(hd.UnsupportedStrategy, match=r"opera.*search over beams"):
        engine.generate(request, "opera", LONG)
