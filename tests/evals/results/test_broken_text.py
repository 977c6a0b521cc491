"""Text that repeats itself and answers that are none: by hand, and what no verdict may say then."""

from __future__ import annotations

import pytest

from halludecode.evals.benchmarks.chair import CHAIR
from halludecode.evals.benchmarks.pope import POPE
from halludecode.evals.results import broken_text as broken
from halludecode.evals.results.build import Answers
from halludecode.evals.results.control_text import sentences, verdicts
from halludecode.evals.results.paired import differences
from halludecode.evals.results.sections import gap_text
from halludecode.evals.results.verdict import verdict

SCENE = "a {} on the road near a tree and a house with a big old red {} beside it"


def lines(texts, strategy):
    told = {"task": "chair", "data": "d", "split": None, "strategy": strategy, "objects": ["dog"]}
    return {
        i: {**told, "id": i, "image": f"{i}.jpg", "answer": text} for i, text in enumerate(texts)
    }


def compared(ours, theirs):
    by_strategy = {"vcd": {None: lines(ours, "vcd")}, "greedy": {None: lines(theirs, "greedy")}}
    group = Answers("chair", "d", {"family": "pattern", "incomplete": "keep"}, by_strategy)
    return differences(group, ["vcd"], "greedy")[0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", (0, 0)),
        ("one two three", (0, 0)),
        ("one two three four", (0, 1)),
        ("One, two three four. one two three four!", (1, 5)),
        ("the the the the the the", (2, 3)),
    ],
)
def test_runs_of_four_words_said_before(text, found):
    assert broken.repeated(text) == found


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("  \n", "empty"),
        ("I'm sorry, but I cannot see the image.", "refused"),
        ("I\u2019m unable to view pictures.", "refused"),
        ("As an AI language model, I do not see.", "refused"),
        ("Sorry, no.", "refused"),
        ("No, I cannot see a dog.", ""),
        ("A man who is sorry.", ""),
        ("I can see a dog.", ""),
        ("Yes", ""),
    ],
)
def test_answers_that_are_none(answer, kind):
    assert broken.unanswered(answer) == kind


def test_counts_of_both_sides_and_their_test():
    pairs = [({"answer": ""}, {"answer": "Yes"})] * 8 + [({"answer": "No"}, {"answer": "No"})] * 92
    block = broken.unanswered_counts(pairs)
    assert block["strategy"] == {"empty": 8, "refused": 0}
    assert block["baseline"] == {"empty": 0, "refused": 0}
    assert block["p"] == pytest.approx(2 / 2**8)
    assert block["apart"] == "strategy"
    assert broken.unanswered_counts([(a, a) for a, _ in pairs])["apart"] is None


def test_answers_to_questions_do_not_repeat():
    line = {"id": 1, "image": "1", "label": "yes", "answer": "Yes"}
    assert broken.repetition(POPE(), [(line, line)]) == {}
    assert broken.repetition(CHAIR(), []) == {}


def test_a_gain_by_repeating_one_sentence_never_holds():
    theirs = [SCENE.format("dog", "cup") for _ in range(60)]
    ours = ["a dog stands on the road near a house . " * 4 for _ in range(60)]
    gap = compared(ours, theirs)
    assert gap["metrics"]["chair_s"]["value"] == -1
    repeats = gap["controls"]["repetition"]
    assert repeats["apart"] == "strategy"
    assert repeats["difference"]["strategy"]["value"] > 0.6
    for kind in ("length", "objects"):
        told = gap["controls"][kind]["matched"]["verdict"].values()
        assert not any("holds" in said for said in told)
    assert verdict(gap, "chair_s") == broken.UNTOLD["repetition"]
    said = "\n".join([*sentences(gap, {}, gap_text), *verdicts([gap], {})])
    assert "the text of vcd has come apart" in said
    assert "holds" not in said


def test_the_same_gain_without_repeating_stands():
    theirs = [SCENE.format("dog", "cup") for _ in range(60)]
    gap = compared([text.replace("cup", "mat and a dog and a dog") for text in theirs], theirs)
    # One object more is there to be counted: only so can the two be cut alike.
    assert gap["controls"]["repetition"]["apart"] is None
    assert gap["controls"]["length"]["matched"]["verdict"]["chair_s"] == "holds at equal length"


def test_empty_captions_are_counted_and_named():
    theirs = [SCENE.format("dog", "cup") for _ in range(60)]
    gap = compared(["" if i < 20 else text for i, text in enumerate(theirs)], theirs)
    assert gap["metrics"]["chair_s"]["value"] == pytest.approx(-1 / 3)
    assert verdict(gap, "chair_s") == broken.UNTOLD["unanswered"]
    said = "\n".join([*sentences(gap, {}, gap_text), *verdicts([gap], {})])
    assert "mpty or refused of 60 answers: vcd 20 empty, greedy none" in said
    assert "holds" not in said
