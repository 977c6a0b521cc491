"""ROPE: the script's numbers, both settings, the release's folders, words and classes."""

from __future__ import annotations

import json

import pytest

from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.evals.benchmarks.rope import ROPE
from halludecode.evals.load import load_units
from tests.support import eval_world as world
from tests.support.answered import OFFICIAL, lines_of, samples_of

GIVEN = OFFICIAL["rope"]
KINDS = ("macro", "micro", "weighted")


def rows(count=None):
    return [
        {"image": f"{n}.png", "source": "COCO", "objects": [{"name": name} for name in names]}
        for n, names in enumerate(GIVEN["objects"][:count])
    ]


def compare(metrics, official):
    assert f"{metrics['accuracy'] * 100:.2f}%" == official["estimated_accuracy"]
    for kind in KINDS:
        for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1_score")):
            assert f"{metrics[f'{ours}_{kind}'] * 100:.2f}%" == official[f"{theirs}_{kind}"]


def test_scores_equal_the_official_scripts():
    made = ROPE()
    answers = {str(n): answer for n, answer in enumerate(GIVEN["answers"])}
    lines = lines_of(made, samples_of(made, rows()), lambda s: answers[s.id])
    metrics = made.score(lines).metrics
    compare(metrics, GIVEN["multi"])
    right, asked = GIVEN["multi"]["counts"]
    assert metrics["objects_right"] == right / (5 * len(lines)) != right / asked
    assert {x["id"] for x in lines if x["parsed"] == "other"} == {"7", "9", "10", "13"}


def test_objects_asked_one_by_one_score_as_officially():
    made = ROPE(setting="single")
    samples = samples_of(made, rows(6))
    answers = dict(zip((s.id for s in samples), GIVEN["single_answers"], strict=True))
    lines = lines_of(made, samples, lambda s: answers[s.id])
    compare(made.score(lines).metrics, GIVEN["single"])


def test_forced_answers_score_as_officially():
    made, data = ROPE(setting="teacher"), rows()
    samples = samples_of(made, data)
    answers = [answer for five in GIVEN["forced_answers"] for answer in five]
    given = dict(zip((s.id for s in samples), answers, strict=True))
    lines = lines_of(made, samples, lambda s: given[s.id])
    metrics = made.score(lines).metrics
    compare(metrics, GIVEN["teacher"])
    compare(metrics, GIVEN["student"])  # whose answers are read alike
    right, asked = GIVEN["teacher"]["counts"]
    assert metrics["objects_right"] == right / (5 * len(data)) != right / asked
    by_id = {line["id"]: line for line in lines}
    assert made.complete(by_id) == by_id
    del by_id["3 2"]
    whole = {f"{n}.png" for n in range(len(data)) if n != 3}
    assert {line["image"] for line in made.complete(by_id).values()} == whole
    assert samples[2].question.endswith(" obj1: dog, obj2: dog, obj3:")
    assert samples[0].question.removesuffix(" obj1:") == samples_of(ROPE(), data)[0].question


def test_what_is_asked_names_the_classes_of_the_source(tmp_path):
    data = [*rows(2), {**rows(1)[0], "source": "ADE", "image": "a.png"}]
    data[2]["objects"] = [{"name": name} for name in ("wall", "bed", "wall", "wall", "door")]
    together, single = ROPE(), ROPE(setting="single")
    assert samples_of(together, data)[2].question.count("bed, door, wall") == 1
    assert "cup" not in samples_of(together, data)[2].question
    asked = samples_of(single, data)[-2]
    assert (asked.id, asked.label) == ("a 4", "wall")
    assert asked.question.startswith("What is obj4 in its red box?")
    (tmp_path / "words.txt").write_text("Obj.{} of {}?\n")
    (tmp_path / "classes.txt").write_text("COCO: apple, dog\nADE: bed, wall\n")
    named = {"template": str(tmp_path / "words.txt"), "classes": str(tmp_path / "classes.txt")}
    asked = samples_of(ROPE(setting="single", **named), data)[-2]
    assert asked.question == "Obj.4 of bed, wall?"
    with pytest.raises(InvalidParameter, match=r"has 2 places \{\}; setting=together fills 1"):
        samples_of(ROPE(**named), data)
    (tmp_path / "classes.txt").write_text("COCO: apple, dog\n")
    with pytest.raises(InvalidParameter, match=r"classes\.txt has no line 'ADE: \.\.\.'"):
        samples_of(ROPE(setting="single", **named), data)


def test_the_release_is_read_by_part(tmp_path):
    row = {"folder": "data/AAAAB/x.jpg", "data_source": "COCO", "objects": rows(1)[0]["objects"]}
    for part, n in (("validation", 1), ("train", 2)):
        file = tmp_path / "ROPE" / part / "AAAAB_data.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps([row]))
        world.picture(file.parent / "image" / "AAAAB-images" / "x.png", n)
    (unit,) = load_units([tmp_path], world.select("rope"))
    assert (unit.split, [s.id for s in unit.samples]) == ("AAAAB", ["x"])
    (train,) = load_units([tmp_path], world.select("rope(part=train)"))
    assert train.samples[0].picture.digest != unit.samples[0].picture.digest
    bad = [{**row, "objects": row["objects"][:4]}]
    (tmp_path / "ROPE" / "train" / "AAAAB_data.json").write_text(json.dumps(bad))
    with pytest.raises(InvalidData, match=r"json:1: the objects are no list of five with a name"):
        load_units([tmp_path], world.select("rope(part=train)"))
