"""What a command imports before it has said what is wrong, counted and not timed."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "vllm", "scipy", "matplotlib", "datasets", "pandas")
EVAL = "eval --model testbed --tasks pope --output {tmp}/run --strategy"
# Command lines that need nothing of these, each with its exit code and a word it must say.
LIGHT = {
    "--help": (0, "eval"),
    "eval --help": (0, "--tasks"),
    "list": (0, "vcd"),
    "list vcd": (0, "2311.16922"),
    "list --tasks": (0, "chair"),
    "cite vcd": (0, "@"),
    "testbed info": (0, "testbed"),
    f"{EVAL} vdc --dry-run": (2, "Unknown strategy 'vdc'"),
    f"{EVAL} vcd(alpha=-3)": (2, "alpha must be >= 0"),
    f"{EVAL} vcd --tasks popo": (2, "Unknown task 'popo'"),
    f"{EVAL} vcd --data /nowhere": (2, "/nowhere: no such folder"),
    f"{EVAL} vcd --data testbed-iid --images /nowhere": (2, "/nowhere: no such folder of pictures"),
    f"{EVAL} vcd --prompt-preset no": (2, "No prompt preset 'no'"),
    f"{EVAL} vcd --engine no": (2, "Unknown engine 'no'"),
    f"{EVAL} vcd --answers no": (2, "answers 'no'"),
    f"{EVAL} vcd --extra-rows no": (2, "extra_rows='no'"),
    f"{EVAL} vcd --dtype no": (2, "dtype='no'"),
    f"{EVAL} vcd --temperature -1": (2, "temperature must be"),
    f"{EVAL} vcd --output {{tmp}}/file/run": (2, "/file is a file"),
    f"{EVAL} vcd --model /nowhere": (2, "/nowhere: no such model folder"),
    "generate --model testbed --prompt x --strategy vdc": (2, "Unknown strategy 'vdc'"),
    "generate --model testbed --prompt x --image /nowhere.png": (2, "no such image file"),
    "generate --model /nowhere --prompt x": (2, "no such model folder"),
    "heads --model testbed --metric no --output {tmp}/h": (2, "Unknown metric 'no'"),
    "heads --model testbed --images /nowhere --output {tmp}/h": (2, "/nowhere: no such folder"),
    "heads --model testbed --data /nowhere --output {tmp}/h": (2, "/nowhere: no such folder"),
    "heads --model testbed --images . --annotations /nowhere --output {tmp}/h": (2, "not exist"),
    "sinks --model testbed --data /nowhere --output {tmp}/s": (2, "/nowhere: no such folder"),
    "sinks --model /nowhere --output {tmp}/s": (2, "no such model folder"),
    "calibrate --model /nowhere zerotuning": (2, "no such model folder"),
    "calibrate --model testbed zerotuning --data /nowhere": (2, "/nowhere: no such folder"),
    "sweep --model testbed --tasks pope --output {tmp}/w --strategy vcd(alpha={{1,2}}) --dev 0.3 "
    "--data /nowhere": (2, "/nowhere: no such folder"),
    "serve --model testbed --strategy vdc": (2, "Unknown strategy 'vdc'"),
    "serve --model testbed --extra-rows no": (2, "extra_rows='no'"),
    "serve --model /nowhere": (2, "no such model folder"),
    "doctor --verify /nowhere": (2, "no such model folder"),
    "doctor --verify testbed --strategy vdc": (2, "Unknown strategy 'vdc'"),
    "demo --image /nowhere.png": (2, "/nowhere.png: the picture cannot be opened"),
    "compare /nowhere": (2, "no such run folder"),
    "report /nowhere --format no": (2, "No report format 'no'"),
    "score --task no --predictions /nowhere": (2, "Unknown task 'no'"),
}
EACH = """
import contextlib, io, json, sys
from halludecode.cli import main
told = []
for words in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(words)
    told.append([code, said.getvalue(), [name for name in sys.argv[1:] if sys.modules.get(name)]])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """All commands in one process, after the listing has been asked for once."""
    tmp = tmp_path_factory.mktemp("start")
    (tmp / "file").write_text("")
    lines = [command.format(tmp=tmp).split(" ") for command in LIGHT]
    quiet = {**os.environ, "HALLUDECODE_CACHE": str(tmp / "cache"), "COLUMNS": "120"}
    listed, answers = (
        subprocess.run(
            [sys.executable, "-c", EACH, *HEAVY],
            input=json.dumps(asked), env=quiet, capture_output=True, text=True, check=True,
        ).stdout
        for asked in ([["list"]], lines)
    )  # fmt: skip
    first = json.loads(listed)[0]
    assert first[0] == 0 and "torch" in first[2]  # it was traced, so that the rest can be told
    assert first[1] == json.loads(answers)[list(LIGHT).index("list")][1]
    return dict(zip(LIGHT, json.loads(answers), strict=True))


@pytest.mark.parametrize("command", LIGHT)
def test_what_needs_no_model_imports_nothing_slow(told, command):
    code, said, heavy = told[command]
    assert (code, heavy) == (LIGHT[command][0], []), said
    assert LIGHT[command][1] in said
