"""Object HalBench: the release's counts, its mapping of names, what is asked of the judge."""

from __future__ import annotations

import pytest

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.judged import UNREAD
from halludecode.evals.benchmarks.objhal import ObjectHalBench, named
from halludecode.evals.load import load_units
from tests.support import eval_world as world
from tests.support.answered import OFFICIAL, samples_of

GIVEN = OFFICIAL["objhal"]
NAMES = {"chair_s": "CHAIRs", "chair_sr": "CHAIRs_refine", "chair_i": "CHAIRi"}
NAMES |= {"recall": "obj_rec", "words": "avg_word_len"}


def test_scores_equal_the_official_scripts():
    made, lines = ObjectHalBench(), []
    for number, truth, answer, reply, objects in GIVEN["rows"]:
        parsed = [] if len(answer.split()) <= 3 else made.verdict(reply)
        assert named(parsed) == objects
        lines.append({"id": number, "image": str(number), "objects": truth, "answer": answer})
        lines[-1] |= {"parsed": parsed, "score": 0, "label": None}
    metrics = made.score(lines).metrics
    for ours, theirs in NAMES.items():
        assert metrics[ours] == pytest.approx(GIVEN["metrics"][theirs])


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (["a young man", "women"], ["person", "person"]),
        (["dog", "dogs", "the dog"], ["dog"]),  # one name, counted once
        (["tennis player", "pizza box"], []),  # nouns that stand together are one
        (["coffee table", "remote control", "brother"], ["dining table", "remote", "person"]),
        (["toilet", "seat"], ["toilet"]),
        (["toilet seat", "baby elephant"], ["toilet", "elephant"]),
        (["sky", ""], []),
    ],
)
def test_names_are_mapped_to_cocos_kinds(names, kinds):
    assert named(names) == kinds


@pytest.mark.parametrize(
    ("raw", "verdict"),
    [
        ('["a", "b"]', ["a", "b"]),
        ('The objects are:\n["a"]', ["a"]),
        ("[]", []),
        ("()", UNREAD),  # what the release's words ask for where nothing is seen: it asks again
        ('["a", 1]', UNREAD),
        ('{"a": 1}', UNREAD),
        ("a, b", UNREAD),
    ],
)
def test_lists_are_read(raw, verdict):
    assert ObjectHalBench().verdict(raw) == verdict


def test_nobody_is_asked_about_a_short_answer():
    (sample, *_) = samples_of(ObjectHalBench(), ObjectHalBench.examples)
    assert ObjectHalBench().judge(sample, "a big dog") == {
        "parsed": [],
        "score": 1,
        "judged": None,
    }


def test_the_release_is_read_and_its_pictures_are_cocos(tmp_path):
    row = {"image_id": 9, "question": "Describe.", "image": "aGVsbG8="}
    world.write_lines(tmp_path / "objhal" / "obj_halbench_300_with_image.jsonl", [row])
    world.picture(tmp_path / "images" / "train2014" / "COCO_train2014_000000000009.jpg", 1)
    (unit,) = load_units([tmp_path], world.select("objhal"))
    (sample,) = unit.samples
    assert (sample.id, sample.question) == (9, "Describe.")
    assert sample.objects == ("bowl", "broccoli", "orange")
    file = tmp_path / "objhal" / "obj_halbench_300_with_image.jsonl"
    world.write_lines(file, [{**row, "image_id": 999999999}])
    with pytest.raises(InvalidData, match=r"jsonl:1: image_id 999999999 is no picture of COCO"):
        load_units([tmp_path], world.select("objhal"))
