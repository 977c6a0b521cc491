"""The control of paired benchmarks: always yes, always no, the first answer copied."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from halludecode.evals.benchmarks.fixed_answers import COPIED, fixed_answers
from halludecode.evals.benchmarks.hallusionbench import HallusionBench
from halludecode.evals.benchmarks.mme import MME
from halludecode.evals.benchmarks.naturalbench import NaturalBench
from halludecode.evals.benchmarks.pope import POPE
from halludecode.evals.benchmarks.popev2 import POPEv2
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample
from halludecode.evals.report.render import render
from halludecode.evals.results.compare import compare_runs
from halludecode.evals.runner.run import run_eval
from halludecode.evals.runner.score_file import score_predictions
from halludecode.evals.statistics.intervals import compare
from tests.support import eval_world as world

HALLUSION = [
    {**row, "visual_input": "1", "sample_note": "", "gt_answer_details": ""}
    for row in HallusionBench.examples[:2]
]


def popev2(*pairs):
    """Lines of pairs of answers, about the original and about its edit."""
    lines = []
    for n, answers in enumerate(pairs):
        for edited, answer in zip((False, True), answers, strict=True):
            label = "no" if edited else "yes"
            fields = {"image_id": n, "target_object": "cup", "question": "?", "answer": label}
            (sample,) = POPEv2().samples(Record("here", {**fields, "image": f"{n}{edited}"}))
            told = {"id": sample.id, "image": sample.image, "prompt": "?"}
            marked = {"group": sample.group, "group_size": 2}
            lines.append({**told, **POPEv2().answered(sample, answer), **marked})
    return lines


def test_constant_answers_get_half_and_no_pair():
    found = fixed_answers(POPEv2(), popev2(("Yes", "No"), ("Yes", "No")))
    assert list(found) == ["always yes", "always no", COPIED]
    for block in found.values():
        assert (block["accuracy"], block["pair_accuracy"]) == (0.5, 0)
    assert [found[f"always {word}"]["yes_ratio"] for word in ("yes", "no")] == [1, 0]


@given(st.lists(st.tuples(*[st.sampled_from(["Yes", "No", "?"])] * 2), min_size=1, max_size=8))
def test_a_copied_answer_tells_no_pair_apart(pairs):
    lines = popev2(*pairs)
    found = fixed_answers(POPEv2(), lines)
    assert found[COPIED]["pair_accuracy"] == 0
    assert found[COPIED]["original_accuracy"] == POPEv2().score(lines).metrics["original_accuracy"]


def test_every_question_has_its_own_choices():
    lines = []
    for kind, words in (("yes_no", ("Yes", "No")), ("multiple_choice", ("A", "B"))):
        cells = {"index": kind, "question_type": kind, "question_0": "0?", "question_1": "1?"}
        cells |= {"image_0": "0", "image_1": "1"}
        cells |= {f"image_{i}_question_{q}": words[(q + i) % 2] for q in (0, 1) for i in (0, 1)}
        for sample in NaturalBench().samples(Record("here", cells)):
            told = {"id": sample.id, "image": sample.image, "prompt": sample.question}
            made = NaturalBench().answered(sample, str(sample.label))
            lines.append({**told, **made, "group": kind, "group_size": 4})
    found = fixed_answers(NaturalBench(), lines)
    assert list(found) == ["always yes or A", "always no or B", COPIED]
    assert all(block["Acc"] == 0.5 for block in found.values())
    assert all(block["Q_Acc"] == block["G_Acc"] == 0 for block in found.values())


def test_mme_and_hallusionbench_have_pairs():
    lines = []
    for label in ("yes", "no"):
        sample = Sample(f"count/a.png#{1 + (label == 'no')}", "?", "count/a.png", label)
        told = {"id": sample.id, "image": sample.image, "prompt": "?"}
        lines.append({**told, **MME().answered(sample, label)})
    assert fixed_answers(MME(), lines)["always yes"]["total"] == 50  # of 200 of a subtask
    rows = [dict(row, question_id="0") for row in HallusionBench.examples[:2]]
    lines = []
    for row in rows:
        (sample,) = HallusionBench().samples(Record("here", row))
        (sample,) = HallusionBench().finish([sample])
        told = {"id": sample.id, "image": sample.image, "prompt": "?"}
        lines.append({**told, **HallusionBench().answered(sample, str(sample.label))})
    found = fixed_answers(HallusionBench(), lines)
    assert {name: block["qAcc"] for name, block in found.items()} == dict.fromkeys(found, 0.0)


def test_benchmarks_without_pairs_have_none():
    sample = Sample(1, "?", "a.png", "yes")
    line = {"id": 1, "image": "a.png", "prompt": "?", **POPE().answered(sample, "Yes")}
    assert fixed_answers(POPE(), [line]) == {}


def test_items_of_a_pair_are_tested_together():
    """Eight pairs of which both halves turn right: eight facts, not sixteen."""
    a = POPEv2().score(popev2(*[("Yes", "No")] * 8, *[("No", "Yes")] * 8))
    b = POPEv2().score(popev2(*[("No", "Yes")] * 16))
    gaps = compare(a, b)
    assert gaps["accuracy"].test == "bootstrap"
    assert gaps["pair_accuracy"].discordant == (8, 0)
    wide, narrow = gaps["accuracy"], 0.5 * (1 / 16) ** 0.5  # one draw of 16 pairs, of share 1/2
    assert wide.high - wide.low == pytest.approx(2 * 1.96 * narrow, rel=0.1)


def test_they_are_told_with_tables_comparisons_and_scores(tmp_path):
    root, run = tmp_path / "set" / "popev2", tmp_path / "run"
    rows = [
        {"image_id": n, "target_object": "cup", "query": f"Cup {n}?", "label": label}
        | {"image_name": f"{label}{n}.png"}
        for n in range(3)
        for label in ("No", "Yes")
    ]
    world.write_lines(root / "annotations.json", rows)
    for number, row in enumerate(rows):
        world.picture(root / row["image_name"], number)
    options = {"tasks": ["popev2"], "strategies": ["greedy", "vcd"], "progress": False}
    report = run_eval(world.FakeEngine(), output=run, data=[tmp_path / "set"], **options)
    for entry in report.results["runs"]:
        assert entry["fixed_answers"]["always yes"]["accuracy"] == 0.5
    told = render([run], "md", None)
    assert "popev2 on set, answers that are the same within a pair: always yes: both right" in told
    assert "greedy's first answer copied: both right 0.0" in told
    compared = compare_runs([str(run)])
    assert set(compared.differences[0]["controls"]["fixed"]) == {"strategy", "baseline"}
    table = io.StringIO()
    Console(width=400, file=table).print(compared.table())
    for name in ("always no", "vcd's first answer copied", "greedy's first answer copied"):
        assert f"{name}: both right 0.0" in table.getvalue()
    short = io.StringIO()
    Console(width=400, file=short).print(compared.summary())
    assert "popev2 on set, answers that are the same within a pair: always yes" in short.getvalue()
    answers = [
        {"id": sample["id"], "answer": "Yes"} for sample in world.lines(run / "samples.jsonl")
    ]
    world.write_lines(tmp_path / "answers.jsonl", answers[: len(rows)])
    scored = score_predictions("popev2", tmp_path / "answers.jsonl", root / "annotations.json")
    assert scored["fixed_answers"]["always no"]["yes_ratio"] == 0
    (sentence,) = (told for told in scored["told"] if "within a pair" in told)
    assert sentence.startswith("popev2 on answers.jsonl, answers that are the same within a pair: ")
    assert "always no: both right 0.0" in sentence and "the file's first answer" in sentence


def test_scores_of_benchmarks_with_rules_of_their_own_tell_them_too(tmp_path):
    world.write_lines(tmp_path / "HallusionBench.json", HALLUSION)
    answers = [{"id": f"VD_map_0_{n}_0", "answer": "Yes"} for n in (0, 1)]
    world.write_lines(tmp_path / "answers.jsonl", answers)
    files = (tmp_path / "answers.jsonl", tmp_path / "HallusionBench.json")
    made = score_predictions("hallusionbench", *files)
    assert made["fixed_answers"]["always yes"]["aAcc"] == made["metrics"]["aAcc"]["value"] == 0.5
    (told,) = (line for line in made["told"] if "always no" in line)
    assert re.search(
        r": always yes, always no, [^:;]+ first answer copied: aAcc 50.0, qAcc 0.0", told
    )
    assert "fixed_answers" not in score_predictions("hallusionbench", *files, parser="vlmevalkit")
