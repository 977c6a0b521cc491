"""What sampled results are read against: measured on rules, run by eval, named in its tables."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import halludecode as hd
from halludecode.core.plan import Plan, compile_plan, typical_model_info
from halludecode.core.registry import STRATEGIES
from halludecode.core.strategy import Strategy
from halludecode.core.tracing import TracedStrategy
from halludecode.evals.results import control_text, controls
from halludecode.evals.results.compare import compare_runs
from halludecode.evals.runner.run import run_eval
from tests.support import eval_world as world

SCALES = {"agla": 3.0}  # the rest keep the temperature


def plan_of(spec):
    # As on a model with every artifact at hand; what is in them does not matter here.
    return compile_plan(spec, replace(typical_model_info(), artifact={}))


def plan_with(rule, rows=("other",)):
    """A plan of one strategy whose combine is `rule`; nothing is registered."""

    @dataclass(frozen=True)
    class Made(Strategy):
        name = "made"

        def combine(self, step):
            return rule(step)

    part = TracedStrategy(Made(), typical_model_info(), branches=dict.fromkeys(rows))
    return Plan((part,), "made", frozenset(), ("main", *rows), None)


# ---------------------------------------------------------------- net scale


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_net_scale_of_the_strategies(name):
    if name in ("agla", "apc_only", "greedy", "m3id", "scaled", "var", "vcd", "vhr"):
        assert controls.net_scale(plan_of(name)) == SCALES.get(name, 1.0)
    else:  # one that came later: a number or None, and the same every time
        assert controls.net_scale(plan_of(name)) == controls.net_scale(plan_of(name))


@pytest.mark.parametrize(
    ("spec", "scale"),
    [
        ("vcd(alpha=3)", 1.0),
        ("m3id(lam=0.5,gate=1)", 1.0),
        ("var+vcd", 1.0),
        ("agla+vcd", 3.0),
        ("scaled(scale=2)+apc_only", 2.0),
        ("agla(alpha=0,beta=0)", 1.0),
    ],
)
def test_net_scale_of_parameters_and_compositions(spec, scale):
    assert controls.net_scale(plan_of(spec)) == scale


@pytest.mark.parametrize(
    ("rule", "scale"),
    [
        (lambda s: s["main"].log_softmax(-1) - s["other"].log_softmax(-1), 0.0),  # DoLa's form
        (lambda s: 0.95 * s["main"].log_softmax(-1), 0.95),  # HALC's
        (lambda s: s["main"] - 2 * s["other"], -1.0),
        (lambda s: s["main"] * (1 + s["main"].softmax(-1).amax(-1, keepdim=True)), None),  # DeCo's
        (lambda s: s["main"].clamp(min=0), None),
        (lambda s: s["main"] * (1 + 0.1 * s.t), None),  # a temperature that moves with the answer
        (lambda s: s["main"] + s.state["table"], None),
        (lambda s: s["main"].masked_fill(s["main"] < 0, float("-inf")), None),
    ],
)
def test_net_scale_of_other_rules(rule, scale):
    assert controls.net_scale(plan_with(rule)) == scale


@settings(deadline=None, max_examples=25)
@given(st.floats(0, 20), st.floats(0.001, 1), st.floats(0.01, 30))
def test_what_is_measured_is_what_was_set(alpha, beta, scale):
    agla = plan_of(f"agla(alpha={alpha!r},beta={beta!r})")
    assert controls.net_scale(agla) == pytest.approx(1 + alpha, rel=1e-4)
    assert controls.cutoff(agla) == pytest.approx(beta, rel=1e-3)
    assert controls.net_scale(plan_of(f"scaled(scale={scale!r})")) == pytest.approx(scale, abs=1e-3)


def test_cutoff_of_rules_without_a_mask_is_zero():
    for spec in ("greedy", "m3id", "var", "scaled(scale=2)", "vcd(beta=0)"):
        assert controls.cutoff(plan_of(spec)) == 0.0
    assert controls.cutoff(plan_of("vcd(beta=0.2)+agla(beta=0.5)")) == 0.5  # the stricter mask


# ---------------------------------------------------------------- which control


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("greedy", []),
        ("apc_only", []),
        ("scaled(scale=2)+apc_only", []),
        ("vcd", ["apc_only(beta=0.1)"]),
        ("vcd(beta=0.25)", ["apc_only(beta=0.25)"]),
        ("m3id", ["apc_only"]),
        ("agla", ["apc_only", "scaled(scale=3)", "scaled(scale=3)+apc_only(beta=0.5)"]),
        ("agla(alpha=1.5,beta=0)", ["apc_only", "scaled(scale=2.5)"]),
    ],
)
def test_strategies_name_their_controls(spec, wanted):
    found = controls.controls_of(plan_of(spec))
    assert found["read_against"] == wanted
    assert found["note"] == ""


def test_a_rule_without_a_temperature_says_so():
    ratio = controls.controls_of(plan_with(lambda s: s["main"] - s["other"]))
    assert (ratio["net_scale"], ratio["read_against"]) == (0.0, ["apc_only"])
    assert ratio["note"] == "net scale 0: no temperature of the plain model matches it"
    bent = controls.controls_of(plan_with(lambda s: s["main"].clamp(min=0)))
    assert bent["note"].startswith("no fixed multiple of the logits")


class Compiler:
    def plan(self, spec):
        return plan_of(spec)


def test_controls_are_added_once_and_behind_the_rest():
    plans = {spec: plan_of(spec) for spec in ("greedy", "vcd", "agla", "apc_only")}
    found = controls.with_controls(Compiler(), plans)
    added = ["scaled(scale=3)", "scaled(scale=3)+apc_only(beta=0.5)"]
    assert list(found) == [*plans, *added]
    alone = controls.with_controls(Compiler(), {"greedy": plan_of("greedy")})
    assert list(alone) == ["greedy"]


# ---------------------------------------------------------------- runs


def sampled_requests():
    from tests.support import families

    return [hd.Request("What is this?", [picture]) for picture in families.pictures()]


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_scaled_logits_are_another_temperature_token_for_token(testbed, scale):
    def drawn(strategy, temperature):
        sampling = hd.Sampling(max_new_tokens=6, temperature=temperature, seed=5)
        return [o.token_ids for o in testbed.generate(sampled_requests(), strategy, sampling)]

    assert drawn(f"scaled(scale={scale})", 1.0) == drawn("greedy", 1 / scale)


@pytest.fixture(scope="module")
def made(testbed, tmp_path_factory):
    """Sampled and greedy runs of the embedded model on a few pictures."""
    root = tmp_path_factory.mktemp("controls")
    options = {
        "tasks": ["pope", "chair"],
        "strategies": ["greedy", "vcd", "agla"],
        "data": ["testbed-iid"],
        "testbed_images": 8,
        "limit": 6,
        "max_new_tokens": 12,
        "pope_splits": ("random",),
        "progress": False,
    }
    return {
        name: run_eval(testbed, output=root / name, **options, **more)
        for name, more in {
            "sampled": {"temperature": 1.0},
            "bare": {"temperature": 1.0, "controls": False},
            "greedy": {},
        }.items()
    }


def shown(table, width=120):
    file = io.StringIO()
    Console(width=width, file=file).print(table)
    return file.getvalue()


def strategies_of(report):
    return list(dict.fromkeys(entry["strategy"] for entry in report.results["runs"]))


def test_sampled_runs_add_their_controls(made):
    assert [s.split("(")[0] for s in strategies_of(made["greedy"])] == ["greedy", "vcd", "agla"]
    assert strategies_of(made["bare"]) == strategies_of(made["greedy"])
    assert strategies_of(made["sampled"])[3:] == [
        "apc_only(beta=0.1)",
        "scaled(scale=3.0)",
        "scaled(scale=3.0)+apc_only(beta=0.5)",
    ]


def test_run_json_keeps_what_was_measured(made):
    recorded = made["sampled"].run["strategies"]
    (agla,) = (info for name, info in recorded.items() if name.startswith("agla"))
    assert agla["controls"] == {
        "net_scale": 3.0,
        "cutoff": 0.5,
        "note": "",
        "read_against": [
            "apc_only(beta=0.1)",
            "scaled(scale=3.0)",
            "scaled(scale=3.0)+apc_only(beta=0.5)",
        ],
    }
    assert "controls" not in made["greedy"].run["strategies"]["greedy"]


def test_differences_to_controls_equal_comparing_with_them(made):
    report = made["sampled"]
    gaps = {(g["task"], g["split"], g["strategy"]): g for g in report.results["differences"]}
    for (_, split, strategy), gap in gaps.items():
        if not strategy.startswith("agla"):
            continue
        for entry in gap["controls"]["sampling"]["against"]:
            specs = [f"{report.path}:{name}" for name in (strategy, entry["control"])]
            (same,) = (
                d
                for d in compare_runs(specs).differences
                if (d["task"], d["split"]) == (gap["task"], split)
            )
            plain = {
                name: {k: v for k, v in d.items() if k != "p_holm"}
                for name, d in same["metrics"].items()
            }
            assert entry["metrics"] == plain
            assert entry["n"] == gap["n"]


def test_holm_counts_claims_and_not_controls(made):
    gaps = [g for g in made["sampled"].results["differences"] if g["task"] == "chair"]
    claims = [g["metrics"]["length"] for g in gaps if g["strategy"].startswith(("vcd", "agla"))]
    low, high = sorted(claims, key=lambda d: d["p"])
    assert low["p_holm"] == pytest.approx(min(1, 2 * low["p"]))
    assert high["p_holm"] == pytest.approx(max(low["p_holm"], high["p"]))


def test_tables_name_the_controls_and_fit(made):
    text = shown(made["sampled"].table())
    assert max(map(len, text.splitlines())) <= 120
    assert "minus the controls it must be read against" in text
    for row in ("vcd - apc_only", "agla - scaled(scale=3)"):
        assert row in text
    bare = shown(made["bare"].table())
    assert "not run" in bare
    compared = shown(compare_runs([str(made["bare"].path)]).table())
    assert "Minus scaled(scale=3.0): not run; add it with --controls." in compared
    assert "Net scale 3: as if at temperature T / 3" in compared


def test_greedy_runs_say_why_there_is_no_control(made):
    text = shown(made["greedy"].table())
    assert "Greedy decoding: apc_only and scaled choose the very tokens greedy does" in " ".join(
        text.split()
    )
    assert "must be read against" not in text
    gap = made["greedy"].results["differences"][0]
    assert gap["controls"]["sampling"] == {"note": controls.GREEDY}
    assert shown(compare_runs([str(made["greedy"].path)]).table()).count("Greedy decoding:") == 1


def test_controls_stand_beside_every_difference(made):
    for report in made.values():
        for gap in report.results["differences"]:
            texts = {"length", "objects", "repetition"}
            kinds = {"yes_ratio"} if gap["task"] == "pope" else texts
            assert set(gap["controls"]) == {*kinds, "unanswered", "sampling"}
    assert json.loads(json.dumps(made["greedy"].results)) == made["greedy"].results


def test_a_resumed_call_may_add_controls(testbed, tmp_path):
    options = {
        "tasks": ["pope"],
        "strategies": ["greedy", "vcd"],
        "data": ["testbed-iid"],
        "testbed_images": 4,
        "limit": 2,
        "pope_splits": ("random",),
        "temperature": 1.0,
        "progress": False,
        "output": tmp_path / "run",
    }
    run_eval(testbed, controls=False, **options)
    later = run_eval(testbed, **options)
    whole = run_eval(testbed, **{**options, "output": tmp_path / "whole"})
    assert world.timeless(later.results) == world.timeless(whole.results)


def test_a_control_of_an_older_version_is_still_told():
    block = {"yes_ratio": 0.4, "difference": {"value": 0.1, "low": 0.0, "high": 0.2}}
    block |= {"accuracy": {"value": 0.6}, "baseline": {"value": 0.5}, "verdict": "holds"}
    sides = {"strategy": "vcd", "baseline": "greedy"}
    gap = {"task": "pope", **sides, "controls": {"yes_ratio": block}}
    said = control_text.sentences(gap, {}, lambda gap, scale: f"{gap['value'] * scale:.1f}")
    assert said == ["At greedy's yes-ratio (40.0 %): accuracy 60.0 against 50.0, 10.0: holds."]
