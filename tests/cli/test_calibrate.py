"""``halludecode calibrate`` on the testbed, with one picture, and its complaints."""

import json

import pytest

import halludecode
from halludecode.calibration.store import ArtifactStore
from halludecode.core.spec import get
from halludecode.evals.presets import preset_for

QUESTION = "Is there a car in the image?"


@pytest.fixture
def calibrate(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("HALLUDECODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HALLUDECODE_ARTIFACTS", str(tmp_path / "own"))

    def run(*words):
        return cli("calibrate", "--model", "testbed", "--limit", "1", *words)

    return run


def ask(cli, tmp_path, spec):
    (picture,) = (tmp_path / "cache").rglob("images/*.png")
    words = preset_for(None, "testbed", ["pope"])[1].prompt("pope", QUESTION)
    command = ("generate", "--model", "testbed", "--image", picture, "--prompt", words, "--json")
    return cli(*command, "--strategy", spec)


@pytest.mark.parametrize("name", ["zerotuning", "lacing"])
def test_an_artifact_is_made_kept_and_used(calibrate, cli, tmp_path, name):
    made = calibrate(name)
    assert made.code == 0, made.err
    (path,) = (tmp_path / "own").iterdir()
    lines = made.out.splitlines()
    assert lines[0].startswith(f"{name}: ")
    assert lines[1].startswith("from 9 samples of testbed-dev-iid (9 with answers, digest ")
    assert lines[2] == f"saved {path}"
    assert lines[3] == f'use it: halludecode eval --strategy "{name}" ...'
    assert lines[4] == f'use this very one: --strategy "{name}(pin={path.stem})"'
    assert "%" in made.err, "progress goes to standard error"
    for spec in (name, f"{name}(pin={path.stem})"):
        answer = ask(cli, tmp_path, spec)
        assert answer.code == 0, answer.err
        assert f"pin={path.stem}" in json.loads(answer.out)["strategy"]


def test_var_keeps_the_sinks_it_found_and_uses_them(calibrate, cli, tmp_path):
    made = calibrate("var", "--model", "testbed-planted")
    assert made.code == 0, made.err
    assert made.out.startswith("var: sinks: dims {")
    assert "from 9 samples of testbed-dev-iid" in made.out
    engine = halludecode.load("testbed-planted")
    (path,) = (tmp_path / "own").iterdir()
    (told,) = engine.plan("var").describe()["artifacts"].values()
    assert told["name"] == path.stem
    assert made.out.startswith(f"var: {told['notes'][0]}")


def test_without_the_artifact_the_command_is_named_and_it_is_this_one(calibrate, cli, tmp_path):
    calibrate("var", "--out", tmp_path / "elsewhere")  # makes the pictures
    refused = ask(cli, tmp_path, "lacing")
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    command = refused.err.split("`")[1]
    assert command == "halludecode calibrate --model testbed lacing"
    assert cli(*command.split()[1:], "--limit", "1").code == 0
    assert ask(cli, tmp_path, "lacing").code == 0


def test_parameters_and_folder_reach_the_artifact(calibrate, tmp_path):
    out = tmp_path / "elsewhere"
    made = calibrate("var(tau=3.0)", "--out", out)
    assert made.code == 0, made.err
    assert f"HALLUDECODE_ARTIFACTS={out} halludecode eval" in made.out
    assert "use this very one" not in made.out, "var has no pin"
    (path,) = out.iterdir()
    store = ArtifactStore(out)
    assert store.find(get("var", tau=3.0), _model(path)) is not None
    assert store.find(get("var", tau=4.0), _model(path)) is None


def _model(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()["model"]


def test_json_is_one_document(calibrate, tmp_path):
    made = calibrate("lacing", "--json", "--seed", "3")
    document = json.loads(made.out)
    assert list(document) == ["strategy", "path", "name", "digest", "source", "notes"]
    assert document["source"].endswith("seed 3")
    assert document["name"].endswith(document["digest"][:12])
    (note,) = document["notes"]
    assert note.startswith("100 vectors, 4 steps, loss ")


def test_models_without_data_use_built_in_prompts_and_lacing_says_what_it_needs(
    cli, family_engine, tmp_path
):
    model = family_engine("llava").model_id
    command = ("calibrate", "--model", model, "--out", tmp_path)
    made = cli(*command, "zerotuning")
    assert made.code == 0, made.err
    assert "minus mean entropy" in made.out
    assert "from 8 built-in prompts (0 with answers" in made.out
    refused = cli(*command, "lacing")
    assert refused.code == 2
    assert "give --data a folder with annotations/captions*.json" in refused.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["vdc"], "Did you mean 'vcd'"),
        (["vcd"], "vcd: give one strategy that can be calibrated: "),
        (["var+lacing"], "var+lacing: give one strategy"),
        (["lacing(scale=-1)"], "scale must be >= 0"),
        (["lacing", "--data", "absent/folder/here"], "no such folder, and not a hub id"),
        (["lacing", "--images", "here"], "--images and --annotations go together"),
        (["lacing", "--prompt-preset", "none"], "No prompt preset 'none'"),
        (["lacing", "--limit", "0"], "calibrate --help"),
        ([], "calibrate --help"),
    ],
)
def test_bad_input_is_one_line(calibrate, engines, words, told):
    made = calibrate(*words)
    assert made.code == 2
    assert made.out == ""
    assert told in made.err
    assert made.err.count("\n") == 1
    assert engines == [], "no model was loaded for it"
