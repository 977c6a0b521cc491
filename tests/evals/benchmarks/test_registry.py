"""Which benchmarks are meant, and how a new one comes in."""

from __future__ import annotations

import json

import pytest

import halludecode as hd
from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.evals.benchmarks.base import Metric
from halludecode.evals.benchmarks.judged import JudgedBenchmark
from halludecode.evals.benchmarks.registry import BENCHMARKS, choose, standard, standard_of
from halludecode.evals.data.run_files import RUN_FACTS
from halludecode.evals.report.render import render
from halludecode.evals.results.compare import compare_runs
from halludecode.evals.runner.run import evaluate
from halludecode.evals.runner.run_folder import read_lines
from tests.support import eval_world as world


@pytest.fixture
def source(tmp_path):
    return world.folder(tmp_path / "set")


def never():
    raise AssertionError("the model was loaded")


never.model_id = "some/model"


# Names and parameters


@pytest.mark.parametrize(
    "tasks",
    [
        "pope,chair(family=pattern)",
        ["pope", "chair(family='pattern')"],
        ["pope", {"chair": {"family": "pattern"}}],
        {"pope": None, "chair": {"family": "pattern"}},
        [BENCHMARKS.get("pope")(), "chair(family=pattern)"],
        [BENCHMARKS.get("pope"), "chair(family=pattern)"],
    ],
)
def test_tasks_are_written_as_strategies_are(tasks):
    pope, chair = choose(tasks)
    assert (pope.name, pope.split) == ("pope", ())
    assert (chair.name, chair.family, chair.gt_family) == ("chair", "pattern", None)


def test_old_options_are_names_of_parameters():
    pope, chair = choose(["pope", "chair"], pope_splits=["random"], family="pattern")
    assert (pope.split, chair.family) == (("random",), "pattern")
    assert choose("pope(split=random)") == choose("pope", pope_splits=("random",))


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ("pop", {}, "Unknown task 'pop'. Did you mean 'pope'"),
        ("chair(famly=pattern)", {}, "chair has no parameter 'famly'. Did you mean 'family'"),
        ("pope,chair(family=pattern", {}, "brackets or quotes do not match"),
        ("pope,pope", {}, "name each task once"),
        ("pope(split=3)", {}, "split must be a tuple"),
        ("pope", {"family": "pattern"}, "family is for chair, which is not among the tasks"),
        ("pope", {"pope_split": "random"}, "no option 'pope_split'. Did you mean 'pope_splits'"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(tasks, options, message):
    with pytest.raises(InvalidParameter) as caught:
        choose(tasks, **options)
    assert message in str(caught.value)


def test_an_unknown_option_is_named_before_a_model_is_loaded(source):
    for option in ("pope_split", "limt", "seeed"):
        with pytest.raises(InvalidParameter, match=f"no option '{option}'. Did you mean"):
            evaluate(never, tasks=["pope"], data=[source], **{option: 1})
    with pytest.raises(InvalidParameter, match=r"split .*must be"):
        evaluate(never, tasks=["pope(split=1)"], data=[source])


def test_parameters_reach_the_run_and_its_record(source, tmp_path):
    tasks = ["pope(split=random)", "chair(family=pattern)"]
    report = evaluate(world.FakeEngine(), tasks, data=[source], out=tmp_path / "run")
    assert {(e["task"], e["split"]) for e in report.results["runs"]} == {
        ("pope", "random"),
        ("pope", "mean"),
        ("chair", None),
    }
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["chair"]["family"] == run["chair"]["gt_family"] == "pattern"
    assert "pope" not in run  # splits are scored apart


def test_without_a_name_the_standard_ones_are_run(source):
    assert standard() == ("pope", "chair", "mme")
    assert [standard_of(kind).name for kind in ("yes_no", "caption")] == ["pope", "chair"]
    report = evaluate(world.FakeEngine(), data=[source])
    assert list(dict.fromkeys(e["task"] for e in report.results["runs"])) == list(standard())


# New ones


@pytest.fixture
def cell():
    """Makes a benchmark as in a notebook cell; forgotten afterwards."""
    yield hd.benchmark
    for name in ("in_a_cell", "bare"):
        BENCHMARKS._entries.pop(name, None)


def test_a_class_in_a_notebook_cell_is_a_benchmark(cell, tmp_path):
    @cell("in_a_cell")
    class InACell(hd.YesNoBenchmark):
        """Of a cell."""

        title = "Cell"
        whole = True

        def group(self, sample):
            return str(sample.id // 2)

    rows = [
        {"id": n, "image": f"{n}.png", "question": f"Is it {n}?", "answer": "yes"} for n in range(4)
    ]
    for n in range(4):
        world.picture(tmp_path / "set" / "images" / f"{n}.png", n)
    world.write_lines(tmp_path / "set" / "in_a_cell.jsonl", rows)
    engine = world.FakeEngine(refuse="Is it 2?")
    report = evaluate(engine, "in_a_cell", data=[tmp_path / "set"], out=tmp_path / "run")
    (entry,) = report.results["runs"]
    assert (entry["n"], entry["failed"], entry["left_out"]) == (2, 1, 1)
    assert (report.failed, report.left_out) == (1, 1)
    kept = read_lines(tmp_path / "run" / "samples.jsonl")
    assert {(x["id"], x["group"], x["group_size"]) for x in kept} == {
        (0, "0", 2), (1, "0", 2), (3, "1", 2),
    }  # fmt: skip
    assert {b.name for b in hd.benchmarks()} >= {"in_a_cell", "pope"}


def test_a_benchmark_that_declares_nothing_is_still_shown(cell, tmp_path):
    """A whole run does not end in an error in its table."""

    @cell("bare")
    class Bare(hd.YesNoBenchmark):
        metrics = more_metrics = plots = ()

    world.picture(tmp_path / "set" / "images" / "1.png", 1)
    row = {"id": 1, "image": "1.png", "question": "Is it?", "answer": "yes"}
    world.write_lines(tmp_path / "set" / "bare.jsonl", [row])
    report = evaluate(
        world.FakeEngine(), "bare", ["greedy", "vcd"], data=[tmp_path / "set"], out=tmp_path / "run"
    )
    assert report.results["runs"][0]["metrics"]["accuracy"]
    report.table()
    compare_runs([str(tmp_path / "run")]).table()


WORDS = "parameter 'words' has the name of something that Bare inherits and would replace"


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("bare", {"jugde": lambda self, sample, answer: {}}, "Bare.jugde is nothing that a Bench"),
        ("bare", {"metrcs": ()}, "Did you mean 'metrics'"),
        ("bare", {"k": 3, "__annotations__": {"k": int}}, "k is no parameter yet; write k: TYPE"),
        ("bare", {"judge": lambda self, sample: {}}, "as (self, sample, answer)"),
        ("bare", {"load": lambda self, path: []}, "as (self, path, limit=, images=)"),
        ("bare", {"words": hd.param(1, "How many."), "__annotations__": {"words": int}}, WORDS),
        ("bare", {"__annotations__": {"words": "int"}}, WORDS),
        ("pope", {}, "task 'pope' is already defined in "),
        ("seed", {}, "task name 'seed' is a word of run.json"),
        ("Bare", {}, "must be lower-case"),
    ],
)
def test_a_class_that_cannot_be_meant_is_refused_and_not_registered(cell, name, body, message):
    made = type("Bare", (hd.YesNoBenchmark,), {"__doc__": "Bare.", **body})
    with pytest.raises(InvalidParameter) as caught:
        cell(name)(made)
    assert message in str(caught.value)
    assert "bare" not in BENCHMARKS.names()


def test_a_method_in_place_of_an_inherited_parameter_is_refused(cell):
    made = type("Bare", (JudgedBenchmark,), {"template": lambda self: ""})
    with pytest.raises(InvalidParameter, match=r"Bare.template has the name of a parameter"):
        cell("bare")(made)


def test_a_decorator_without_a_name_or_a_benchmark_is_refused(cell):
    with pytest.raises(InvalidParameter, match=r"@benchmark needs a name: @benchmark\("):
        cell(hd.YesNoBenchmark)
    with pytest.raises(InvalidParameter, match="must be a class derived from Benchmark"):
        cell("bare")(object)
    with pytest.raises(InvalidParameter, match=r"Nameless has no name; write @benchmark\(NAME\)"):
        choose([type("Nameless", (hd.YesNoBenchmark,), {})])


def test_own_methods_and_names_of_parameters_are_free(cell):
    @cell("bare")
    class Bare(hd.YesNoBenchmark):
        """Bare."""

        metric_s: int = hd.param(1, "a number")

        def _scores(self):
            return 0

    assert choose("bare(metric_s=2)")[0].metric_s == 2
    assert not hd.Benchmark().what_it_needs.endswith("with ")


def test_a_metric_that_no_score_has_is_told(cell, source, tmp_path):
    @cell("bare")
    class Bare(hd.YesNoBenchmark):
        """Bare."""

        metrics = (Metric("acuracy", "accuracy %"),)

    questions = [json.loads(x) for x in (source / "pope" / "random.jsonl").read_text().splitlines()]
    rows = [{**q, "question": q["text"], "answer": q["label"]} for q in questions]
    world.write_lines(source / "bare.jsonl", rows)
    evaluate(world.FakeEngine(), "bare", data=[source], out=tmp_path / "run")
    told = render([tmp_path / "run"], "md", None)
    assert "no score has the metric 'acuracy' that it declares, but 'accuracy'" in told


def test_what_runs_record_are_no_names_of_benchmarks(source):
    report = evaluate(world.FakeEngine(), data=[source])
    assert set(report.run) <= {*RUN_FACTS, *BENCHMARKS.names()}


def test_a_folder_that_nobody_reads_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(JudgedBenchmark, "ready", lambda benchmark: None)  # as if one were named
    world.write_lines(tmp_path / "set" / "test.jsonl", [{"prompt": "x", "reply": "y"}])
    for name in BENCHMARKS.names():
        with pytest.raises(InvalidData, match=r"no column .*found prompt, reply"):
            evaluate(never, name, data=[tmp_path / "set"], limit=3)
