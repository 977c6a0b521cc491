"""Shards of a run, joined: the folder of a run that was never divided."""

import json

import pytest

from halludecode.cli import main
from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.evals.runner.merge import merge
from halludecode.evals.runner.run import run_eval
from tests.support import eval_world as world

TASKS = ["pope", "chair(family=pattern)", "mme"]
PLAIN = {"prompt_preset": "opera", "progress": False, "strategies": ["greedy", "vcd"]}


@pytest.fixture
def source(tmp_path):
    return world.folder(tmp_path / "set", pictures=7)


def ran(source, output, shard=None, engine=None, **more):
    given = {**PLAIN, "tasks": TASKS, "data": [source], "shard": shard, **more}
    return run_eval(engine or world.FakeEngine(), output=output, **given)


def results(folder):
    found = json.loads((folder / "results.json").read_text())
    for entry in found["runs"]:
        for times in ("seconds", "tokens_per_second"):
            entry.pop(times)
    return found


@pytest.mark.parametrize("count", [1, 3, 9])  # nine: two of them have nothing to ask
def test_shards_give_the_run_that_was_never_divided(source, tmp_path, count):
    whole, engines = ran(source, tmp_path / "whole"), []
    folders = [tmp_path / f"part-{k}" for k in range(1, count + 1)]
    for k, folder in enumerate(folders, 1):
        engines.append(world.FakeEngine())
        assert ran(source, folder, f"{k}/{count}", engines[-1]).results["runs"] == []
    merged = merge(folders, tmp_path / "merged")
    assert sum(sum(engine.calls) for engine in engines) == sum(whole_engine_calls(source, tmp_path))
    assert results(tmp_path / "merged") == results(tmp_path / "whole")
    assert merged.failed == 0 and whole.failed == 0
    lines = [(p / "samples.jsonl").read_text() for p in (tmp_path / "whole", tmp_path / "merged")]
    assert lines[0] == lines[1], "in the same order, too"
    cards = [json.loads((p / "run.json").read_text()) for p in (tmp_path / "whole", folders[0])]
    told = json.loads((tmp_path / "merged" / "run.json").read_text())
    assert told.pop("shards").keys() == {str(folder) for folder in folders}
    assert told.pop("started") == cards[1]["started"] and cards[0].pop("started")
    assert told == cards[0]


def whole_engine_calls(source, tmp_path):
    engine = world.FakeEngine()
    ran(source, tmp_path / "again", engine=engine)
    return engine.calls


def test_failures_and_two_calls_are_joined(source, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for k, folder in enumerate(folders, 1):
        for task in ("pope", "mme"):
            ran(source, folder, f"{k}/2", world.FakeEngine(refuse="dog"), tasks=[task])
    report = merge(folders, tmp_path / "merged")
    for task in ("pope", "mme"):
        refusing = world.FakeEngine(refuse="dog")
        whole = ran(source, tmp_path / "whole", engine=refusing, tasks=[task])
    assert results(tmp_path / "merged") == results(tmp_path / "whole")
    assert report.failed == whole.failed
    errors = [(p / "errors.jsonl").read_text() for p in (tmp_path / "whole", tmp_path / "merged")]
    assert errors[0] == errors[1] != ""


def test_what_makes_no_run_is_refused(source, tmp_path):
    for k in (1, 2):
        ran(source, tmp_path / f"{k}", f"{k}/3", tasks=["pope"])
    a, b = tmp_path / "1", tmp_path / "2"
    with pytest.raises(InvalidData, match="Shard 3/3 of the run is missing: 2 of 3 were given"):
        merge([a, b], tmp_path / "out")
    with pytest.raises(InvalidData, match="Shard 1/3 is given more than once"):
        merge([a, a, b], tmp_path / "out")
    ran(source, tmp_path / "half", "2/2", tasks=["pope"])
    with pytest.raises(InvalidData, match="Shard 1/3 is of another division than 1/2"):
        merge([a, tmp_path / "half"], tmp_path / "out")
    ran(source, tmp_path / "3", "3/3", world.FakeEngine(digest="9"), tasks=["pope"])
    with pytest.raises(InvalidData, match="not of one run: model_digest differs"):
        merge([a, b, tmp_path / "3"], tmp_path / "out")
    ran(source, tmp_path / "all", tasks=["pope"])
    with pytest.raises(InvalidData, match="is a whole run, no shard"):
        merge([a, tmp_path / "all"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InvalidData, match="holds a run with shard '1/3', not None"):
        ran(source, a, tasks=["pope"])
    with pytest.raises(InvalidData, match="holds a run with shard None, not '1/3'"):
        ran(source, tmp_path / "all", "1/3", tasks=["pope"])


@pytest.mark.parametrize("shard", ["0/3", "4/3", "2", "a/b", "1/0", "-1/3", "", 2])
def test_a_shard_is_one_of_some(source, tmp_path, shard):
    with pytest.raises(InvalidParameter, match="give K/N with K from 1 to N"):
        ran(source, tmp_path / "out", shard, tasks=["pope"])


def test_the_command_line(source, tmp_path, capsys):
    for k in (1, 2):
        ran(source, tmp_path / f"{k}", f"{k}/2", tasks=["pope"])
    folders = [str(tmp_path / f"{k}") for k in (1, 2)]
    assert main(["report", folders[0]]) == 2
    assert "join it with the others (halludecode merge)" in capsys.readouterr().err
    assert main(["merge", *folders, "--output", str(tmp_path / "all")]) == 0
    shown = capsys.readouterr()
    assert "POPE on set" in shown.out and "saved in" in shown.err
    assert main(["merge", *folders, "--output", str(tmp_path / "all")]) == 2
    assert "holds a run already" in capsys.readouterr().err
