import json
from functools import partial

import pytest
from rich.console import Console

from halludecode.core.errors import InvalidData
from halludecode.evals.runner.reproduce import read_card, reproduce
from halludecode.evals.runner.run import run_eval
from tests.support import eval_world as world


@pytest.fixture
def first(tmp_path):
    source = world.folder(tmp_path / "set")
    options = {"prompt_preset": "opera", "progress": False, "data": [source], "limit": 3}
    specs = ["greedy", "vcd"]
    for tasks in (["pope"], ["chair(family=pattern)"]):  # two calls in one folder
        run_eval(
            world.FakeEngine(), tasks=tasks, strategies=specs, output=tmp_path / "a", **options
        )
    return tmp_path / "a"


def shown(found):
    console = Console(width=120)
    with console.capture() as captured:
        console.print(found.table())
    return captured.get()


def test_a_run_of_two_calls_comes_back_as_it_was(first, tmp_path):
    found = reproduce(first / "run.json", world.FakeEngine(), tmp_path / "b", progress=False)
    assert found.same and not found.made_with and not found.data
    before, now = (json.loads((p / "run.json").read_text()) for p in (first, tmp_path / "b"))
    assert before["calls"] == now["calls"] and len(now["calls"]) == 2
    assert now["chair"] == before["chair"]  # the benchmark's parameters, too
    assert found.count == len((first / "samples.jsonl").read_text().splitlines())
    assert f"Answers: 0 of {found.count} differ" in shown(found)
    assert found.to_dict()["scores"]["differ"] == [] and found.compared > 10


def test_what_differs_is_told(first, tmp_path):
    card = json.loads((first / "run.json").read_text())
    card["versions"]["torch"] = "1.0"
    (first / "run.json").write_text(json.dumps(card))
    lines = (first / "samples.jsonl").read_text().splitlines()
    changed = json.loads(lines[0])
    changed["answer"] = "Perhaps."
    lines[0] = json.dumps(changed)
    (first / "samples.jsonl").write_text("\n".join(lines) + "\n")
    results = json.loads((first / "results.json").read_text())
    value = results["runs"][0]["metrics"]["accuracy"]
    value["value"] += 0.25
    (first / "results.json").write_text(json.dumps(results))
    picture = sorted((tmp_path / "set").rglob("*.png"))[0]
    world.picture(picture, 9)  # another picture under the same name
    found = reproduce(first, world.FakeEngine(digest="9999"), tmp_path / "b", progress=False)
    assert not found.same
    assert {what for what, _, _ in found.made_with} == {"model_digest", "torch"}
    assert ("torch", "1.0", "0") in found.made_with and found.data
    assert any(before == "Perhaps." for before, _ in found.answers.values())
    assert any(key[-3] == "accuracy" for key in found.scores)
    text = shown(found)
    for said in ("torch: 1.0 -> 0", "Data: differs", "'Perhaps.' ->", " accuracy: "):
        assert said in text


def test_what_cannot_be_run_again_says_why(first, tmp_path):
    with pytest.raises(InvalidData, match="is the run itself"):
        reproduce(first, world.FakeEngine(), first)
    with pytest.raises(InvalidData, match="no such file"):
        read_card(tmp_path / "none")
    card = json.loads((first / "run.json").read_text())
    del card["calls"]
    (first / "run.json").write_text(json.dumps(card))
    with pytest.raises(InvalidData, match="does not say how it was called"):
        read_card(first)


def test_what_the_model_was_loaded_with_is_told(tmp_path):
    source = world.folder(tmp_path / "set")
    loader = partial(lambda name, **_: world.FakeEngine(), "fake", engine="hf", revision="abc")
    given = {"prompt_preset": "opera", "progress": False, "data": [source], "tasks": ["pope"]}
    run_eval(loader, strategies=["greedy"], output=tmp_path / "a", **given)
    card = json.loads((tmp_path / "a" / "run.json").read_text())
    assert card["load"] == {"revision": "abc"} and card["engine"] == "hf"
