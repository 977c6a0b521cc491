"""Multiple choice: what every benchmark of it is told of options, letters and their order."""

from __future__ import annotations

import re

import pytest

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.choice import rotations
from halludecode.evals.data.samples import Sample
from halludecode.evals.runner.import_answers import import_answers
from halludecode.evals.runner.run import run_eval
from tests.support import eval_world as world


@pytest.mark.parametrize("label", ["C", "", "~", "AB", 1])
def test_an_answer_that_is_no_option_is_one_sentence(label):
    sample = Sample(1, "?", "a.png", label, where="x.jsonl:3")
    told = f"x.jsonl:3: answer {label!r} is no letter of its 2 options, A to B."
    with pytest.raises(InvalidData, match=f"^{re.escape(told)}$"):
        rotations(sample, ["long", "short"])


def folder(root):
    rows = [
        {"index": n, "question": "Is it open?", "options": "(a) Open (b) Closed"}
        | {"answer": f"({'ab'[n % 2]})", "image": f"{n}.jpg"}
        for n in (1, 2, 3, 4)
    ]
    world.write_lines(root / "mmvp.jsonl", rows)
    for row in rows:
        world.picture(root / "images" / row["image"], row["index"])
    return root


def test_a_run_with_rotated_options_tells_the_bias_of_their_order(tmp_path):
    options = {"strategies": ["greedy", "vcd"], "progress": False}
    options["data"] = [folder(tmp_path / "set")]
    task = "mmvp(rotate=true)"
    report = run_eval(world.FakeEngine(), output=tmp_path / "run", tasks=task, **options)
    assert report.run["mmvp"]["rotate"] is True
    for entry in report.results["runs"]:
        assert entry["n"] == 8
        assert {"order_bias", "first_option", "every_order"} <= entry["metrics"].keys()
        assert entry["fixed_answers"]["always A"]["accuracy"] == 0.5
        assert entry["fixed_answers"]["always A"]["every_order"] == 0


@pytest.mark.parametrize(("rule", "accuracy"), [("as_written", 0.25), ("final", 1.0)])
def test_imported_answers_are_read_by_what_they_finally_say(tmp_path, rule, accuracy):
    questions = folder(tmp_path / "set") / "mmvp.jsonl"
    said = ["B", "<think>B or A?</think> (A)", r"\boxed{B}", "**A**"]  # which are right
    lines = [{"index": n, "answer": text} for n, text in enumerate(said, start=1)]
    world.write_lines(tmp_path / "a.jsonl", lines)
    named = {"greedy": tmp_path / "a.jsonl"}
    output = tmp_path / "run"
    report = import_answers("mmvp", named, annotations=questions, output=output, answers=rule)
    (entry,) = report.results["runs"]
    assert entry["metrics"]["accuracy"]["value"] == accuracy
