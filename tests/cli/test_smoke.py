"""The command as users start it: a process of its own, on the embedded model."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.support import LONG

COMMAND = (sys.executable, "-m", "halludecode")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    from halludecode.testbed import write_dataset

    folder = write_dataset(tmp_path_factory.mktemp("smoke") / "scenes", "iid", 1)
    return min(folder.rglob("*.png"))


def test_one_answer_as_one_json_document(scene):
    words = ("generate", "--model", "testbed", "--image", scene, "--strategy", "vcd", "--json")
    prompt = ("--prompt", "Please describe this image in detail.", "--max-new-tokens", "6")
    done = subprocess.run([*COMMAND, *words, *prompt], capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert len(document["token_ids"]) == 6
    assert document["finish_reason"] == "length"
    assert document["rows"] == ["main", "noised"]
    assert document["strategy"].startswith("vcd(alpha=1.0,")


def test_a_closed_pipe_is_quiet():
    process = subprocess.Popen(
        [*COMMAND, "list", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.wait(timeout=LONG) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


def test_an_interrupted_run_keeps_whole_lines(tmp_path):
    words = ("eval", "--model", "testbed", "--tasks", "chair", "--strategy", "greedy")
    process = subprocess.Popen(
        [*COMMAND, *words, "--batch-size", "2", "--output", tmp_path / "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore interrupts, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    samples = tmp_path / "run" / "samples.jsonl"
    deadline = time.monotonic() + LONG
    while process.poll() is None and time.monotonic() < deadline:
        if samples.exists() and samples.read_bytes().count(b"\n") > 2:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.1)
    out, err = process.communicate(timeout=LONG)
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "interrupted; what is done is kept"
    lines = samples.read_text(encoding="utf-8").splitlines()
    assert all(json.loads(line)["task"] == "chair" for line in lines)
