"""HaloQuest: verdicts as langfun reads them, shares by kind, the release's table."""

from __future__ import annotations

import pytest

from halludecode.evals.benchmarks.haloquest import HaloQuest
from halludecode.evals.benchmarks.judged import UNREAD
from halludecode.evals.load import load_units
from tests.support import eval_world as world
from tests.support.answered import OFFICIAL, samples_of

TABLE = (
    ",image_name,url,image type,hallucination type,question,groundtruth responses,split\n"
    "0,a.png,https://a.example/a.png,generated,false premises,What hat?,No hat; None,eval\n"
    '7,b.png,https://a.example/b.png,real,visual challenge,"How many, then?",3,eval\n'
)


@pytest.mark.parametrize(("raw", "official"), OFFICIAL["haloquest"]["replies"])
def test_verdicts_are_read_as_the_release_reads_them(raw, official):
    wanted = {True: "true", False: "false"}.get(official, UNREAD)
    assert HaloQuest().verdict(raw) == wanted


@pytest.mark.parametrize(
    ("raw", "verdict"),
    [
        ("{'is_prediction_correct': true}", "true"),
        ("is_prediction_correct=True ... is_prediction_correct=False", UNREAD),
        ("not_is_prediction_correct=True", UNREAD),
    ],
)
def test_other_forms_of_the_verdict(raw, verdict):
    assert HaloQuest().verdict(raw) == verdict


def test_accuracy_is_told_by_kind_of_question_and_picture():
    made = HaloQuest()
    lines = [
        {"id": n, "image": str(n), "kind": kind, "made": how, "parsed": parsed, "answer": "x"}
        | {"score": int(parsed == "true"), "label": "y"}
        for n, (kind, how, parsed) in enumerate(
            [
                ("a", "real", "true"),
                ("a", "generated", "false"),
                ("b", "real", "refused"),
                ("b", "real", "other"),
            ]
        )
    ]
    found = made.score(lines).metrics
    assert found["accuracy"] == 0.25
    assert (found["accuracy.a"], found["accuracy.b"]) == (0.5, 0)
    assert (found["accuracy.real"], found["accuracy.generated"]) == (pytest.approx(1 / 3), 0)
    assert (found["refused"], found["unread"]) == (1, 1)


def test_the_release_is_read_from_its_table(tmp_path):
    (tmp_path / "haloquest").mkdir()
    (tmp_path / "haloquest" / "haloquest-eval.csv").write_text(TABLE)
    for n, name in enumerate("ab"):
        world.picture(tmp_path / "images" / f"{name}.png", n)
    (unit,) = load_units([tmp_path], world.select("haloquest"))
    assert [(s.id, s.question, s.label, s.facts["kind"]) for s in unit.samples] == [
        ("0", "What hat?", "No hat; None", "false premises"),
        ("7", "How many, then?", "3", "visual challenge"),
    ]


def test_the_shipped_questions_are_those_counted(tmp_path):
    (asked,) = HaloQuest().annotated(None, ()).values()
    assert (len(asked), len({s.image for s in asked})) == (608, 375)
    assert len({s.id for s in asked}) == len({(s.image, s.question) for s in asked}) == 608
    assert {s.facts["made"] for s in asked} == {"real", "generated"}
    for n, name in enumerate({s.image for s in asked}):
        world.picture(tmp_path / "haloquest" / "images" / str(name), n)
    (unit,) = load_units([tmp_path], world.select("haloquest"))
    assert len(unit.samples) == 608


def test_the_judge_gets_question_answer_and_truth():
    sample = samples_of(HaloQuest(), HaloQuest.examples)[0]
    wanted = ("What colour is the hat?", "red", "There is no hat.; No hat")
    assert HaloQuest().asked(sample, "red") == wanted
