"""PhD: its index by hand, its four modes, its pictures."""

from __future__ import annotations

import json

import pytest

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.fixed_answers import fixed_answers
from halludecode.evals.benchmarks.phd import FOLLOW, PhD
from halludecode.evals.load import load_units
from tests.support import eval_world as world
from tests.support.answered import lines_of, samples_of

ROWS = [
    {"image_id": str(n // 2), "task": task, "yes_question": f"Is it {n}?"}
    | {"no_question": f"Is it not {n}?", "context": {"iac": f"Not {n}.", "icc": f"Never {n}."}}
    for n, task in enumerate(("object", "object", "counting", "counting"))
]
CCS = {"image_id": "5", "task": "object", "yes_question": "A?", "no_question": "B?"}
CCS |= {"ccs_description": "odd"}


def test_the_index_is_the_harmonic_mean_of_two_recalls():
    samples = samples_of(PhD(), ROWS)
    # yes: 3 of 4, no: 1 of 4; objects 2 of 2 and 1 of 2; counting 1 of 2 and 0 of 2
    right = {"0 object 1 yes", "0 object 2 yes", "1 counting 1 yes", "0 object 1 no"}
    flip = {"yes": "No", "no": "Yes"}
    answers = {s.id: s.label if s.id in right else flip[s.label] for s in samples}
    metrics = PhD().score(lines_of(PhD(), samples, lambda s: answers[s.id])).metrics
    assert metrics["index"] == pytest.approx(2 * 0.75 * 0.25 / (0.75 + 0.25))
    assert metrics["index.object"] == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert metrics["index.counting"] == 0
    assert metrics["pair_accuracy"] == 1 / 4
    assert metrics["accuracy"] == 4 / 8


def test_one_answer_for_all_gets_none():
    lines = lines_of(PhD(), samples_of(PhD(), ROWS), lambda s: str(s.label))
    assert PhD().score(lines).metrics["index"] == 1
    for block in fixed_answers(PhD(), lines).values():
        assert (block["index"], block["pair_accuracy"], block["accuracy"]) == (0, 0, 0.5)


def test_modes_take_their_rows_and_put_their_context_before():
    asked = {mode: samples_of(PhD(mode=mode), [*ROWS, CCS]) for mode in ("base", "icc", "ccs")}
    assert {mode: len(samples) for mode, samples in asked.items()} == {
        "base": 8, "icc": 8, "ccs": 2,
    }  # fmt: skip
    assert asked["base"][0].question == "Is it 0?"
    assert asked["icc"][1].question == f"Never 0.{FOLLOW}Is it not 0?"
    with pytest.raises(InvalidData, match="row 1: there is no context 'iac' in it"):
        samples_of(PhD(mode="iac"), [{**ROWS[0], "context": {"icc": "x"}}])


def test_the_release_is_found_with_its_pictures(tmp_path):
    root = tmp_path / "phd"
    root.mkdir()
    (root / "data.json").write_text(json.dumps([*ROWS, CCS]))
    world.picture(root / "images" / "train2014" / "COCO_train2014_000000000000.jpg", 1)
    world.picture(root / "images" / "CCS_images" / "5.png", 3)
    with pytest.raises(InvalidData, match=r"COCO_train2014_0{11}1\.jpg nor .*val2014_0{11}1\.jpg"):
        load_units([tmp_path], world.select("phd"))
    world.picture(root / "images" / "val2014" / "COCO_val2014_000000000001.jpg", 2)
    (unit,) = load_units([tmp_path], world.select("phd"))
    assert [s.id for s in unit.samples[:3]] == [
        "0 object 1 yes",
        "0 object 1 no",
        "0 object 2 yes",
    ]
    (unit,) = load_units([tmp_path], world.select("phd(mode=ccs)"))
    assert [s.id for s in unit.samples] == ["5 object 1 yes", "5 object 1 no"]
