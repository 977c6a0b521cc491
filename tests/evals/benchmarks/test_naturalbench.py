"""NaturalBench: rows of the release, its way of reading answers, its four shares."""

from __future__ import annotations

import pytest

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.naturalbench import NaturalBench
from halludecode.evals.data.records import Record
from halludecode.evals.presets import PRESETS
from halludecode.evals.results.notes import notes

ROW = {
    "index": 7,
    "question_0": "Is it red?",
    "question_1": "Is it blue?",
    "image_0": "a.png",
    "image_1": "b.png",
    "image_0_question_0": "Yes",
    "image_1_question_0": "No",
    "image_0_question_1": "No",
    "image_1_question_1": "Yes",
    "question_type": "yes_no",
}
LETTERS = {**ROW, "index": 8, "question_type": "multiple_choice"} | {
    key: {"Yes": "A", "No": "B"}[value] for key, value in ROW.items() if value in ("Yes", "No")
}


def samples(row=ROW):
    return NaturalBench().samples(Record("here", row))


def lines(*answers):
    """Lines of a group for every four answers, in the order of the release."""
    made = []
    for number in range(len(answers) // 4):
        group = answers[4 * number : 4 * number + 4]
        for sample, answer in zip(samples({**ROW, "index": number}), group, strict=True):
            answered = {"score": answer, "answer": "", "parsed": "", "label": sample.label}
            marks = {"group": sample.group, "group_size": 4}
            made.append({"id": sample.id, **answered, **sample.facts, **marks})
    return made


def test_a_row_is_four_questions_in_the_order_of_the_release():
    asked = [(s.id, s.question, s.image, s.label, s.group) for s in samples()]
    assert asked == [
        ("7_q0_i0", "Is it red?", "a.png", "yes", "7"),
        ("7_q0_i1", "Is it red?", "b.png", "no", "7"),
        ("7_q1_i0", "Is it blue?", "a.png", "no", "7"),
        ("7_q1_i1", "Is it blue?", "b.png", "yes", "7"),
    ]
    assert [s.label for s in samples(LETTERS)] == ["A", "B", "B", "A"]


def test_a_question_is_asked_as_published():
    first, letters = (
        NaturalBench().prompt(PRESETS["llava-1.5"], samples(row)[0]) for row in (ROW, LETTERS)
    )
    assert first == "Is it red?Please answer Yes or No."
    assert letters.endswith("?Please output the letter corresponding to the correct option.")
    kinds = [NaturalBench().kind(samples(row)[0]) for row in (ROW, LETTERS)]
    assert [NaturalBench().words(kind) for kind in kinds] == [("yes", "no"), ("A", "B")]


# Expected by `extract_answer` of the release (Baiqi-Li/NaturalBench, naturalbench_vqa.py):
# whichever word stands first as a word, in any case; -1, here other, without either.
@pytest.mark.parametrize(
    ("row", "answer", "parsed"),
    [
        (ROW, "Yes", "yes"),
        (ROW, "no.", "no"),
        (ROW, "Well, NO: yes was wrong", "no"),
        (ROW, "yes and no", "yes"),
        (ROW, "None of them is noyes", "other"),
        (ROW, "", "other"),
        (LETTERS, "A", "A"),
        (LETTERS, "(b) a cat", "B"),
        (LETTERS, "It shows a cat, so B", "A"),  # the article is read as the letter
        (LETTERS, "ABBA", "other"),
    ],
)
def test_answers_are_read_as_the_release_reads_them(row, answer, parsed):
    sample = samples(row)[0]
    assert NaturalBench().judge(sample, answer) == {
        "parsed": parsed,
        "score": int(parsed == sample.label),
    }


# What `get_scores` of the same file gives for right answers 1 and wrong ones 0 (in its terms all
# are right at 1 0 0 1): questions and pictures count twice a group, answers four times.
@pytest.mark.parametrize(
    ("right", "expected"),
    [
        ((1, 1, 1, 1), (1, 1, 1, 1)),
        ((1, 1, 1, 0), (0, 1 / 2, 1 / 2, 3 / 4)),
        ((1, 1, 0, 0), (0, 1 / 2, 0, 1 / 2)),
        ((1, 0, 1, 0), (0, 0, 1 / 2, 1 / 2)),
        ((1, 0, 0, 1), (0, 0, 0, 1 / 2)),
        ((0, 0, 0, 0), (0, 0, 0, 0)),
        ((1, 1, 1, 1, 1, 1, 0, 0), (1 / 2, 3 / 4, 1 / 2, 3 / 4)),
    ],
)
def test_shares_are_those_of_the_release(right, expected):
    metrics = NaturalBench().score(lines(*right)).metrics
    assert tuple(metrics[name] for name in ("G_Acc", "Q_Acc", "I_Acc", "Acc")) == expected


def test_a_group_with_a_failed_answer_does_not_count():
    found = {line["id"]: line for line in lines(1, 1, 1, 1, 1, 1, 0, 0)}
    del found["1_q0_i1"]
    kept = NaturalBench().complete(found)
    assert set(kept) == {f"0_q{q}_i{i}" for q in (0, 1) for i in (0, 1)}


def test_an_answer_of_another_type_is_refused():
    with pytest.raises(InvalidData, match="here: 'Maybe' is no answer to a yes_no question"):
        samples({**ROW, "image_1_question_0": "Maybe"})
    with pytest.raises(InvalidData, match="to a free_form question"):
        samples({**ROW, "question_type": "free_form"})


def test_what_cannot_be_read_is_told_in_words_that_fit_letters():
    entry = {"task": "naturalbench", "data": "set", "split": None, "strategy": "greedy"}
    entry |= {"n": 4, "failed": 0, "unparsed": 2, "metrics": {}}
    (told,) = [text for text in notes({"runs": [entry]}, {}) if "official rule" in text]
    assert "2 of 4 answers say none of the choices" in told
