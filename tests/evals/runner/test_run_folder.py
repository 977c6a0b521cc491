import json
import multiprocessing
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halludecode.core.errors import InvalidData
from halludecode.evals.data.run_files import key_of, read_lines
from halludecode.evals.runner.run_folder import RunStore

IDENTITY = {"model": "m", "seed": 0, "prompts": {"pope": "q"}, "sampling": {"pope": 16}}


def line(i, strategy="greedy", **more):
    head = {"id": i, "task": "pope", "data": "d", "split": "random", "strategy": strategy}
    return {**head, "answer": "Yes", "data_hash": "0", "tokens": 1, "ms": 1.0, **more}


def test_lines_come_back_by_key(tmp_path):
    with RunStore(tmp_path, IDENTITY, {}) as store:
        store.append([line(1, answer="Yes"), line(2, answer="N\u00f6\u2028\n")])
        store.append([line(1, "vcd", answer="No")])
    with RunStore(tmp_path, IDENTITY, {}) as store:
        assert [x["answer"] for x in store.done.values()] == ["Yes", "N\u00f6\u2028\n", "No"]
        assert ("pope", "d", "random", "vcd", 1) in store.done


def test_a_line_is_never_written_twice(tmp_path):
    with RunStore(tmp_path, IDENTITY, {}) as store:
        store.append([line(1, answer="first")])
        store.append([line(1, answer="second"), line(2, answer="other")])
    written = read_lines(tmp_path / "samples.jsonl")
    assert [(x["id"], x["answer"]) for x in written] == [(1, "first"), (2, "other")]


def test_batches_are_on_disk_when_append_returns(tmp_path):
    with RunStore(tmp_path, IDENTITY, {}) as store:
        store.append([line(1)])
        assert len(read_lines(tmp_path / "samples.jsonl")) == 1
        store.append_errors([line(2, error="e")])
        assert len(read_lines(tmp_path / "errors.jsonl")) == 1


@settings(max_examples=60, deadline=None)
@given(answers=st.lists(st.text(min_size=0, max_size=12), min_size=1, max_size=4), data=st.data())
def test_a_file_torn_anywhere_loses_only_its_last_line(tmp_path_factory, answers, data):
    folder = tmp_path_factory.mktemp("run")
    with RunStore(folder, IDENTITY, {}) as store:
        store.append([line(i, answer=a) for i, a in enumerate(answers)])
    path = folder / "samples.jsonl"
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    with RunStore(folder, IDENTITY, {}) as store:
        assert len(store.done) == kept
        store.append([line(i, answer=a) for i, a in enumerate(answers)])
    assert path.read_bytes() == whole


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    with RunStore(tmp_path, IDENTITY, {}) as store:
        store.append([line(1), line(2)])
    path = tmp_path / "samples.jsonl"
    path.write_text(path.read_text().replace('{"id": 1', '{"id" 1'))
    with pytest.raises(InvalidData, match=r"samples\.jsonl:1: .*--fresh"):
        RunStore(tmp_path, IDENTITY, {})
    path.write_text('{"id": 1}\n')
    with pytest.raises(InvalidData, match=r"samples\.jsonl:1"):
        read_lines(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "n"}, "model 'm', not 'n'"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"prompts": {"pope": "other"}}, "prompts.pope 'q', not 'other'"),
        ({"sampling": {"pope": 32}}, "sampling.pope 16, not 32"),
    ],
)
def test_another_run_is_refused_with_one_sentence(tmp_path, change, said):
    with RunStore(tmp_path, IDENTITY, {}) as store:
        store.append([line(1)])
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(InvalidData) as caught:
        RunStore(tmp_path, {**IDENTITY, **change}, {})
    assert said in str(caught.value)
    assert "--fresh" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run.json").read_bytes() == before


def test_fresh_starts_over_and_leaves_other_files(tmp_path):
    with RunStore(tmp_path, IDENTITY, {}) as store:
        store.append([line(1)])
        store.write_results({"runs": [], "differences": []})
    (tmp_path / "notes.txt").write_text("mine")
    with RunStore(tmp_path, {**IDENTITY, "model": "n"}, {}, fresh=True) as store:
        assert not store.done
        assert store.run["model"] == "n"
    assert not (tmp_path / "results.json").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_task_and_a_strategy_can_be_added(tmp_path):
    with RunStore(tmp_path, IDENTITY, {"strategies": {"greedy": {}}}):
        pass
    more = {**IDENTITY, "prompts": {"mme": "r"}, "sampling": {"mme": 16}}
    with RunStore(tmp_path, more, {"strategies": {"vcd": {}}}) as store:
        assert store.run["prompts"] == {"pope": "q", "mme": "r"}
        assert list(store.run["strategies"]) == ["greedy", "vcd"]
    assert json.loads((tmp_path / "run.json").read_text()) == store.run


def test_resuming_elsewhere_is_on_record(tmp_path):
    for when, torch in (("monday", "1"), ("tuesday", "2")):
        with RunStore(tmp_path, IDENTITY, {"started": when, "versions": {"torch": torch}}) as store:
            assert store.run["started"] == "monday"
    assert store.run["versions"] == {"torch": "1"}
    assert store.run["resumed"] == [{"started": "tuesday", "versions": {"torch": "2"}}]


def test_answers_without_a_recipe_are_refused(tmp_path):
    (tmp_path / "samples.jsonl").write_text(json.dumps(line(1)) + "\n")
    with pytest.raises(InvalidData, match=r"no run\.json; .*--fresh"):
        RunStore(tmp_path, IDENTITY, {})


def test_results_of_other_tasks_stay(tmp_path):
    def entry(task, value):
        return {"task": task, "data": "d", "split": None, "strategy": "greedy", "n": value}

    with RunStore(tmp_path, IDENTITY, {}) as store:
        store.write_results({"schema": 1, "runs": [entry("chair", 1)], "differences": []})
        both = store.write_results(
            {"schema": 1, "runs": [entry("mme", 2), entry("pope", 3)], "differences": []}
        )
        assert [(e["task"], e["n"]) for e in both["runs"]] == [
            ("chair", 1),
            ("mme", 2),
            ("pope", 3),
        ]
        renewed = store.write_results({"schema": 1, "runs": [entry("mme", 9)], "differences": []})
    assert [(e["task"], e["n"]) for e in renewed["runs"]] == [("chair", 1), ("pope", 3), ("mme", 9)]


def test_a_second_process_is_kept_out(tmp_path):
    pytest.importorskip("fcntl", reason="this system has no advisory file locks")
    context = multiprocessing.get_context("spawn")
    with RunStore(tmp_path, IDENTITY, {}), context.Pool(1) as pool:
        said = pool.apply(_open, (str(tmp_path),))
    assert "another process" in said
    with RunStore(tmp_path, IDENTITY, {}):
        pass


def _open(folder):
    try:
        RunStore(folder, IDENTITY, {})
    except InvalidData as error:
        return str(error)
    return "opened"


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidData, match="cannot be made a run folder"):
        RunStore(tmp_path / "file" / "run", IDENTITY, {})


def test_key_tells_splits_and_strategies_apart():
    assert key_of(line(1)) != key_of(line(1, "vcd"))
    assert key_of(line(1)) != key_of({**line(1), "split": "popular"})


def test_refused_answers_leave_the_folder_as_it_was(tmp_path):
    with RunStore(tmp_path, IDENTITY, {}) as store:
        store.append([line(1, answer="Yes")])
    before = (tmp_path / "run.json").read_bytes()
    seen = []

    def refuse(done):
        seen.extend(done)
        raise InvalidData("other data")

    with pytest.raises(InvalidData, match="other data"):
        RunStore(tmp_path, IDENTITY, {"strategies": {"vcd": {}}}, check=refuse)
    assert seen == [key_of(line(1))]
    assert (tmp_path / "run.json").read_bytes() == before
    with RunStore(tmp_path, IDENTITY, {}):  # and it is not locked
        pass


def test_a_mapping_that_an_earlier_call_lacked_is_adopted(tmp_path):
    with RunStore(tmp_path, IDENTITY, {}):
        pass
    with RunStore(tmp_path, {**IDENTITY, "amber": {"similarity": "none"}}, {}) as store:
        assert store.run["amber"] == {"similarity": "none"}
    with pytest.raises(InvalidData, match=r"amber\.similarity 'none', not 'other'"):
        RunStore(tmp_path, {**IDENTITY, "amber": {"similarity": "other"}}, {})


def test_what_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "run" / "run.json.new").mkdir(parents=True)
    with pytest.raises(InvalidData, match=r"run\.json\.new: cannot be written \(Is a directory\)"):
        RunStore(tmp_path / "run", IDENTITY, {})

    def full(handle):
        raise OSError(28, "No space left on device")

    with RunStore(tmp_path / "other", IDENTITY, {}) as store:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(InvalidData, match=r"other: cannot be written \(No space left on devic"):
            store.append([line(1)])


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"answer": None}, "answer is None"),
        ({"answer": ...}, "it lacks 'answer'"),
        ({"tokens": ...}, "it lacks 'tokens'"),
        ({"ms": "7"}, "ms is '7'"),
    ],
    ids=str,
)
def test_a_line_without_what_every_answer_has_is_one_sentence(tmp_path, changed, why):
    with RunStore(tmp_path, IDENTITY, {}) as store:
        store.append([line(1)])
    broken = {k: v for k, v in (line(2) | changed).items() if v is not ...}
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write(json.dumps(broken) + "\n")
    with pytest.raises(InvalidData, match=rf"samples\.jsonl:2: .*{why}.*delete the line"):
        RunStore(tmp_path, IDENTITY, {})


def result(task="pope", strategy="greedy"):
    head = {"task": task, "data": "d", "split": "random", "strategy": strategy}
    return {"runs": [head | {"n": 1}], "differences": []}


@pytest.mark.parametrize("damaged", ["", '{"runs": [{"ta', "[]", "\0\0"])
def test_damaged_results_are_made_anew(tmp_path, damaged):
    with RunStore(tmp_path, IDENTITY, {}) as store:
        store.append([line(1)])
        store.write_results(result())
        (tmp_path / "results.json").write_text(damaged)
    with RunStore(tmp_path, IDENTITY, {}) as store:
        assert store.write_results(result()) == result()
        assert json.loads((tmp_path / "results.json").read_text()) == result()
        store.append([line(1, "vcd")])
        (tmp_path / "results.json").write_text(damaged)
        with pytest.warns(UserWarning, match="did not ask for come back when they are asked for"):
            store.write_results(result())
