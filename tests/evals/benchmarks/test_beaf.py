"""BEAF: the official counts of what an edit does to answers, and what the release leaves open."""

from __future__ import annotations

import pytest

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.beaf import BEAF
from halludecode.evals.benchmarks.fixed_answers import COPIED, fixed_answers
from halludecode.evals.data.samples import Sample
from halludecode.evals.load import load_units
from tests.support import eval_world as world
from tests.support.answered import OFFICIAL, lines_of, samples_of

ROWS = [
    {"answer" if k == "gt" else k: v for k, v in x.items()} for x in OFFICIAL["beaf"]["questions"]
]
ANSWERS = OFFICIAL["beaf"]["answers"]


def test_scores_equal_the_official_scripts():
    lines = lines_of(BEAF(), samples_of(BEAF(), ROWS), lambda s: ANSWERS[s.id])
    metrics = BEAF().score(lines).metrics
    for name, percent in OFFICIAL["beaf"]["percent"].items():
        assert metrics[name] * 100 == pytest.approx(percent)
    assert sum(metrics[name] for name in ("TU", "IG", "SBp", "SBn")) == pytest.approx(1)


def test_one_answer_for_all_understands_nothing():
    lines = lines_of(BEAF(), samples_of(BEAF(), ROWS), lambda s: str(s.label))
    best = BEAF().score(lines).metrics
    assert (best["TU"], best["ID"], best["F1_TUID"]) == (1, 0, 1)
    found = fixed_answers(BEAF(), lines)
    assert found["always yes"]["SBp"] == found["always no"]["SBn"] == found[COPIED]["SBp"] == 1
    assert all(block["TU"] == block["ID"] == block["F1_TUID"] == 0 for block in found.values())


@pytest.mark.parametrize(
    ("answer", "parsed"),
    [("No, yesterday.", "yes"), ("I know", "no"), ("NO", "no"), ("A cup.", "other"), ("", "other")],
)
def test_either_word_counts_anywhere(answer, parsed):
    assert BEAF().judge(Sample(1, "?", "a.jpg", "no"), answer)["parsed"] == parsed


def test_the_release_is_read_and_its_faults_are_named(tmp_path):
    released = [dict(x) for x in OFFICIAL["beaf"]["questions"]]
    world.write_lines(tmp_path / "beaf" / "beaf_qna.json", released)
    for n, name in enumerate({x["image"] for x in released}):
        world.picture(tmp_path / "beaf" / "images" / name, n)
    (unit,) = load_units([tmp_path], world.select("beaf"))
    assert len(unit.samples) == len(released)
    assert unit.samples[0].group == "COCO_val2014_000000000000"
    assert unit.samples[0].group_size == 15
    for field, value, told in (
        ("orig_img", "yes", "orig_img is 'yes'; it must be true or false"),
        ("image", "odd.png", "'odd.png' is called an edit"),
    ):
        broken = [*released[:-1], {**released[-1], field: value}]
        world.write_lines(tmp_path / "beaf" / "beaf_qna.json", broken)
        with pytest.raises(InvalidData, match=rf"beaf_qna\.json:{len(released)}: {told}"):
            load_units([tmp_path], world.select("beaf"))


def test_a_question_about_an_edit_alone_is_refused():
    samples = samples_of(BEAF(), ROWS[5:15])  # without the original
    with pytest.raises(InvalidData, match=r"id 5: its question is not asked about the original of"):
        BEAF().score(lines_of(BEAF(), samples, lambda s: "yes"))
