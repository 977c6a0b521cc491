"""HGAI: the official forward, and whole runs written out slowly."""

from __future__ import annotations

import pytest

from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from tests.support import official
from tests.support.edited_runs import check_run


def test_the_official_forward():
    official.close(official.edited("hgai"), "hgai", [7])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_whole_run(family_engine, family):
    engine = family_engine(family)
    layers = set(get("hgai", stop=25).layers(engine.model_info))

    def scores(layer, given, at):
        if layer in layers:
            for row in range(at.length - 1, len(given[0])):
                for j in at.image:
                    more = 1.5 * sum(abs(head[row][j]) for head in given) / len(given)
                    for head in given:
                        head[row][j] += more
        return given

    check_run(engine, family, "hgai(alpha=1.5,stop=25)", scores=scores)


def test_layers_scale_and_off_is_off():
    m = typical_model_info()
    assert compile_plan("hgai", m).parts[0].layers == frozenset(range(5, 18))
    assert compile_plan("hgai(alpha=0)", m).parts == ()
