import json

import pytest

from halludecode import testbed
from halludecode.cli import main
from halludecode.testbed.cli import app


@pytest.fixture
def run(capsys):
    def call(*words):
        code = main(["testbed", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_data_are_made(run, tmp_path):
    out_folder = tmp_path / "new" / "set"
    code, out, _ = run("data", "--count", 3, "--split", "broken", "--seed", 7, "--out", out_folder)
    assert code == 0
    about = json.loads((out_folder / "dataset.json").read_text("utf-8"))
    assert (about["count"], about["split"], about["seed"]) == (3, "broken", 7)
    assert about["digest"] == testbed.digest("broken", 3, 7)
    assert about["digest"] in out
    assert len(list((out_folder / "images").iterdir())) == 3


def test_info_is_the_card(run):
    code, out, _ = run("info")
    assert code == 0 and out.strip() == testbed.card().strip()


def test_info_as_json_is_one_document(run):
    code, out, _ = run("info", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["model"] == str(testbed.model_path())
    assert found["stand_in"] is True
    assert set(found["splits"]) == {"train", "iid", "broken", "dev-iid", "dev-broken"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--split", "val"], "no testbed split 'val'"),
        (["--count", 0], "count is 0"),
        (["--count", -1], "count is -1"),
        (["--seed", -1], "seed is -1"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(run, tmp_path, words, told):
    code, out, err = run("data", "--out", tmp_path / "out", *words)
    assert (code, out) == (2, "")
    assert told in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_told(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run("data", "--count", 1, "--out", tmp_path / "file" / "out")
    assert code == 2 and "cannot be written" in err
    code, _, err = run("data", "--count", 1, "--out", tmp_path)
    assert code == 2 and "not empty" in err


def test_out_is_required(run):
    assert run("data", "--count", 1)[0] == 2


def test_help_names_the_commands(run):
    code, out, _ = run()
    assert code == 0 and "data" in out and "info" in out
    assert {command.callback.__name__ for command in app.registered_commands} == {
        "data",
        "info",
        "train",
    }
