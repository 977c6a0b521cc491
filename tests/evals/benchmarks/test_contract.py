"""What every benchmark must do, over the registry: a new one is covered without an edit here.

Each is tried on its own ``examples``, written as JSON lines with pictures beside.
"""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from halludecode.core.errors import HalluDecodeError, InvalidData
from halludecode.core.spec import format_item
from halludecode.evals.benchmarks.base import Benchmark
from halludecode.evals.benchmarks.judged import JudgedBenchmark
from halludecode.evals.benchmarks.registry import BENCHMARKS, choose
from halludecode.evals.data.run_files import read_lines
from halludecode.evals.data.samples import EvalImage
from halludecode.evals.load import load_units
from halludecode.evals.presets import preset_for
from halludecode.evals.report.render import render
from halludecode.evals.results.compare import compare_runs
from halludecode.evals.runner import batching
from halludecode.evals.runner.run import run_eval
from halludecode.evals.runner.score_file import score_predictions
from tests.support import eval_world as world

pytest.importorskip("datasets", reason="the datasets package is not installed")
pytestmark = pytest.mark.parametrize("name", BENCHMARKS.names())


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setitem(batching.BATCH, "hf", 1)


@pytest.fixture(autouse=True)
def stub_judge(monkeypatch):
    """Benchmarks that need a judge get one that likes the truth, in any letters."""

    def verdict(benchmark, sample, answer):
        truths = sample.objects if sample.label is None else (sample.label,)
        liked = any(truth.lower() in answer.lower() for truth in truths)
        parsed = benchmark.verdict(benchmark.replies[0 if liked else 1])
        judged = {"model": "stub", "prompt": sample.question, "raw": ""}
        return {"parsed": parsed, "score": int(liked), "judged": judged}

    monkeypatch.setattr(JudgedBenchmark, "judge", verdict)
    monkeypatch.setattr(JudgedBenchmark, "ready", lambda benchmark: None)


def rows_of(name, rows=None):
    """Rows under the data set's own names."""
    cls = BENCHMARKS.get(name)
    kind = cls.columns[0]
    theirs = {**kind.needs, **kind.takes}
    return [{theirs[key][0]: cell for key, cell in row.items()} for row in rows or cls.examples]


def pictures_of(cls, row):
    """Names of an example's pictures."""
    cells = [row[column] for column in cls.columns[0].pictures]
    return [name for cell in cells for name in (cell if isinstance(cell, list) else [cell])]


def written(root, name, rows=None, file="test.jsonl"):
    """A folder of rows, as the hub has them, with their pictures."""
    cls = BENCHMARKS.get(name)
    beside = (root / file).parent
    world.write_lines(root / file, rows_of(name) if rows is None else rows)
    shown = [name for row in cls.examples for name in pictures_of(cls, row)]
    for number, picture in enumerate(dict.fromkeys(shown)):
        world.picture(root / picture, number)
        for place in {root / "images", beside}:
            world.picture(place / picture, number)
    return root


def select(name):
    return world.select(name, limit=100)


def run(output, source, name, engine=None, **more):
    options = {"tasks": [name], "strategies": ["greedy", "vcd"], "data": [source], "limit": 100}
    return run_eval(engine or world.FakeEngine(), output=output, progress=False, **(options | more))


def samples_of(root, name):
    units = load_units([written(root, name)], select(name))
    return [(unit.benchmark, sample) for unit in units for sample in unit.samples]


def right_answer(sample):
    if sample.label is not None:
        return sample.label.capitalize()
    return f"A picture of a {' and a '.join(sample.objects)}."


def lines_of(samples, answer):
    return [
        {"id": s.id, "image": s.image, "prompt": s.prompt, **b.answered(s, answer(s))}
        for b, s in samples
    ]


# What it declares


def test_it_says_what_it_is(name):
    cls = BENCHMARKS.get(name)
    assert cls.title
    assert cls.metrics
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}(")
    assert cls().what_it_needs
    assert cls.examples, f"{name} needs examples: rows of its first table, of two groups or more"


def test_its_parameters_are_written_as_strategies_are(name):
    made = BENCHMARKS.get(name)()
    values = {key: value for key, value in made.resolved().items() if value is not None}
    assert choose(format_item(name, values)) == (made,)
    again = type(made).recorded(json.loads(json.dumps(made.recipe())))
    assert again.recipe() == made.recipe()
    with pytest.raises(HalluDecodeError, match="has no parameter 'no_such'"):
        choose(f"{name}(no_such=1)")


def test_its_preset_words_and_lengths_are_known(name):
    made, preset = BENCHMARKS.get(name)(), preset_for(None, "some/model", [name])[1]
    assert all(made.tokens(kind, preset) >= 1 for kind in made.kinds())
    assert all(len(made.words(kind)) in (0, 2) for kind in made.kinds())


# Reading


def test_it_reads_its_columns(name, tmp_path):
    samples = samples_of(tmp_path / "set", name)
    assert len({sample.id for _, sample in samples}) == len(samples) > 1
    assert len({sample.group for _, sample in samples}) > 1
    for benchmark, sample in samples:
        assert benchmark.name == name
        assert sample.prompt
        assert (sample.label is None) != (sample.objects is None)
        assert {picture.load().size for picture in sample.picture.all} == {(24, 16)}
        assert benchmark.kind(sample) in benchmark.kinds()
        assert sample.group_size == sum(other.group == sample.group for _, other in samples)


def test_a_limit_takes_whole_groups(name, tmp_path):
    source = written(tmp_path / "set", name)
    (whole,), (few,) = (
        load_units([source], world.select(name, **more)) for more in ({"limit": 100}, {"limit": 1})
    )
    first = whole.samples[0].group
    assert [s.id for s in few.samples] == [s.id for s in whole.samples if s.group == first]


def test_a_missing_column_is_named(name, tmp_path):
    kind = BENCHMARKS.get(name).columns[0]
    for column, names in kind.needs.items():
        rows = [{k: v for k, v in row.items() if k not in names} for row in rows_of(name)]
        source = written(tmp_path / column, name, rows)
        with pytest.raises(InvalidData) as caught:
            load_units([source], select(name))
        assert re.search("|".join(map(re.escape, (*names, name))), str(caught.value))


@pytest.mark.parametrize("nonsense", ["~~~", "", 7, None])
def test_nonsense_in_a_cell_is_at_most_one_sentence(name, tmp_path, nonsense):
    for number, column in enumerate(rows_of(name)[0]):
        rows = [dict(row) for row in rows_of(name)]
        rows[-1][column] = nonsense
        source = written(tmp_path / str(number), name, rows)
        try:
            load_units([source], select(name))
        except HalluDecodeError as error:
            assert "\n" not in str(error)


def own_file(name):
    """The file a data folder has of it; None where it has a layout of its own."""
    cls = BENCHMARKS.get(name)
    return cls()._places()[0] if cls.load is Benchmark.load else None


@pytest.mark.parametrize("nonsense", ["~~~", "", 7, None, "missing"])
def test_nonsense_in_its_own_file_is_at_most_one_sentence(name, tmp_path, nonsense):
    if not (file := own_file(name)):
        pytest.skip("has files of its own, and tests of its own")
    needed = {n for names in BENCHMARKS.get(name).columns[0].needs.values() for n in names}
    for number, column in enumerate(rows_of(name)[0]):
        rows = [dict(row) for row in rows_of(name)]
        rows[-1][column] = nonsense
        if nonsense == "missing":
            del rows[-1][column]
        source = written(tmp_path / str(number), name, rows, file)
        try:
            load_units([source], select(name))
        except HalluDecodeError as error:
            assert re.search(rf"{re.escape(file)}:{len(rows)}", str(error))
        else:
            assert column not in needed or nonsense not in (None, "missing")


def test_a_cell_without_anything_is_not_asked(name, tmp_path):
    kind = BENCHMARKS.get(name).columns[0]
    for column, names in kind.needs.items():
        if column in BENCHMARKS.get(name).examples[-1] and column not in kind.pictures:
            rows = rows_of(name)
            rows[-1][names[0]] = None
            source = written(tmp_path / column, name, rows)
            with pytest.raises(InvalidData, match="every row needs it"):
                load_units([source], select(name))


@pytest.mark.parametrize("text", ["", "not JSON\n", '{"prompt": "x"}\n'])
def test_its_own_file_is_complained_of_by_name(name, tmp_path, text):
    if not (file := own_file(name)):
        pytest.skip("has files of its own, and tests of its own")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    with pytest.raises(InvalidData, match=re.escape(str(tmp_path / file))):
        load_units([tmp_path], select(name))


def test_a_folder_of_something_else_is_one_sentence(name, tmp_path):
    world.write_lines(tmp_path / "set" / "test.jsonl", [{"prompt": "x", "reply": "y"}])
    with pytest.raises(InvalidData, match=r"\.$") as caught:
        load_units([tmp_path / "set"], select(name))
    assert "prompt, reply" in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidData, match=f"No questions for {name} in .*; it needs "):
        load_units([tmp_path / "empty"], select(name))


# Judging and scoring


def test_right_answers_score_best(name, tmp_path):
    samples = samples_of(tmp_path / "set", name)
    benchmark = samples[0][0]
    right = lines_of(samples, right_answer)
    assert {line["score"] for line in right} == {1}
    good, bad = benchmark.score(right), benchmark.score(lines_of(samples, lambda s: "~"))
    known = [metric for metric in benchmark.metrics if metric.name in good.metrics]
    assert known
    assert good.n == len(samples)
    assert good.task == name
    for metric in known:
        assert np.isfinite(good.metrics[metric.name])
        better = good.metrics[metric.name] - bad.metrics[metric.name]
        if metric.lower_is_better is False:
            assert better >= 0


def test_a_score_can_be_resampled(name, tmp_path):
    samples = samples_of(tmp_path / "set", name)
    score = samples[0][0].score(lines_of(samples, lambda s: "Yes, a dog."))
    once = score.resampled(np.ones((1, len(score.clusters))))
    assert {n: float(v[0]) for n, v in once.items()} == pytest.approx(score.metrics)


def test_what_counts_together_is_left_out_together(name, tmp_path):
    samples = samples_of(tmp_path / "set", name)
    benchmark, first = samples[0]
    lines = {line["id"]: line for line in lines_of(samples, lambda s: "Yes")}
    del lines[first.id]
    kept = benchmark.complete(lines)
    lost = {s.id for _, s in samples if s.group == first.group} if benchmark.whole else {first.id}
    assert set(kept) == {s.id for _, s in samples} - lost


# Runs


def test_a_run_is_scored_compared_and_reported(name, tmp_path):
    report = run(tmp_path / "run", written(tmp_path / "set", name), name)
    assert report.failed == report.left_out == 0
    assert name.upper() in str(report.to_dict()).upper()
    table = io.StringIO()
    Console(width=120, file=table).print(report.table())
    first = [line.split()[:1] for line in table.getvalue().splitlines()]
    assert first.count(["strategy"]) == first.count(["greedy"]) > 0  # not squeezed to a letter
    assert compare_runs([str(tmp_path / "run")]).to_dict()["differences"]
    for form in ("md", "csv"):
        assert render([tmp_path / "run"], form, None)
    render([tmp_path / "run"], "html", tmp_path / "page.html")
    assert BENCHMARKS.get(name).title.upper() in (tmp_path / "page.html").read_text().upper()


def test_it_exports_under_other_kits_names(name, tmp_path):
    cls = BENCHMARKS.get(name)
    run(tmp_path / "run", written(tmp_path / "set", name), name)
    if cls.lmms_eval:
        render([tmp_path / "run"], "lmms-eval", tmp_path / "lmms")
        results = list((tmp_path / "lmms").rglob("*_results.json"))
        assert results
        assert all(cls.lmms_eval.task in path.read_text() for path in results)
    if cls.vlmevalkit:
        render([tmp_path / "run"], "vlmevalkit", tmp_path / "kit")
        assert [f for f in (tmp_path / "kit").rglob("*.tsv") if cls.vlmevalkit in f.name]


def test_an_interrupted_run_ends_equal(name, tmp_path):
    source = written(tmp_path / "set", name)
    whole = run(tmp_path / "whole", source, name)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", source, name, world.FakeEngine(stop_after=1))
    resumed = run(tmp_path / "run", source, name)
    assert world.timeless(resumed.results) == world.timeless(whole.results)


def test_a_failed_sample_breaks_its_group_and_nothing_else(name, tmp_path):
    source = written(tmp_path / "set", name)
    (unit,) = load_units([source], world.select(name, limit=100))
    cls = BENCHMARKS.get(name)
    broken = source / pictures_of(cls, cls.examples[0])[0]
    digest = EvalImage.from_file(broken, "").digest
    failed = [s for s in unit.samples if digest in {p.digest for p in s.picture.all}]
    broken.write_bytes(b"no picture")
    report = run(tmp_path / "run", source, name, strategies=["greedy"])
    kept = read_lines(tmp_path / "run" / "samples.jsonl")
    assert {x["id"] for x in kept} == {s.id for s in unit.samples} - {s.id for s in failed}
    groups = {s.group for s in failed}
    mates = [s for s in unit.samples if s.group in groups and s not in failed]
    lost = len(mates) if unit.benchmark.whole else 0
    (entry,) = [e for e in report.results["runs"] if e["split"] != "mean"]
    assert (entry["failed"], entry.get("left_out", 0)) == (len(failed), lost)
    assert report.left_out == lost
    usable = unit.benchmark.complete({x["id"]: x for x in kept})
    wanted = unit.benchmark.score(list(usable.values())).metrics if usable else {}
    assert {n: v["value"] for n, v in entry["metrics"].items()} == wanted


# Answers made elsewhere


def test_answers_from_a_file_score_as_in_a_run(name, tmp_path):
    cls = BENCHMARKS.get(name)
    if cls.score_given is not Benchmark.score_given or cls.load is not Benchmark.load:
        pytest.skip("has files of its own, and tests of its own")
    source = written(tmp_path / "set", name)
    report = run(tmp_path / "run", source, name, strategies=["greedy"])
    answers = [
        {"id": x["id"], "answer": x["answer"]}
        for x in read_lines(tmp_path / "run" / "samples.jsonl")
    ]
    world.write_lines(tmp_path / "answers.jsonl", answers)
    scored = score_predictions(name, tmp_path / "answers.jsonl", source / "test.jsonl")
    (entry,) = [e for e in report.results["runs"] if e["split"] != "mean"]
    assert scored["n"] == entry["n"]
    assert {n: v["value"] for n, v in scored["metrics"].items()} == {
        n: v["value"] for n, v in entry["metrics"].items()
    }
    world.write_lines(tmp_path / "few.jsonl", answers[1:])
    with pytest.raises(InvalidData, match=r"few\.jsonl: 1 of \d+ predictions are missing: id"):
        score_predictions(name, tmp_path / "few.jsonl", source / "test.jsonl")
    world.write_lines(tmp_path / "more.jsonl", [*answers, {"id": "nobody's", "answer": "no"}])
    with pytest.raises(InvalidData, match=r"more\.jsonl:\d+: id \"nobody's\" is no question"):
        score_predictions(name, tmp_path / "more.jsonl", source / "test.jsonl")
    # Without annotations there is none, or the questions that are shipped, which are others.
    with pytest.raises(InvalidData, match="give --annotations" if cls.truth_in else "no question"):
        score_predictions(name, tmp_path / "answers.jsonl")
