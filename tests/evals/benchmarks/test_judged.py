"""What every judge-scored benchmark does, over the registry: a new one is covered without an edit.

A judge is off unless it is named; what it was asked and said is kept, what it refused is counted.
"""

from __future__ import annotations

import pytest

from halludecode.core.errors import InvalidParameter
from halludecode.evals.benchmarks.judged import JudgedBenchmark
from halludecode.evals.benchmarks.registry import BENCHMARKS
from halludecode.evals.data.judge import VARIABLE
from halludecode.evals.runner.import_answers import import_answers
from halludecode.evals.runner.run import run_eval
from tests.evals.benchmarks.test_contract import pictures_of, rows_of
from tests.support import eval_world as world
from tests.support.answered import samples_of
from tests.support.judge_stub import judges

pytest.importorskip("openai", reason="the openai package is not installed")
JUDGED = [cls.name for cls in BENCHMARKS if issubclass(cls, JudgedBenchmark)]
pytestmark = pytest.mark.parametrize("name", JUDGED)
ANSWER = "There is something to be seen here."


@pytest.fixture
def folder(tmp_path, name):
    cls = BENCHMARKS.get(name)
    rows = rows_of(name)
    world.write_lines(tmp_path / "set" / f"{name}.jsonl", rows)
    for n, picture in enumerate(x for row in cls.examples for x in pictures_of(cls, row)):
        world.picture(tmp_path / "set" / "images" / picture, n)
    return tmp_path / "set"


def words(tmp_path, name):
    """A template with as many places as the benchmark fills."""
    made = BENCHMARKS.get(name)()
    places = len(made.asked(samples_of(made, made.examples)[0], ANSWER))
    (tmp_path / "words.txt").write_text("Judge: " + " | ".join(["{}"] * places))
    return tmp_path / "words.txt"


def metrics(report):
    (entry,) = report.results["runs"]
    return {name: value["value"] for name, value in entry["metrics"].items()}


def test_it_asks_nobody_unless_a_judge_and_its_words_are_named(name, folder, tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    engine = world.FakeEngine()
    options = {"strategies": ["greedy"], "progress": False, "data": [folder]}
    for task, told in ((name, "none is named"), (f"{name}(judge_model=j)", "are not shipped")):
        with pytest.raises(InvalidParameter, match=told):
            run_eval(engine, output=tmp_path / "run", tasks=task, **options)
    assert engine.calls == []


def test_prompts_and_verdicts_are_kept_and_refusals_counted(name, folder, tmp_path):
    cls = BENCHMARKS.get(name)
    ids = [s.id for s in samples_of(cls(), cls.examples)]
    world.write_lines(tmp_path / "a.jsonl", [{"id": i, "answer": ANSWER} for i in ids])
    questions = folder / f"{name}.jsonl"
    outcomes = {}
    for kind, reply in (
        ("good", {"content": cls.replies[0]}),
        ("refused", {"refusal": "I cannot judge this."}),
        ("filtered", {"content": "x", "finish_reason": "content_filter"}),
        ("unread", {"content": "I would rather talk of the weather."}),
    ):
        with judges() as start:
            server = start(*[reply] * len(ids))
            task = f"{name}(judge_model=j,judge_url='{server.url}',template="
            task += f"'{words(tmp_path, name)}')"
            output = tmp_path / kind
            made = {"greedy": tmp_path / "a.jsonl"}
            report = import_answers(task, made, annotations=questions, output=output)
        lines = world.lines(output / "samples.jsonl")
        for line, body in zip(lines, server.asked, strict=True):
            judged = line["judged"]
            assert judged["prompt"] == body["messages"][0]["content"]
            assert judged["prompt"].startswith("Judge: ")
            assert ANSWER in judged["prompt"]
            assert judged["model"] == "judge-2024"
            assert judged["raw"] == reply.get("content", reply.get("refusal"))
        outcomes[kind] = metrics(report)
        recipe = report.run[name]
        assert (recipe["judge_model"], recipe["judge_url"]) == ("j", server.url)
        assert len(recipe["words"]) == 16
    counted = {kind: (found["refused"], found["unread"]) for kind, found in outcomes.items()}
    n = len(ids)
    assert counted == {"good": (0, 0), "refused": (n, 0), "filtered": (n, 0), "unread": (0, n)}
