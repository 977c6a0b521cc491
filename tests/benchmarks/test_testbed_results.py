"""The testbed's table: what a difference counts as, over training seeds."""

import pytest

import halludecode as hd
from benchmarks.testbed_results import (
    GRID,
    LEFT_OUT,
    POPE,
    READINGS,
    SPLITS,
    Table,
    chosen_names,
    kind_of,
)
from halludecode.core.spec import parse
from halludecode.evals.results.yes_ratio import SHIFT

SETTINGS = {"vcd": "`vcd`", "pai": "`pai`", "dola(strength=0.3)": "`dola(strength=0.3)`, tuned"}


def metric(value, half):
    return {"value": value, "low": value - half, "high": value + half}


def results(accuracy):
    """One model's differences: POPE as given, nothing in captions."""
    flat = {name: metric(0.0, 0.01) for name in ("chair_i", "recall", "length")}
    differences = []
    for source in SPLITS:
        for setting in SETTINGS:
            about = {"strategy": setting, "data": f"testbed-{source}", "controls": {}}
            pope = {"accuracy": accuracy.get((setting, source), metric(0.0, 0.01))}
            differences += [
                about | {"task": "pope", "split": POPE[0], "metrics": pope},
                about | {"task": "chair", "split": None, "metrics": flat},
            ]
    return {"differences": differences, "runs": []}


@pytest.mark.parametrize(
    ("each", "kind"),
    [
        ((metric(0.05, 0.02), metric(0.04, 0.02)), "helps"),
        ((metric(-0.05, 0.02), metric(-0.04, 0.02)), "harms"),
        ((metric(0.05, 0.02), metric(0.0, 0.02)), "one"),
        ((metric(0.05, 0.02), metric(-0.05, 0.02)), "one"),
        ((metric(0.05, 0.049), metric(0.05, 0.049)), ""),  # clear at 95 %, not over three settings
    ],
)
def test_a_difference_counts_where_every_seed_has_it(each, kind):
    table = Table([results({("vcd", "iid"): one}) for one in each], SETTINGS)
    found = table.finding("vcd", "iid", POPE[0], "accuracy")
    assert found.kind == kind
    assert found.low <= found.value <= found.high
    assert not table.finding("pai", "iid", POPE[0], "accuracy").kind
    gains, still, *rows = [line for line in table.reading() if line]
    assert ("`vcd`" in gains) == (kind == "helps") and ("`vcd`" in still) == (not kind)
    (row,) = [x for x in rows if x.startswith("| `vcd` |")] or [""]
    told = dict(zip(READINGS, row.split(" | ")[1:], strict=True)) if row else {}
    assert [each for each in told if "POPE adversarial, iid" in told[each]] == [kind] * bool(kind)


def test_what_one_seed_alone_ran_is_not_counted_on():
    clear = {("vcd", "iid"): metric(0.05, 0.02)}
    both, first = results(clear), results(clear)
    both["differences"] = [gap for gap in both["differences"] if gap["strategy"] != "vcd"]
    assert Table([first, both], SETTINGS).finding("vcd", "iid", POPE[0], "accuracy").kind == "one"
    assert not Table([first, both], SETTINGS).finding("vcd", "broken", None, "recall").kind


def test_a_gain_that_a_control_takes_is_no_gain():
    found = results({("vcd", "iid"): metric(0.05, 0.02)})
    for gap in found["differences"]:
        gap["controls"] = {"yes_ratio": {"verdict": SHIFT}} if gap["task"] == "pope" else {}
    finding = Table([found], SETTINGS).finding("vcd", "iid", POPE[0], "accuracy")
    assert (finding.kind, finding.why) == ("taken", SHIFT)


def test_kinds_count_settings_once():
    found = results({("vcd", source): metric(0.05, 0.02) for source in SPLITS})
    lines = Table([found], SETTINGS).kinds()
    assert "| contrast | 1 | 1 | 0 | 0 | 0 |" in lines
    assert "| attention | 1 | 0 | 0 | 0 | 0 |" in lines


def test_every_strategy_runs_or_says_why_not():
    names = {info.name for info in hd.strategies()} - {"greedy"}
    assert names == {*chosen_names(), *LEFT_OUT} and not set(chosen_names()) & set(LEFT_OUT)
    for name, tried in GRID.items():
        assert name in names and len({name, *tried}) == len(tried) + 1
        for spec in tried:
            assert kind_of(spec) == kind_of(name)
            parse(spec)
