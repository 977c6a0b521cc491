"""Compilation: traced needs, rows, cost, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from halludecode.core.branch import Branch
from halludecode.core.errors import InvalidParameter, UnsupportedStrategy
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from halludecode.core.strategy import Strategy

MODEL_INFO = typical_model_info()


def test_rows_and_costs():
    plan = compile_plan("vhr+m3id", MODEL_INFO)
    assert plan.rows == ("main", "blind", "m3id.blind")
    assert (plan.cost.rows, plan.cost.prefill_rows, plan.cost.image_rows) == (2, 1, 0)
    assert plan.whole
    assert not plan.reusable and not plan.main_reusable
    both = compile_plan("var+vcd", MODEL_INFO)
    assert both.rows == ("main", "noised")
    assert both.reusable and both.main_reusable
    assert (both.cost.rows, both.cost.image_rows, both.cost.attention) == (2, 1, True)
    assert compile_plan("agla", MODEL_INFO).cost.passes == 2
    assert str(both) == both.canonical


def test_score_edits_come_before_head_outputs_whatever_the_spelling():
    for spec in ("vhr+var", "var+vhr"):
        assert [p.strategy.name for p in compile_plan(spec, MODEL_INFO).attending] == ["var", "vhr"]


def test_off_points_are_skipped_unless_asked_for():
    assert compile_plan("vcd(alpha=0,beta=0)", MODEL_INFO).rows == ("main",)
    assert compile_plan("vcd(alpha=0,beta=0)", MODEL_INFO, skip_off=False).rows == (
        "main",
        "noised",
    )
    assert compile_plan("vcd(alpha=0)", MODEL_INFO).rows == ("main", "noised"), (
        "the mask is still on"
    )
    assert compile_plan("greedy", MODEL_INFO).parts == ()


def test_what_an_engine_lacks_is_named():
    with pytest.raises(
        UnsupportedStrategy, match=r"vcd needs 'edits pixels'; engine 'small' provides extra rows"
    ):
        compile_plan("vcd", MODEL_INFO, frozenset({"rows"}), engine="small")


def test_layers_scale_with_depth():
    deep = replace(MODEL_INFO, num_layers=64)
    assert sorted(get("vhr").layers(MODEL_INFO)) == [1, *range(18, 32)]
    assert sorted(get("vhr").layers(deep)) == [1, *range(36, 64)]
    assert list(get("var").layers(MODEL_INFO)) == list(range(2, 31))


def test_layers_outside_the_model_are_refused():
    class Wrong(Strategy):
        name = "wrong"

        def layers(self, m):
            return [m.num_layers]

        def attend(self, a):
            a.mask(a.image)

    with pytest.raises(InvalidParameter, match=r"not within 0\.\.31"):
        compile_plan(Wrong(), MODEL_INFO)


def test_a_required_artifact_must_exist():
    class Needy(Strategy):
        name = "needy"
        artifact = "required"

        def branches(self, prompt, state, m):
            return {"blind": Branch(prompt.without_images())}

    with pytest.raises(UnsupportedStrategy, match="halludecode calibrate --model M needy"):
        compile_plan(Needy(), MODEL_INFO)
    assert compile_plan(Needy(), MODEL_INFO, artifacts={"needy": {}}).rows == ("main", "blind")
