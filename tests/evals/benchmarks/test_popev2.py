"""POPEv2: the released annotations and the hub's rows; accuracy on both pictures, and on pairs."""

from __future__ import annotations

import json

import pytest

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.popev2 import POPEv2
from halludecode.evals.data.records import Record
from halludecode.evals.data.run_files import read_lines
from halludecode.evals.load import load_units
from halludecode.evals.report.render import render
from halludecode.evals.runner.run import evaluate
from halludecode.evals.runner.score_file import score_predictions
from tests.support import eval_world as world


def released(root, pairs=3):
    """``POPEv2/dataset`` of AoiDragon/POPE in small: every object edited out, then as it was."""
    records = []
    for n in range(pairs):
        name, thing = f"00000{n}.jpg", ("remote", "pizza", "wine glass")[n]
        asked = {"target_object": thing, "query": f"Is there a {thing} in the image?"}
        for folder, label in (("/images", "No"), ("/coco/train2017", "Yes")):
            world.picture(root / folder[1:] / name, len(records))
            image = {"image_id": n, "image_name": f"{folder}/{name}"}
            records.append({**image, **asked, "label": label})
    root.mkdir(exist_ok=True)
    (root / "annotations.json").write_text(json.dumps(records, indent=4))
    return root


def score(*pairs):
    """The metrics of pairs of answers: to the original and to the edited picture."""
    lines = []
    for n, answers in enumerate(pairs):
        for edited, answer in zip((False, True), answers, strict=True):
            cells = {"image_id": n, "target_object": "cup", "question": "Is there a cup?"}
            cells |= {"image": f"{n}.png", "answer": "No" if edited else "Yes"}
            (sample,) = POPEv2().samples(Record("here", cells))
            marks = {"id": sample.id, "image": sample.image, "group": sample.group}
            lines.append({**POPEv2().answered(sample, answer), **marks, "group_size": 2})
    return POPEv2().score(lines)


@pytest.mark.parametrize("place", ["popev2", "POPEv2/dataset"])
def test_the_release_is_found_and_read(tmp_path, place):
    released(tmp_path / "set" / place)
    (unit,) = load_units([tmp_path / "set"], world.select("popev2"))
    assert unit.key == ("popev2", "set", None)
    assert [(s.id, s.label, s.picture.name) for s in unit.samples[:2]] == [
        ("0 remote edited", "no", "images/000000.jpg"),
        ("0 remote original", "yes", "coco/train2017/000000.jpg"),
    ]
    assert len(unit.samples) == 6
    (few,) = load_units([tmp_path / "set"], world.select("popev2", limit=1))
    assert [s.group for s in few.samples] == ["0 remote"] * 2


def test_the_file_may_be_named(tmp_path):
    root = released(tmp_path / "set")
    (unit,) = load_units([], world.select("popev2"), root, root / "annotations.json")
    assert len(unit.samples) == 6
    with pytest.raises(InvalidData, match="holds popev2 annotations, and the tasks asked for are"):
        load_units([], world.select("pope"), root, root / "annotations.json")


def test_the_hubs_rows_hold_both_pictures():
    row = {"image_id": 5, "target_object": "cup", "question": "Is there a cup?"}
    row |= {"normal": "a", "counterfactual": "b"}
    row |= {"normal_label": "yes", "counterfactual_label": "no"}
    samples = POPEv2().samples(Record("here", row))
    assert [(s.id, s.image, s.label) for s in samples] == [
        ("5 cup original", "a", "yes"),
        ("5 cup edited", "b", "no"),
    ]


def test_metrics_are_counted_by_hand():
    found = score(("Yes", "No"), ("Yes", "Yes"), ("No", "No"), ("Yes", "No"), ("No", "Yes"))
    assert found.n == 10
    expected = {
        "accuracy": 6 / 10,
        "original_accuracy": 3 / 5,
        "edited_accuracy": 3 / 5,
        "pair_accuracy": 2 / 5,
        "follows_edit": 2 / 3,  # of the three seen in the original, two are denied in the edit
        "yes_ratio": 5 / 10,
    }
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected)
    assert found.shares["pair_accuracy"] == {
        "0 cup": 1, "1 cup": 0, "2 cup": 0, "3 cup": 1, "4 cup": 0,
    }  # fmt: skip


def test_saying_yes_to_everything_follows_no_edit():
    metrics = score(("Yes", "Yes"), ("Yes", "Yes")).metrics
    assert (metrics["accuracy"], metrics["follows_edit"], metrics["pair_accuracy"]) == (0.5, 0, 0)
    assert "follows_edit" in score(("No", "No")).degenerate  # nothing was seen in an original


def test_half_a_pair_in_the_data_is_left_out_and_told(tmp_path):
    root = released(tmp_path / "set" / "popev2")
    records = json.loads((root / "annotations.json").read_text())
    (root / "annotations.json").write_text(json.dumps(records[:-1]))
    options = {"data": [tmp_path / "set"], "out": tmp_path / "run"}
    report = evaluate(world.FakeEngine(), "popev2", **options)
    (entry,) = report.results["runs"]
    assert (entry["n"], entry["failed"], entry["left_out"], report.left_out) == (4, 0, 1, 1)
    told = render([tmp_path / "run"], "md", None)
    assert "1 answered but not scored, as others that they count together with are not in" in told
    answers = [
        {"id": x["id"], "answer": x["answer"]}
        for x in read_lines(tmp_path / "run" / "samples.jsonl")
    ]
    world.write_lines(tmp_path / "answers.jsonl", answers)
    scored = score_predictions("popev2", tmp_path / "answers.jsonl", root / "annotations.json")
    assert (scored["n"], scored["left_out"]) == (4, 1)
    assert scored["metrics"] == {n: {"value": m["value"]} for n, m in entry["metrics"].items()}
    (root / "annotations.json").write_text(json.dumps(records[:1]))
    world.write_lines(tmp_path / "answers.jsonl", answers[:1])
    with pytest.raises(InvalidData, match="holds no group of questions that POPEv2 counts whole"):
        score_predictions("popev2", tmp_path / "answers.jsonl", root / "annotations.json")
