"""`eval --engine vllm`: the results of the HF engine, resumed runs, failed samples."""

from __future__ import annotations

import json
import shutil

import pytest

import halludecode as hd
from halludecode.cli.app import main
from halludecode.engines.vllm.engine import VLLMEngine
from halludecode.evals.runner import batching as batches
from halludecode.evals.runner.run import run_eval
from halludecode.testbed import write_dataset
from tests.support import eval_world as world
from tests.support.vllm import ACTIVE, scheduler_of

STRATEGIES = ("greedy", "vcd", ACTIVE["var"])
FREE = ("seconds", "tokens_per_second", "engine")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "set", "iid", 3)


@pytest.fixture
def ours(vllm_engine):
    return vllm_engine("testbed")


def run(engine, source, output, **more):
    options = {"tasks": ["pope", "chair", "mme"], "strategies": STRATEGIES, "max_new_tokens": 12}
    options |= {"data": [source], "prompt_preset": "testbed", "progress": False, **more}
    return run_eval(engine, output=output, **options)


def answers(folder):
    """Lines by key, without times; margins apart."""
    found, margins = {}, {}
    for line in world.lines(folder / "samples.jsonl"):
        key = tuple(line[name] for name in ("task", "split", "strategy", "id"))
        margins[key] = line["margin"]
        found[key] = {k: v for k, v in line.items() if k not in ("ms", "margin")}
    return found, margins


def same(mine, theirs) -> None:
    (a, x), (b, y) = answers(mine), answers(theirs)
    assert a == b
    for key, margin in y.items():
        assert x[key] == (None if margin is None else pytest.approx(margin, abs=1e-3)), key


def scored(report):
    return [{k: v for k, v in e.items() if k not in FREE} for e in report.results["runs"]]


@pytest.fixture(scope="module")
def wanted(testbed, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "run"
    return folder, run(testbed, source, folder)


def test_results_are_those_of_the_hf_engine(ours, source, tmp_path, wanted):
    report = run(ours, source, tmp_path / "run")
    same(tmp_path / "run", wanted[0])
    assert scored(report) == scored(wanted[1])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    theirs = json.loads((wanted[0] / "run.json").read_text())
    assert record["engine"] == "vllm" and "vllm" in record["versions"]
    for name in ("dtype", "strategies", "data", "prompts", "sampling"):
        assert record[name] == theirs[name]


def test_sampled_results_are_those_of_the_hf_engine(ours, testbed, source, tmp_path):
    more = {"temperature": 1.0, "seed": 5, "strategies": ["greedy", "vcd"], "tasks": ["pope"]}
    a = run(ours, source, tmp_path / "vllm", **more)
    b = run(testbed, source, tmp_path / "hf", **more)
    same(tmp_path / "vllm", tmp_path / "hf")
    assert scored(a) == scored(b)
    assert "apc_only(beta=0.1)" in {entry["strategy"] for entry in a.results["runs"]}


def test_an_interrupted_run_resumes(ours, source, tmp_path, wanted, monkeypatch):
    monkeypatch.setitem(batches.BATCH, "vllm", 8)
    taken, stock = [], VLLMEngine.generate_each

    def generate_each(self, requests, *args, **kwargs):
        taken.append(len(requests))
        if len(taken) == 4:
            raise KeyboardInterrupt
        return stock(self, requests, *args, **kwargs)

    monkeypatch.setattr(VLLMEngine, "generate_each", generate_each)
    with pytest.raises(KeyboardInterrupt):
        run(ours, source, tmp_path / "run")
    before = len(answers(tmp_path / "run")[0])
    assert 0 < before < len(answers(wanted[0])[0])
    report = run(ours, source, tmp_path / "run")
    same(tmp_path / "run", wanted[0])
    assert scored(report) == scored(wanted[1])


def test_samples_that_fail_are_listed_and_the_rest_is_scored(
    ours, source, tmp_path, wanted, monkeypatch, capsys
):
    broken = tmp_path / "set"
    shutil.copytree(source, broken)
    picture = sorted((broken / "images").iterdir())[0]
    picture.write_bytes(picture.read_bytes()[:200])
    questions = broken / "pope" / "random.jsonl"
    lines = world.lines(questions)
    long = next(line for line in lines if line["image"] != picture.name)
    long["text"] = "Why? " * 1200  # longer than the context
    world.write_lines(questions, lines)
    monkeypatch.setattr(hd, "load", lambda model, engine, **given: ours)
    words = [
        "eval",
        "--model",
        "testbed",
        "--engine",
        "vllm",
        "--tasks",
        "pope",
        "--strategy",
        "vcd",
    ]
    words += ["--data", str(broken), "--output", str(tmp_path / "run")]
    assert main(words) == 1
    assert "errors.jsonl" in capsys.readouterr().err
    errors = world.lines(tmp_path / "run" / "errors.jsonl")
    by_picture = [line for line in errors if line["image"] == picture.name]
    assert {line["kind"] for line in errors} == {"InvalidRequest"}
    assert all("cannot be decoded" in line["error"] for line in by_picture)
    (other,) = [line for line in errors if line["image"] != picture.name]
    assert "the model's context is 1024" in other["error"]
    scheduler = scheduler_of(ours)
    assert not scheduler.requests and not scheduler.groups


@pytest.mark.filterwarnings("ignore")  # vLLM's own
def test_a_strategy_that_is_not_served_is_refused_before_any_answer(
    ours, source, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(hd, "load", lambda model, engine, **given: ours)
    words = ["eval", "--model", "testbed", "--engine", "vllm", "--tasks", "pope"]
    words += ["--data", str(source), "--output", str(tmp_path / "run")]
    assert main([*words, "--strategy", "greedy", "--strategy", "opera"]) == 2
    assert "opera needs 'beam search'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
