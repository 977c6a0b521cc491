"""MMVP: lmms-eval's reading and counting, the four labels, pairs, orders of options."""

from __future__ import annotations

import pytest

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.fixed_answers import COPIED, fixed_answers
from halludecode.evals.benchmarks.mmvp import CORRECTED, MMVP, RELEASED
from halludecode.evals.data.samples import Sample
from halludecode.evals.load import load_units
from tests.support import eval_world as world
from tests.support.answered import OFFICIAL, lines_of, samples_of


def rows(*labels, first=1):
    return [
        {"index": n, "question": f"Pair {(n + 1) // 2}?", "options": "(a) Long (b) Short"}
        | {"answer": f"({label})", "image": f"{n}.jpg"}
        for n, label in enumerate(labels, start=first)
    ]


@pytest.mark.parametrize(("answer", "letter"), OFFICIAL["mmvp_letters"]["cases"])
def test_letters_are_found_where_lmms_eval_finds_them(answer, letter):
    sample = Sample(1, "?", None, "A")
    assert MMVP().judge(sample, answer)["parsed"] == (letter or "other")


def test_scores_equal_lmms_evals():
    given = OFFICIAL["mmvp"]["answers"]
    samples = samples_of(MMVP(), rows(*(label.strip("()") for _, label, _ in given)))
    answers = {index: answer for index, _, answer in given}
    score = MMVP().score(lines_of(MMVP(), samples, lambda s: answers[s.id]))
    assert score.metrics["accuracy"] == OFFICIAL["mmvp"]["accuracy"]
    assert score.metrics["pair_accuracy"] == OFFICIAL["mmvp"]["pair_accuracy"]


@pytest.mark.parametrize("given", ["ab", "ba"])
def test_both_sets_of_labels_whichever_copy_is_read(given):
    asked = [*rows(*given, first=99), *rows(*given, first=279)]
    for labels, known in (("released", RELEASED), ("corrected", CORRECTED)):
        samples = samples_of(MMVP(labels=labels), asked)
        assert {s.id: s.label for s in samples} == known
    assert all(RELEASED[n] != CORRECTED[n] for n in RELEASED)


def test_the_question_is_asked_as_lmms_eval_asks():
    (sample,) = samples_of(MMVP(), rows("a"))
    assert MMVP().prompt(world.select("mmvp").presets["mmvp"], sample) == (
        "Pair 1?\nA. Long\nB. Short\nAnswer with the option's letter from the given choices "
        "directly."
    )


def test_one_letter_for_all_gets_no_pair():
    samples = samples_of(MMVP(), rows(*"abba"))
    found = fixed_answers(MMVP(), lines_of(MMVP(), samples, lambda s: str(s.label)))
    assert list(found) == ["always A", "always B", COPIED]
    assert all(block["accuracy"] == 0.5 and block["pair_accuracy"] == 0 for block in found.values())


def test_options_are_rotated_and_a_liking_for_a_letter_is_told():
    rotated = MMVP(rotate=True)
    samples = samples_of(rotated, rows(*"ab"))
    assert [(s.id, s.label, s.facts["options"]) for s in samples] == [
        (1, "A", ["Long", "Short"]),
        ("1 order 1", "B", ["Short", "Long"]),
        (2, "B", ["Long", "Short"]),
        ("2 order 1", "A", ["Short", "Long"]),
    ]
    always_a = rotated.score(lines_of(rotated, samples, lambda s: "A")).metrics
    assert (always_a["first_option"], always_a["order_bias"]) == (1, 0.5)  # recalls 1 and 0
    assert (always_a["accuracy"], always_a["pair_accuracy"], always_a["every_order"]) == (0.5, 0, 0)
    right = rotated.score(lines_of(rotated, samples, lambda s: str(s.label))).metrics
    assert (right["first_option"], right["order_bias"]) == (0.5, 0)
    assert right["accuracy"] == right["pair_accuracy"] == right["every_order"] == 1
    once = rotated.score(
        lines_of(rotated, samples, lambda s: str(s.label) if s.facts["order"] else "A")
    ).metrics
    assert (once["pair_accuracy"], once["every_order"]) == (0.5, 0.5)


def test_the_release_is_read_from_its_table(tmp_path):
    table = 'Index,Question,Options,Correct Answer\n1,"Long, or short?",(a) Long (b) Short,(a)\n'
    table += "2,Long?,(a) Long (b) Short,(b)\n"
    (tmp_path / "Questions.csv").write_text(table)
    for n in (1, 2):
        world.picture(tmp_path / "MMVP Images" / f"{n}.jpg", n)
    (unit,) = load_units([tmp_path], world.select("mmvp"))
    assert [(s.id, s.question, s.label, s.picture.name) for s in unit.samples] == [
        (1, "Long, or short?", "A", "1.jpg"),
        (2, "Long?", "B", "2.jpg"),
    ]
    (tmp_path / "Questions.csv").write_text(table.replace("(b)\n", "(c)\n"))
    with pytest.raises(InvalidData, match=r"Questions\.csv:3: options .* and answer '\(c\)' are"):
        load_units([tmp_path], world.select("mmvp"))
    (tmp_path / "Questions.csv").write_text(table + "3,short row\n")
    with pytest.raises(InvalidData, match=r"Questions\.csv:4: 2 cells, and the first line has 4"):
        load_units([tmp_path], world.select("mmvp"))
