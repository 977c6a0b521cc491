"""CRPE: the official counts of questions asked four times, its reading, its two parts."""

from __future__ import annotations

import pytest

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.answer_file import answered
from halludecode.evals.benchmarks.crpe import CRPE
from halludecode.evals.benchmarks.fixed_answers import fixed_answers
from halludecode.evals.data.samples import Sample
from halludecode.evals.load import load_units
from tests.support import eval_world as world
from tests.support.answered import OFFICIAL, lines_of, samples_of

KEYS = ("question_id", "category", "correct_option", "image")
ROWS = [
    {**dict(zip(KEYS, row, strict=False)), "text": "Which?\nA. a\nB. b\nC. c\nD. d"}
    for row in OFFICIAL["crpe"]["rows"]
]
ANSWERS = {row[0]: row[-1] for row in OFFICIAL["crpe"]["rows"]}


def test_scores_equal_the_official_scripts():
    lines = lines_of(CRPE(), samples_of(CRPE(), ROWS), lambda s: ANSWERS[s.id])
    metrics = CRPE().score(lines).metrics
    for name, percent in OFFICIAL["crpe"]["acc_percent_2_digits"].items():
        assert round(metrics[name] * 100, 2) == percent


@pytest.mark.parametrize(
    ("subject", "predicate", "object_", "overall"),
    [(45.66, 38.19, 31.60, 38.48), (57.44, 54.24, 55.21, 55.63), (69.21, 58.95, 65.34, 64.50)],
)
def test_overall_is_the_mean_that_the_authors_print(subject, predicate, object_, overall):
    """The rows of Qwen-VL, LLaVA-1.5 and ASMv2 in the README of OpenGVLab/all-seeing."""
    assert (subject + predicate + object_) / 3 == pytest.approx(overall, abs=0.005)


def test_overall_is_the_mean_over_categories():
    lines = lines_of(CRPE(), samples_of(CRPE(), ROWS), lambda s: ANSWERS[s.id])
    metrics = CRPE().score(lines).metrics
    parts = [metrics[name] for name in ("subject", "predicate", "object")]
    assert metrics["overall"] == pytest.approx(sum(parts) / 3)


def test_one_letter_for_all_gets_no_question():
    lines = lines_of(CRPE(), samples_of(CRPE(), ROWS), lambda s: str(s.label))
    assert CRPE().score(lines).metrics["overall"] == 1
    found = fixed_answers(CRPE(), lines)
    assert [block["overall"] for block in found.values()] == [0] * 5
    assert [block["accuracy"] for block in found.values()] == [0.25] * 5
    assert found["always A"]["first_option"] == 1
    # All recalls are 0 but one: a standard deviation of sqrt(3) / 4.
    assert found["always A"]["order_bias"] == pytest.approx(3**0.5 / 4)


@pytest.mark.parametrize(
    ("answer", "official", "letter"),
    [
        ("B", "B", "B"),
        ("B.", "other", "B"),
        ("(B) dog", "other", "B"),
        ("B\nbecause", "other", "B"),
        ("A dog", "other", "A"),  # as VLMEvalKit reads it too
        ("Bus", "other", "other"),
        ("b", "other", "other"),
        ("", "other", "other"),
    ],
)
def test_answers_are_read_as_told(answer, official, letter):
    sample = Sample(1, "?", "a.jpg", "B")
    assert CRPE().judge(sample, answer)["parsed"] == official
    assert CRPE(rule="letter").judge(sample, answer)["parsed"] == letter


def test_the_parts_have_files_of_their_own(tmp_path):
    exist = [{**row, "category": "exist"} for row in ROWS[:4]]
    world.write_lines(tmp_path / "crpe_relation.jsonl", ROWS)
    world.write_lines(tmp_path / "crpe_exist.jsonl", exist)
    for n, row in enumerate(ROWS):
        world.picture(tmp_path / "images" / row["image"], n)
    (unit,) = load_units([tmp_path], world.select("crpe"))
    assert len(unit.samples) == len(ROWS)
    assert [s.group for s in unit.samples[:5]] == ["subject 0"] * 4 + ["subject 1"]
    (unit,) = load_units([tmp_path], world.select("crpe(part=exist)"))
    assert [s.group for s in unit.samples] == ["exist 0"] * 4
    world.write_lines(tmp_path / "crpe_exist.jsonl", [{**exist[0], "category": "colour"}])
    with pytest.raises(InvalidData, match=r"crpe_exist\.jsonl:1: category 'colour' is none of"):
        load_units([tmp_path], world.select("crpe(part=exist)"))


def test_the_hubs_files_are_those_of_the_pinned_commit(tmp_path, monkeypatch):
    """The data set is no table: its files are fetched and read as a folder."""
    asked = []
    folder = tmp_path / ("c" * 40)
    world.write_lines(folder / "crpe_relation.jsonl", ROWS)
    for n, row in enumerate(ROWS):
        world.picture(folder / row["image"], n)

    def snapshot(name, **options):
        asked.append((name, options["repo_type"], options["revision"]))
        return str(folder)

    huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    name, _, commit = CRPE.hub.partition("@")
    for source, revision in ((name, commit), (f"{name}@main", "main")):
        (unit,) = load_units([source], world.select("crpe"))
        assert asked.pop() == (name, "dataset", revision)
        assert (unit.data, unit.revision) == (name, "c" * 40)
        assert len(unit.samples) == len(ROWS)


@pytest.mark.parametrize(
    ("answer", "as_written", "final"),
    [
        ("B", "B", "B"),
        ("**B**", "other", "B"),
        ("<think>A, or C?</think>\nThe answer is (B) a dog.", "other", "B"),
        (r"\boxed{B}", "other", "B"),
        ("<answer>B. a dog</answer>", "other", "B"),
        ("Option B: a dog", "other", "B"),
        ("A dog, so B", "other", "other"),
        ("Both of them", "other", "other"),
        ("<think>It is B", "other", "other"),
    ],
)
def test_letters_are_read_as_written_or_finally(answer, as_written, final):
    sample = Sample(1, "?", "a.jpg", "B")
    for rule, letter in (("as_written", as_written), ("final", final)):
        assert answered(CRPE(), sample, answer, rule)["parsed"] == letter
