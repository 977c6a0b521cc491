"""What is odd in a data set is counted where it is read and told wherever it is used."""

from __future__ import annotations

import pytest

from halludecode.core.errors import InvalidData
from halludecode.evals.data.oddities import odd_units
from halludecode.evals.load import load_units
from halludecode.evals.runner.import_answers import import_answers
from halludecode.evals.runner.run import run_eval
from halludecode.evals.runner.score_file import score_predictions
from tests.support import eval_world as world

ROWS = [  # the second asks the first again, the third with another answer
    {"question_id": n, "image": image, "text": text, "label": label}
    for n, (image, text, label) in enumerate(
        [
            ("a.jpg", "Is he on it?", "yes"),
            ("a.jpg", "Is he on it?", "yes"),
            ("a.jpg", "Is he on it?", "no"),
            ("a.jpg", "Is he by it?", "no"),
            ("b.jpg", "Is he on it?", "no"),
        ]
    )
]
TOLD = "2 of 5 questions ask again what was asked of the same picture, 1 of these with another"


@pytest.fixture
def folder(tmp_path):
    world.write_lines(tmp_path / "set" / "rbench.jsonl", ROWS)
    for n, name in enumerate("ab"):
        world.picture(tmp_path / "set" / "images" / f"{name}.jpg", n)
    return tmp_path / "set"


def test_repeated_and_contradictory_questions_are_counted_and_told(folder, tmp_path):
    (unit,) = load_units([folder], world.select("rbench"))
    assert unit.oddities == {"repeated": 2, "contradictory": 1}
    assert TOLD in odd_units([unit])[0]
    options = {"tasks": "rbench", "strategies": ["greedy"], "progress": False, "data": [folder]}
    report = run_eval(world.FakeEngine(), output=tmp_path / "run", **options)
    assert TOLD in " ".join(report.told)
    assert report.run["data"]["rbench/set"]["oddities"] == unit.oddities
    world.write_lines(tmp_path / "a.jsonl", [{"id": n, "answer": "no"} for n in range(5)])
    questions = folder / "rbench.jsonl"
    scored = score_predictions("rbench", tmp_path / "a.jsonl", questions)
    assert TOLD in " ".join(scored["told"])
    named = {"greedy": tmp_path / "a.jsonl"}
    made = import_answers("rbench", named, annotations=questions, output=tmp_path / "imported")
    assert TOLD in " ".join(made.told)


def test_options_in_another_order_are_no_oddity(tmp_path):
    rows = [
        {"index": n, "question": "Is it open?", "options": "(a) Yes (b) No", "answer": f"({x})"}
        | {"image": f"{n}.jpg"}
        for n, x in ((1, "a"), (2, "b"))
    ]
    world.write_lines(tmp_path / "mmvp.jsonl", rows)
    for n in (1, 2):
        world.picture(tmp_path / "images" / f"{n}.jpg", n)
    (unit,) = load_units([tmp_path], world.select("mmvp(rotate=true)"))
    assert len(unit.samples) == 4
    assert not unit.oddities
    assert odd_units([unit]) == ()


def test_missing_pictures_are_counted(folder):
    (folder / "images" / "b.jpg").unlink()
    with pytest.raises(InvalidData, match=r"b\.jpg does not exist\.$"):
        load_units([folder], world.select("rbench"))
    (folder / "images" / "a.jpg").unlink()
    with pytest.raises(InvalidData, match=r"a\.jpg does not exist \(1 more of 2 are missing too\)"):
        load_units([folder], world.select("rbench"))
