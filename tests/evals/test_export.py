import csv
import json

import pytest

from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.evals.report import render
from halludecode.evals.run import run_eval
from tests.evals import world


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    report = run_eval(
        world.FakeEngine(model_id="org/model"),
        tasks=["pope", "chair", "mme"],
        strategies=["greedy", "vcd"],
        data=[world.folder(root / "set")],
        prompt_preset="opera",
        progress=False,
        output=root / "run",
    )
    return root / "run", report


def value(report, task, split, strategy, metric):
    (entry,) = (
        e
        for e in report.results["runs"]
        if (e["task"], e["split"], e["strategy"]) == (task, split, strategy)
    )
    return entry["metrics"][metric]["value"]


def test_lmms_eval_files_hold_the_same_numbers(made, tmp_path):
    run, report = made
    render([run], "lmms-eval", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["org_model__greedy", "org_model__vcd"]
    (path,) = (tmp_path / "org_model__vcd").glob("*_results.json")
    results = json.loads(path.read_text())["results"]
    assert set(results) == {"pope", "pope_random", "pope_adv", "coco_cap_chair", "mme"}
    name = "vcd(alpha=1.0)"
    for task, metric, ours in (
        ("pope_adv", "pope_f1_score,none", ("pope", "adversarial", name, "f1")),
        ("pope", "pope_accuracy,none", ("pope", "mean", name, "accuracy")),
        ("coco_cap_chair", "coco_cap_chair_i,none", ("chair", None, name, "chair_i")),
        ("mme", "mme_perception_score,none", ("mme", None, name, "perception")),
    ):
        assert results[task][metric] == value(report, *ours)


def test_lmms_eval_samples_are_complete(made, tmp_path):
    run, _ = made
    render([run], "lmms-eval", tmp_path)
    (path,) = (tmp_path / "org_model__greedy").glob("*_samples_pope_random.jsonl")
    samples = world.lines(path)
    assert [s["doc_id"] for s in samples] == list(range(8))
    mine = [
        x
        for x in world.lines(run / "samples.jsonl")
        if (x["split"], x["strategy"]) == ("random", "greedy")
    ]
    assert [s["filtered_resps"] for s in samples] == [[x["answer"]] for x in mine]
    assert [s["target"] for s in samples] == [x["label"] for x in mine]


def test_vlmevalkit_tables_hold_every_answer(made, tmp_path):
    run, _ = made
    render([run], "vlmevalkit", tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        f"org_model__{s}_{d}.tsv" for s in ("greedy", "vcd") for d in ("POPE", "MME")
    }
    with (tmp_path / "org_model__vcd_POPE.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab"))
    assert [int(r["index"]) for r in rows] == list(range(16))
    assert {r["category"] for r in rows} == {"random", "adversarial"}
    assert {r["answer"] for r in rows} == {"Yes", "No"}
    answers = [
        x["answer"]
        for x in world.lines(run / "samples.jsonl")
        if x["task"] == "pope" and x["strategy"].startswith("vcd") and x["split"] == "random"
    ]
    assert [r["prediction"] for r in rows if r["category"] == "random"] == answers


def test_exports_need_a_folder_and_answers_they_know(made, tmp_path):
    with pytest.raises(InvalidParameter, match="give --output FOLDER"):
        render([made[0]], "lmms-eval")
    run_eval(
        world.FakeEngine(),
        tasks=["chair"],
        strategies=["greedy"],
        data=[world.folder(tmp_path / "set")],
        prompt_preset="opera",
        progress=False,
        output=tmp_path / "run",
    )
    with pytest.raises(InvalidData, match="captions only"):
        render([tmp_path / "run"], "vlmevalkit", tmp_path / "out")
