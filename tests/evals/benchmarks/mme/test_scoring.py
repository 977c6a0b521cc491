"""MME: parsing, scores and layouts against the official tool's results."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.mme import scoring as mme
from tests.support.published import VECTORS, public

MME = VECTORS["mme"]
WORDS = {"Yes": "yes", "No": "no", "Unknown": "other"}


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """The 14-task mini set written in the official results layout and read back."""
    folder = tmp_path_factory.mktemp("mme")
    for task, rows in MME["tasks"].items():
        lines = ["\t".join(row) + "\n" for row in rows]
        (folder / f"{task}.txt").write_text("".join(lines), encoding="utf-8")
    return mme.load_results(folder)


def questions(count, subtask="existence"):
    return [
        mme.MmeQuestion(
            f"{subtask}/{i // 2}.jpg#{i % 2 + 1}",
            subtask,
            f"{i // 2}.jpg",
            "Is it? Please answer yes or no.",
            ("yes", "no")[i % 2],
        )
        for i in range(count)
    ]


# ---------------------------------------------------------------- parsing


@pytest.mark.parametrize("rule", ["official", "lmms_eval", "vlmevalkit"])
@pytest.mark.parametrize("case", MME["parse_only"], ids=lambda c: c["answer"][:20] or "empty")
def test_rule_reads_an_answer_as_its_scorer_does(case, rule):
    wanted = case[rule]
    assert mme.parse_mme_answer(case["answer"], rule) == WORDS.get(wanted, wanted)


def test_unknown_rule_names_the_known_ones():
    with pytest.raises(InvalidData, match=r"'opera' is unknown for MME; the known ones are offic"):
        mme.parse_mme_answer("Yes", "opera")


@given(st.text(max_size=30), st.sampled_from(sorted(mme.MME_RULES)))
def test_every_rule_reads_every_text(answer, rule):
    assert mme.parse_mme_answer(answer, rule) in ("yes", "no", "other")


# ---------------------------------------------------------------- scores


def test_official_scores_of_the_mini_set(mini):
    result = mme.score(*mini)
    official = MME["expected"]["official"]
    for task, value in official["tasks"].items():
        assert result.metrics[f"{task}.score"] == pytest.approx(value, abs=1e-9), task
    for task, detail in MME["expected"]["official_detail"].items():
        assert result.metrics[f"{task}.acc"] == pytest.approx(detail["acc"], abs=1e-9)
        assert result.metrics[f"{task}.acc_plus"] == pytest.approx(detail["acc_plus"], abs=1e-9)
        parsed = [o["parsed"] for o in result.outcomes.values() if o["subtask"] == task]
        assert parsed == detail["parsed"], task
    assert result.metrics["perception"] == pytest.approx(official["perception"], abs=1e-9)
    assert result.metrics["cognition"] == pytest.approx(official["cognition"], abs=1e-9)
    assert result.metrics["total"] == pytest.approx(official["perception"] + official["cognition"])
    subset = MME["expected"]["hallucination_subset_total"]
    assert result.metrics["hallucination_subset"] == pytest.approx(subset, abs=1e-9)
    others = sum(detail["other_num"] for detail in MME["expected"]["official_detail"].values())
    assert result.unread == others
    assert result.unparsed == 30  # four say a word too late for the official rule


def test_lmms_eval_scores_of_the_mini_set(mini):
    result = mme.score(*mini, rule="lmms_eval")
    for group in ("perception", "cognition"):
        wanted = MME["expected"]["lmms_eval"][group]
        assert result.metrics[group] == pytest.approx(wanted, abs=1e-9)


def test_vlmevalkit_scores_of_the_mini_set(mini):
    result = mme.score(*mini, rule="vlmevalkit")
    wanted = dict(MME["expected"]["vlmevalkit"]["scores"])
    assert result.metrics["perception"] == pytest.approx(wanted.pop("perception"), abs=1e-9)
    assert result.metrics["cognition"] == pytest.approx(wanted.pop("reasoning"), abs=1e-9)
    for task, value in wanted.items():
        assert result.metrics[f"{task}.score"] == pytest.approx(value, abs=1e-9), task


def test_lavin_sample_gives_the_published_scores():
    result = mme.score(*mme.load_results(public("mme/lavin_sample")))
    official = VECTORS["mme"]["lavin_sample"]["official"]
    assert result.metrics["perception"] == pytest.approx(official["perception"], abs=1e-9)
    assert result.metrics["cognition"] == pytest.approx(official["cognition"], abs=1e-9)
    assert round(result.metrics["perception"], 2) == 963.61
    assert round(result.metrics["cognition"], 2) == 249.64
    for task, value in official["tasks"].items():
        assert result.metrics[f"{task}.score"] == pytest.approx(value, abs=1e-9), task
    for task, detail in VECTORS["mme"]["lavin_sample"]["detail"].items():
        assert result.metrics[f"{task}.acc"] == pytest.approx(detail["acc"], abs=1e-9)
        assert result.metrics[f"{task}.acc_plus"] == pytest.approx(detail["acc_plus"], abs=1e-9)
    assert result.n == 2374


def test_vlmevalkit_cognition_of_the_lavin_sample():
    result = mme.score(*mme.load_results(public("mme/lavin_sample")), rule="vlmevalkit")
    assert round(result.metrics["cognition"], 2) == 248.93
    assert round(result.metrics["perception"], 2) == 963.61


def test_a_part_of_the_subtasks_is_scored_alone():
    asked = questions(4) + questions(2, "scene")
    answers = {q.id: q.label for q in asked} | {"existence/0.jpg#2": "yes"}
    result = mme.score(asked, answers)
    assert result.metrics["existence.acc"] == 0.75
    assert result.metrics["existence.acc_plus"] == 0.5
    assert result.metrics["existence.score"] == 125.0
    assert result.metrics["perception"] == 325.0
    assert result.metrics["hallucination_subset"] == 125.0
    assert result.metrics["cognition"] == 0.0
    assert result.metrics["total"] == 325.0
    assert result.notes["subtasks"] == ("existence", "scene")
    assert "count.acc" not in result.metrics


def test_subtasks_may_be_mixed_as_long_as_pairs_stand_together():
    one, two = questions(4), questions(4, "scene")
    mixed = one[:2] + two[:2] + one[2:] + two[2:]
    answers = {q.id: "yes" for q in mixed}
    assert mme.score(mixed, answers).metrics == mme.score(one + two, answers).metrics


def test_resampling_keeps_pictures_within_their_subtask(mini):
    result = mme.score(*mini)
    assert len(result.strata) == len(result.clusters) == len(set(result.clusters))
    assert all(c.startswith(s + "/") for c, s in zip(result.clusters, result.strata, strict=True))


@given(st.lists(st.sampled_from(["yes", "no", "?"]), min_size=2, max_size=24))
def test_doubling_every_picture_keeps_scores(said):
    asked = questions(len(said) // 2 * 2)
    answers = {q.id: a for q, a in zip(asked, said, strict=False)}
    copies = [
        mme.MmeQuestion(q.id.replace("/", "/copy-"), q.subtask, "copy-" + q.image, q.text, q.label)
        for q in asked
    ]
    twice = answers | {c.id: answers[q.id] for q, c in zip(asked, copies, strict=True)}
    once = mme.score(asked, answers).metrics
    assert mme.score(asked + copies, twice).metrics == pytest.approx(once)


def test_broken_pairs_are_refused():
    asked = questions(4)
    answers = {q.id: "yes" for q in asked}
    with pytest.raises(InvalidData, match="3 questions are no pairs"):
        mme.score(asked[:3], {q.id: "yes" for q in asked[:3]})
    crossed = [asked[0], asked[2], asked[1], asked[3]]
    with pytest.raises(InvalidData, match=r"the pair of 0\.jpg is broken by 1\.jpg"):
        mme.score(crossed, answers)
    with pytest.raises(InvalidData, match="1 of 4 predictions are missing"):
        mme.score(asked, {q.id: "yes" for q in asked[:3]})
    with pytest.raises(InvalidData, match="no questions"):
        mme.score([], {})


# ---------------------------------------------------------------- layouts


def test_question_folder_with_three_columns(tmp_path):
    for task in ("existence", "scene"):
        (tmp_path / task).mkdir()
        (tmp_path / task / "a.jpg").touch()
        (tmp_path / task / "q.txt").write_text(
            "a.jpg\tIs there a dog? Please answer yes or no.\tYes\r\n"
            "a.jpg\tIs there a cat? Please answer yes or no.\tNo\r\n"
        )
    asked = mme.load_questions(tmp_path)
    assert [q.id for q in asked] == [
        "existence/a.jpg#1",
        "existence/a.jpg#2",
        "scene/a.jpg#1",
        "scene/a.jpg#2",
    ]
    assert [q.label for q in asked] == ["yes", "no"] * 2
    assert asked[0].path == tmp_path / "existence" / "a.jpg"
    assert asked[1].where == f"{tmp_path / 'existence' / 'q.txt'}:2"


def test_question_folder_of_the_release(tmp_path):
    (tmp_path / "count").mkdir()
    (tmp_path / "count" / "000.jpg").touch()
    (tmp_path / "count" / "000.txt").write_text("Two?\tYes\nThree?\tNo\n")
    for part in ("images", "questions_answers_YN"):
        (tmp_path / "artwork" / part).mkdir(parents=True)
    (tmp_path / "artwork" / "images" / "7.png").touch()
    (tmp_path / "artwork" / "questions_answers_YN" / "7.txt").write_text("A?\tYes\nB?\tNo\n")
    asked = mme.load_questions(tmp_path)
    assert [q.id for q in asked] == [
        "count/000.jpg#1",
        "count/000.jpg#2",
        "artwork/7.png#1",
        "artwork/7.png#2",
    ]
    assert asked[2].path == tmp_path / "artwork" / "images" / "7.png"


def test_published_questions_pair_up():
    asked = mme.load_questions(public("mme/questions"))
    assert len(asked) == 2374
    result = mme.score(asked, {q.id: q.label for q in asked})
    assert result.metrics["perception"] == 2000.0
    assert result.metrics["cognition"] == 800.0
    assert result.metrics["hallucination_subset"] == 800.0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("existence.txt", "a.jpg\tQ\tYes\n", r"existence\.txt:1: 3 columns separated by tabs, ex"),
        ("existence.txt", "a\tQ\tYes\tyes\nb\tQ\tNo\tn\to", r"existence\.txt:2: 5 columns"),
        ("existence.txt", "a.jpg\tQ\tMaybe\tyes\n", r"existence\.txt:1: the truth is 'Maybe'"),
        ("jokes.txt", "a.jpg\tQ\tYes\tyes\n", r"'jokes' is not an MME subtask; the known ones"),
        ("readme.md", "hello", "holds no MME subtask"),
    ],
)
def test_bad_results_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidData, match=message):
        mme.load_results(tmp_path)


def test_a_file_is_no_folder(tmp_path):
    with pytest.raises(InvalidData, match="is not a folder"):
        mme.load_results(tmp_path / "absent")


def test_question_from_id():
    made = mme.MmeQuestion.from_id("count/dir/a#b.jpg#2", "Two?", "no")
    assert (made.subtask, made.image) == ("count", "dir/a#b.jpg")
    for wrong in ("jokes/a.jpg#1", "count/a.jpg", "count", "count/a.jpg#x"):
        with pytest.raises(InvalidData, match="is not an MME id"):
            mme.MmeQuestion.from_id(wrong, "?", "yes")


# ---------------------------------------------------------------- folders as people have them

PAIR = (
    "Is there a cup? Please answer yes or no.\tYes\nIs there a bed? Please answer yes or no.\tNo\n"
)


def test_a_picture_without_its_pair_is_refused_when_it_is_read(tmp_path):
    (tmp_path / "existence").mkdir()
    (tmp_path / "existence" / "p1.txt").write_text(PAIR.split("\n")[0] + "\n")
    (tmp_path / "existence" / "p2.txt").write_text(PAIR)
    with pytest.raises(InvalidData, match=r"p1\.txt:1: MME existence: p1 has 1 question, and a"):
        mme.load_questions(tmp_path)


def test_what_systems_and_releases_keep_beside_the_data_is_left_aside(tmp_path):
    root = tmp_path / "MME_Benchmark"
    nested = root / "landmark"
    for folder in (root / "existence", nested / "images", nested / "questions_answers_YN"):
        folder.mkdir(parents=True)
    (root / "readme.txt").write_text("See the paper.\n")
    (root / "existence" / "._p1.txt").write_bytes(b"\x00\xff")
    for text in (root / "existence" / "p1.txt", nested / "questions_answers_YN" / "p1.txt"):
        text.write_text(PAIR)
    for picture in (root / "existence" / "p1.JPG", nested / "images" / "p1.jpg"):
        picture.write_bytes(b"x")
    found = mme.load_questions(tmp_path)  # one folder down
    assert [(q.subtask, q.image) for q in found[::2]] == [
        ("existence", "p1.JPG"),
        ("landmark", "p1.jpg"),
    ]
    assert all(q.path is not None and q.path.is_file() for q in found)
    (root / "existance.txt").write_text("p1.jpg\tIs it?\tYes\n")
    with pytest.raises(InvalidData, match="'existance' is not an MME subtask"):
        mme.load_questions(tmp_path)


def test_a_data_folder_of_nested_subtasks_alone_is_found(tmp_path):
    from halludecode.evals.benchmarks.mme import MME as Benchmark

    inner = tmp_path / "mme" / "landmark" / "questions_answers_YN"
    inner.mkdir(parents=True)
    (inner / "p1.txt").write_text(PAIR)
    assert Benchmark().find(tmp_path) == {None: tmp_path / "mme"}
    (tmp_path / "notes").mkdir()
    assert Benchmark().find(tmp_path / "notes") == {}
