from pathlib import Path

import pytest

from halludecode.cli.config import KINDS, merge
from halludecode.core.errors import InvalidData
from halludecode.core.spec import parse


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_whole_run_from_a_file(config):
    run = merge(
        {},
        config(
            "model: testbed\n"
            "engine: {name: hf, batch-size: 8, dtype: float32}\n"
            'strategies: [greedy, vcd, "apc_only+vcd(alpha=0.5)"]\n'
            "tasks: [pope, chair]\n"
            "data: testbed-iid, testbed-broken\n"
            "seeds: [42]\n"
            "prompt-preset: llava-1.5\n"
            "output: runs/x\n"
        ),
    )
    assert run["model"] == "testbed"
    assert (run["engine"], run["batch_size"], run["dtype"]) == ("hf", 8, "float32")
    assert run["strategy"] == ["greedy", "vcd", "apc_only+vcd(alpha=0.5)"]
    assert run["tasks"] == ["pope", "chair"]
    assert run["data"] == ["testbed-iid", "testbed-broken"]
    assert (run["seed"], run["prompt_preset"], run["limit"]) == (42, "llava-1.5", None)
    assert set(run) == set(KINDS)


def test_the_run_that_comes_with_the_repository():
    run = merge({}, Path(__file__).parents[2] / "configs" / "runs" / "testbed.yaml")
    assert (run["model"], run["engine"], run["tasks"]) == ("testbed", "hf", ["pope", "chair"])
    assert [part[0].name for part in map(parse, run["strategy"])] == run["strategy"]


def test_flags_win(config):
    path = config("model: a\nlimit: 10\nstrategy: greedy\nfresh: true\n")
    run = merge({"model": "b", "limit": None, "strategy": ["vcd"], "fresh": None}, path)
    assert (run["model"], run["limit"], run["strategy"], run["fresh"]) == ("b", 10, ["vcd"], True)


def test_one_key_maps_are_strategies(config):
    run = merge({}, config("strategies:\n- greedy\n- vcd: {alpha: 0.25}\n"))
    assert run["strategy"][0] == "greedy"
    assert run["strategy"][1].startswith("vcd(alpha=0.25,")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: x", "unknown option 'modle'. Did you mean 'model'"),
        ("limit: ten", "limit must be int, not 'ten'"),
        ("limit: true", "limit must be int, not True"),
        ("seeds: [1, x]", "--seeds 'x': write 0..4"),
        ("seed: 1\nseeds: 0..2", "Both seed and seeds"),
        ("strategy: vcd\nstrategies: [greedy]", "gives 'strategy' again"),
        ("engine: {name: hf, colour: red}", "unknown option 'colour'"),
        ("- a\n- b", "expected options"),
        ("model: [", "run.yaml:1: not YAML"),
        ("model: a\n\tb: 2", "run.yaml:2: not YAML"),
    ],
)
def test_a_bad_file_says_what_and_where(config, text, message):
    with pytest.raises(InvalidData, match=message):
        merge({}, config(text))


def test_a_missing_file(tmp_path):
    with pytest.raises(InvalidData, match="cannot be read"):
        merge({}, tmp_path / "none.yaml")


def test_columns_are_pairs_or_a_mapping(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("columns: {answer: reply}\n")
    assert merge({}, path)["columns"] == {"answer": "reply"}
    assert merge({"columns": ["question=asked", "image=a=b"]}, path)["columns"] == {
        "question": "asked",
        "image": "a=b",
    }
    assert merge({}, None)["columns"] is None
    with pytest.raises(InvalidData, match="--columns 'answer': give OURS=THEIRS"):
        merge({"columns": ["answer"]}, None)


def test_seeds_are_a_list_and_a_single_one_is_the_seed(tmp_path):
    assert merge({"seeds": "0..3"}, None)["seeds"] == [0, 1, 2, 3]
    assert merge({"seeds": "0,7, 9"}, None)["seeds"] == [0, 7, 9]
    alone = merge({"seeds": "4"}, None)
    assert (alone["seed"], alone["seeds"]) == (4, [])
    path = tmp_path / "run.yaml"
    path.write_text("seeds: [1, 2, 3]\n")
    assert merge({}, path)["seeds"] == [1, 2, 3]
