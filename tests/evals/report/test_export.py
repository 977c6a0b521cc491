import csv
import json
import re

import pytest

from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.evals.report.render import render
from halludecode.evals.runner.run import run_eval
from tests.support import eval_world as world


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
    for task, metric, ours, scale in (
        ("pope_adv", "pope_f1_score,none", ("pope", "adversarial", name, "f1"), 1),
        ("pope", "pope_accuracy,none", ("pope", "mean", name, "accuracy"), 1),
        ("coco_cap_chair", "coco_cap_chair_i,none", ("chair", None, name, "chair_i"), 100),
        ("coco_cap_chair", "coco_cap_recall,none", ("chair", None, name, "recall"), 100),
        ("mme", "mme_perception_score,none", ("mme", None, name, "perception"), 1),
    ):
        assert results[task][metric] == pytest.approx(value(report, *ours) * scale)


def test_lmms_eval_results_have_what_its_table_prints(made, tmp_path):
    run, _ = made
    render([run], "lmms-eval", tmp_path)
    (path,) = (tmp_path / "org_model__vcd").glob("*_results.json")
    assert re.fullmatch(r"\d{8}_\d{6}_results\.json", path.name)
    document = json.loads(path.read_text())
    tasks = set(document["results"])
    for part in ("versions", "n-shot", "higher_is_better", "n-samples"):
        assert set(document[part]) == tasks
    assert document["higher_is_better"]["coco_cap_chair"]["coco_cap_chair_i"] is False
    for task, metrics in document["results"].items():
        names = {name.removesuffix(",none") for name in metrics} - {"alias"}
        assert names == set(document["higher_is_better"][task])


def test_pope_over_all_questions_is_pooled_as_lmms_eval_does(made, tmp_path):
    run, _ = made
    render([run], "lmms-eval", tmp_path)
    folder = tmp_path / "org_model__vcd"
    (path,) = folder.glob("*_results.json")
    found = json.loads(path.read_text())["results"]["pope"]
    samples = [s for f in folder.glob("*_samples_pope_*.jsonl") for s in world.lines(f)]
    kept = [s["pope_f1_score"] for s in samples]
    hits = sum(k["prediction"] == k["ground_truth"] == "yes" for k in kept)
    wrong = sum(k["prediction"] == "yes" != k["ground_truth"] for k in kept)
    missed = sum(k["prediction"] == "no" and k["ground_truth"] == "yes" for k in kept)
    precision, recall = hits / (hits + wrong), hits / (hits + missed)
    f1 = 2 * precision * recall / (precision + recall)
    assert found["pope_f1_score,none"] == pytest.approx(f1)
    accuracy = sum(s["pope_accuracy"]["score"] for s in samples) / len(samples)
    assert found["pope_accuracy,none"] == pytest.approx(accuracy)


def test_lmms_eval_can_count_captions_and_mme_pairs_again(made, tmp_path):
    run, _ = made
    render([run], "lmms-eval", tmp_path)
    folder = tmp_path / "org_model__greedy"
    (path,) = folder.glob("*_results.json")
    found = json.loads(path.read_text())["results"]
    (captions,) = folder.glob("*_samples_coco_cap_chair.jsonl")
    kept = [s["coco_cap_chair_i"] for s in world.lines(captions)]
    said = [(word, k["answer"]) for k in kept for word in k["pred"]]
    share = 100 * sum(word not in truth for word, truth in said) / len(said)
    assert found["coco_cap_chair"]["coco_cap_chair_i,none"] == pytest.approx(share)
    (asked,) = folder.glob("*_samples_mme.jsonl")
    pairs = {}
    for sample in world.lines(asked):
        k = sample["mme_perception_score"]
        pairs.setdefault(k["category"], {}).setdefault(k["question_id"], []).append(k["score"])
    total = 0
    for questions in pairs.values():
        assert all(len(scores) == 2 for scores in questions.values())
        both = [50 * sum(s) + 100 * (sum(s) == 2) for s in questions.values()]
        total += sum(both) / len(both)
    assert found["mme"]["mme_perception_score,none"] == pytest.approx(total)


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
