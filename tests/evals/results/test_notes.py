"""The sentences below a run's tables."""

from halludecode.evals.results.control_text import fixed_answers
from halludecode.evals.results.notes import notes


def entry(strategy, model="testbed", **numbers):
    head = {"task": "pope", "data": "set", "split": None, "strategy": strategy, "model": model}
    return {**head, "n": 1200, "failed": 0, "metrics": {}, **numbers}


def told(*entries):
    return notes({"runs": entries}, {"m3id(lam=0.02)": "m3id"})


def test_a_strategy_that_changed_nothing_is_named_and_so_is_the_model_with_sinks():
    idle = entry("m3id(lam=0.02)", answered=1200, as_greedy=1200)
    acts = entry("vcd", answered=1200, as_greedy=1199)
    (said,) = told(entry("greedy"), idle, idle, acts)
    assert said.startswith(
        "m3id changed nothing: all 2,400 of its answers are greedy's, word for word"
    )
    assert "--model testbed-planted is the same model with attention sinks" in said


def test_a_real_model_has_no_planted_twin():
    (said,) = told(entry("var", model="llava", answered=5, as_greedy=5))
    assert said.endswith("at these settings.")


def test_nothing_is_said_where_greedy_did_not_answer_or_one_answer_differs():
    other = entry("var", answered=3, as_greedy=2)
    assert told(entry("var"), entry("greedy"), entry("var", answered=0, as_greedy=0)) == []
    assert told(entry("var", answered=3, as_greedy=3), other) == []


def test_fixed_answers_that_get_the_same_are_told_once():
    copied = {name: {"total": 2.5} for name in ("always yes", "first answer copied")}
    entries = [
        {**entry(name), "task": "mme", "fixed_answers": copied}
        for name in ("greedy", "m3id(lam=0.02)")
    ]
    other = {"first answer copied": {"total": 3.0}}
    entries.append({**entry("vcd"), "task": "mme", "fixed_answers": other})
    (said,) = fixed_answers(entries, {"m3id(lam=0.02)": "m3id"})
    same = "always yes, greedy's, m3id's first answer copied: total 2.5"
    assert f"within a pair: {same}; vcd's first answer copied: total 3.0" in said


def test_what_is_missing_names_its_split():
    lost = {"remarks": ["3 of 1200 answers hold neither."], "unread": 2, "unshared": 1, "failed": 4}
    said = told(*[{**entry("vcd"), **lost, "split": split} for split in ("random", "popular")])
    assert len(said) == len(set(said)) == 8
    for split in ("random", "popular"):
        assert sum(s.startswith(f"vcd, pope on set ({split}): ") for s in said) == 4
