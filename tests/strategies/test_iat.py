"""IAT: the official forward, and whole runs written out slowly."""

from __future__ import annotations

import pytest

from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from tests.support import official
from tests.support.edited_runs import check_run


def test_the_official_forward():
    official.close(official.edited("iat"), "iat", [7])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_whole_run(family_engine, family):
    engine = family_engine(family)
    layers = set(get("iat").layers(engine.model_info))

    def scores(layer, given, at):
        if layer in layers:
            for head in given:
                for row in range(at.length, len(head)):
                    for j in range(at.length, row + 1):
                        head[row][j] += 2.0 * abs(head[row][j])
        return given

    check_run(engine, family, "iat(alpha=2.0)", scores=scores)


def test_layers_scale_and_off_is_off():
    m = typical_model_info()
    assert compile_plan("iat", m).parts[0].layers == frozenset(range(5, 18))
    assert compile_plan("iat(alpha=0)", m).parts == ()
