"""MMHal-Bench and its judge: off unless named, asked over OpenAI's client, kept and counted."""

from __future__ import annotations

import pytest

from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.evals.benchmarks.mmhal import MMHal
from halludecode.evals.data.judge import VARIABLE
from halludecode.evals.runner.run import run_eval
from halludecode.evals.runner.score_file import score_predictions
from tests.support import eval_world as world
from tests.support.answered import OFFICIAL, samples_of
from tests.support.judge_stub import judges

pytest.importorskip("openai", reason="the openai package is not installed")
KINDS = ("attribute", "adversarial", "comparison", "counting", "relation", "environment")
KINDS += ("holistic", "other")
ROWS = [
    {"question_type": "counting", "image_src": f"https://a.example/{n}.jpg"}
    | {"question": f"How many cups {n}?", "gt_answer": f"{n} cups", "image_content": ["Cup", "Mug"]}
    for n in range(3)
]


@pytest.fixture
def served():
    """Starts a judge that gives these replies; its address is beside."""
    with judges() as start:
        yield lambda *replies: (server := start(*replies), server.url)


@pytest.fixture
def template(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("Contents: {}. Question: {} Truth: {}. Answer: {}. Rate {braces} too.")
    return path


def folder(root):
    world.write_lines(root / "mmhal" / "response_template.json", ROWS)
    for n in range(3):
        world.picture(root / "images" / f"{n}.jpg", n)
    return root


def test_counts_equal_the_official_scripts():
    given = OFFICIAL["mmhal"]
    lines = []
    for n, said in enumerate(given["said"]):
        parsed = MMHal().verdict(given["replies"][said])
        kind, right = KINDS[n % 8], int(parsed != "other" and MMHal().right(parsed, None))
        read = {"answer": "", "parsed": parsed, "score": right}
        lines.append({"id": n, "image": str(n), "kind": kind, **read})
    metrics = MMHal().score(lines).metrics
    assert metrics["average"] == pytest.approx(given["average_2_digits"], abs=0.005)
    rate = given["hallucination_rate_2_digits"]
    assert metrics["hallucination_rate"] == pytest.approx(rate, abs=0.005)
    for kind, wanted in zip(KINDS, given["by_type_2_digits"], strict=True):
        assert metrics[f"average.{kind}"] == pytest.approx(wanted, abs=0.005)
    unread = sum(given["said"].count(n) for n in (7, 8, 9))  # none, two, and none
    assert metrics["unread"] == unread > 0


def test_a_run_keeps_prompts_and_verdicts_and_counts_refusals(tmp_path, served, template):
    replies = [{"content": "Good. Rating: 6"}, {"content": "I think it is fine."}]
    server, url = served(*replies, {"refusal": "I cannot judge this."})
    task = f"mmhal(judge_model=j,judge_url='{url}',template='{template}')"
    options = {"strategies": ["greedy"], "progress": False, "data": [folder(tmp_path / "set")]}
    report = run_eval(world.FakeEngine(), output=tmp_path / "run", tasks=task, **options)
    (entry,) = report.results["runs"]
    metrics = {name: value["value"] for name, value in entry["metrics"].items()}
    assert (metrics["average"], metrics["hallucination_rate"]) == (2, pytest.approx(2 / 3))
    assert (metrics["refused"], metrics["unread"]) == (1, 1)
    lines = world.lines(tmp_path / "run" / "samples.jsonl")
    assert [x["parsed"] for x in lines] == [6, "other", "refused"]
    for line, body in zip(lines, server.asked, strict=True):
        judged = line["judged"]
        assert judged["model"] == "judge-2024"
        assert (body["model"], body["temperature"]) == ("j", 0.0)
        assert body["messages"] == [{"role": "user", "content": judged["prompt"]}]
        assert judged["prompt"].startswith("Contents: Cup, Mug. Question: How many cups")
        assert line["answer"] in judged["prompt"]
        assert judged["prompt"].endswith("Rate {braces} too.")
    assert lines[2]["judged"]["raw"] == "I cannot judge this."
    recipe = report.run["mmhal"]
    assert (recipe["judge_model"], recipe["judge_url"]) == ("j", url)
    assert len(recipe["words"]) == 16


def test_answers_from_a_file_are_judged(tmp_path, served, template, monkeypatch):
    _, url = served(*[{"content": "Rating: 5"}] * 3)
    monkeypatch.setenv(VARIABLE, "j")
    world.write_lines(
        tmp_path / "a.jsonl", [{"id": f"counting {n}.jpg", "answer": "two"} for n in range(3)]
    )
    questions = folder(tmp_path / "set") / "mmhal" / "response_template.json"
    task = f"mmhal(judge_url='{url}',template='{template}')"
    scored = score_predictions(task, tmp_path / "a.jsonl", questions)
    assert scored["metrics"]["average"]["value"] == 5


def test_it_is_off_unless_a_judge_is_named(tmp_path, template, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    engine = world.FakeEngine()
    options = {"strategies": ["greedy"], "progress": False, "data": [folder(tmp_path / "set")]}
    for task, told in (
        ("mmhal", r"none is named; write mmhal\(judge_model=NAME\), or set \$HALLUDECODE_JUDGE"),
        ("mmhal(judge_model=j)", r"not shipped; write them to a file .* mmhal\(template=FILE\)"),
    ):
        with pytest.raises(InvalidParameter, match=told):
            run_eval(engine, output=tmp_path / "run", tasks=task, **options)
    assert engine.calls == []


def test_a_template_with_other_places_is_refused(tmp_path, template):
    template.write_text("{} and {}")
    made = MMHal(judge_model="j", template=str(template))
    row = dict(zip(("image", "question", "answer", "contents", "kind"), range(5), strict=True))
    (sample,) = samples_of(made, [{**row, "contents": ["Cup"]}])
    with pytest.raises(InvalidParameter, match=r"has 2 places marked \{\}; MMHal-Bench fills 4"):
        made.prompt_for(sample, "x")


def test_a_judge_that_fails_is_one_sentence(template, served, monkeypatch):
    _, url = served(404)
    row = dict(zip(("image", "question", "answer", "contents", "kind"), range(5), strict=True))
    made = MMHal(judge_model="j", judge_url=url, template=str(template))
    (sample,) = samples_of(made, [{**row, "contents": ["Cup"]}])
    with pytest.raises(
        InvalidData, match=r"judge j at http://.* cannot be asked \(.*no such judge"
    ):
        made.judge(sample, "x")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InvalidData, match=r"judge j at api\.openai\.com cannot be asked"):
        MMHal(judge_model="j", template=str(template)).judge(sample, "x")
