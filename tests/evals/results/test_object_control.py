"""Equally many objects: by hand, and on texts that merely name fewer things."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halludecode.evals.benchmarks.amber import AMBER
from halludecode.evals.benchmarks.amber import scoring as amber
from halludecode.evals.benchmarks.chair import CHAIR
from halludecode.evals.benchmarks.chair import scoring as chair
from halludecode.evals.results.object_control import VERDICTS, object_control
from halludecode.evals.statistics import intervals as stats

TRUTH = {1: frozenset({"dog", "car"}), 2: frozenset({"cat"}), 3: frozenset({"boat"})}
# Different objects: 3 and 2, 1 and 0, 2 and 3.
OURS = {1: "A dog and a dog and a cup and a car .", 2: "A cat sits .", 3: "A boat and a dog"}
THEIRS = {1: "A dog and a car and a dog .", 2: "It sits .", 3: "A red boat and a cat and a cup ."}


def scored(captions, family="wordnet"):
    return chair.score(captions, TRUTH, family=family, path="tables")


def control(cls, a, b):
    plain = {name: gap.to_dict() for name, gap in stats.compare(a, b, resamples=200).items()}
    return object_control(cls, a, b, plain)


def values(block, side):
    return {name: d[side]["value"] for name, d in block["metrics"].items()}


@pytest.mark.parametrize("family", ["wordnet", "pattern"])
def test_both_captions_are_cut_behind_the_same_number_of_objects(family):
    block = control(CHAIR, scored(OURS, family), scored(THEIRS, family))
    assert block["named"]["strategy"]["value"] == pytest.approx((3 + 1 + 2) / 3)
    assert block["named"]["baseline"]["value"] == pytest.approx((2 + 0 + 3) / 3)
    # Ours: dog, dog, cup | nothing | boat, dog. Theirs: dog, car | nothing | boat, cat.
    ours, theirs = (values(block["matched"], side) for side in ("strategy", "baseline"))
    assert ours == pytest.approx(
        {"chair_s": 2 / 3, "chair_i": 2 / 5, "recall": 2 / 4, "objects": 4 / 3}
    )
    assert theirs == pytest.approx(
        {"chair_s": 1 / 3, "chair_i": 1 / 4, "recall": 3 / 4, "objects": 4 / 3}
    )
    assert block["matched"]["metrics"]["chair_s"]["test"] == "mcnemar"


def test_naming_fewer_objects_alone_is_labelled_so():
    truth = dict.fromkeys(range(60), frozenset({"dog"}))
    few = dict.fromkeys(truth, "A dog sits near a tree on the road by the wall of a house .")
    many = dict.fromkeys(truth, "A dog and a cup .")
    a, b = (chair.score(texts, truth, path="tables") for texts in (few, many))
    block = control(CHAIR, a, b)["matched"]
    assert set(block["verdict"].values()) == {VERDICTS["only"]}
    assert block["metrics"]["chair_s"]["value"] == 0


WORDS = st.lists(
    st.sampled_from(["dog", "cat", "car", "cup", "and", "the", ".", "toilet", "seat"]), max_size=12
)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_cut_captions_name_equally_many_and_whole_ones_are_unchanged(texts):
    truth = dict.fromkeys(range(len(texts)), frozenset({"dog", "cat"}))
    a, b = (
        chair.score({i: " ".join(pair[s]) for i, pair in enumerate(texts)}, truth, path="tables")
        for s in (0, 1)
    )
    ours, theirs = CHAIR.objects_named(a), CHAIR.objects_named(b)
    fewer = {i: min(count, theirs[i]) for i, count in ours.items()}
    cut = [CHAIR.cut_after_objects(score, fewer) for score in (a, b)]
    assert [CHAIR.objects_named(score) for score in cut] == [fewer, fewer]
    assert cut[0].metrics["objects"] == cut[1].metrics["objects"]
    whole = CHAIR.cut_after_objects(a, CHAIR.objects_named(a)).metrics
    assert whole["chair_s"] == a.metrics["chair_s"]
    assert whole["recall"] == a.metrics["recall"]


def line(i, nouns, wrong):
    parsed = {"nouns": nouns, "hallucinated": wrong, "covered": [], "thought_of": []}
    told = {"id": i, "type": "generative", "image": f"{i}.jpg", "answer": "", "score": 1}
    return {**told, "objects": ["dog"], "hallu": ["cup"], "parsed": parsed}


def test_descriptions_of_amber():
    a = amber.score_lines([line(1, ["dog", "dog", "cup"], ["cup"]), line(2, ["cup"], ["cup"])])
    b = amber.score_lines([line(1, ["cup", "dog"], ["cup"]), line(2, ["dog", "cup"], ["cup"])])
    block = control(AMBER, a, b)["matched"]
    # Two and one: dog, dog, cup | cup against cup, dog | dog.
    assert values(block, "strategy") == pytest.approx({"chair": 2 / 4, "hal": 1, "objects": 1.5})
    assert values(block, "baseline") == pytest.approx({"chair": 1 / 3, "hal": 0.5, "objects": 1.5})


def test_questions_name_no_objects():
    asked = {"id": 1, "type": "discriminative-relation", "image": "1.jpg", "answer": "Yes"}
    score = amber.score_lines([{**asked, "label": "yes", "parsed": "yes", "score": 1}])
    assert object_control(AMBER, score, score, {}) == {}
