"""A run killed ten times at random moments and resumed ends as the unbroken one, on the testbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import LONG
from tests.support import eval_world as world

REPO = Path(__file__).parents[3]
KILLS = 10


def launch(folder: str, seed: int) -> None:
    """Runs once unbroken and once killed again and again; every run is a process of its own.

    The model is loaded once and the processes are forks, so that ten of them take seconds.
    """
    import halludecode
    from halludecode.evals.benchmarks.chair import object_words as words
    from halludecode.evals.runner import batching as batches
    from halludecode.evals.runner.run import run_eval
    from halludecode.testbed import write_dataset

    batches.BATCH["hf"] = 4
    source = write_dataset(Path(folder) / "set", "iid", 3)
    engine = halludecode.load("testbed")
    engine.describe()  # what every process would do before its first answer
    words.reader().read("Two dogs.")

    def start(output: str) -> int:
        child = os.fork()
        if child:
            return child
        run_eval(
            engine,
            tasks=["pope", "chair", "mme"],
            strategies=["greedy", "vcd"],
            data=[source],
            max_new_tokens=12,
            output=Path(folder) / output,
            progress=False,
        )
        os._exit(0)

    ends, began = [], time.perf_counter()
    child = start("whole")
    answered = _grown(Path(folder) / "whole" / "samples.jsonl", 0) - began
    ends.append(os.waitpid(child, 0)[1])
    took = time.perf_counter() - began - answered
    draw, samples = random.Random(seed), Path(folder) / "killed" / "samples.jsonl"
    for number in range(KILLS):
        size = samples.stat().st_size if samples.exists() else 0
        child = start("killed")
        if number % 5 == 0:  # at any moment before the first answer, the others after it
            _grown(samples, size, within=draw.uniform(0, answered))
        else:
            _grown(samples, size)
            size = samples.stat().st_size
            _grown(samples, size, within=draw.uniform(0, took / 50))  # all ten before the end
        os.kill(child, signal.SIGKILL)
        ends.append(os.waitpid(child, 0)[1])
        if samples.exists() and draw.random() < 0.5:  # as if it had come amid a line
            os.truncate(samples, max(0, samples.stat().st_size - draw.randrange(200)))
    ends.append(os.waitpid(start("killed"), 0)[1])
    (Path(folder) / "ends.json").write_text(json.dumps(ends))


def _grown(path: Path, size: int, within: float | None = None) -> float:
    """Waits until a file is longer than ``size``, or for so many seconds; the moment it was."""
    end = time.perf_counter() + (LONG if within is None else within)
    while not (path.exists() and path.stat().st_size > size):
        if time.perf_counter() > end:
            if within is not None:
                break
            raise TimeoutError(f"{path} does not grow")
        time.sleep(0.001)
    return time.perf_counter()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a process")
def test_ten_kills_and_resumes_end_as_the_unbroken_run(tmp_path):
    call = f"from tests.evals.runner.test_kills import launch; launch({str(tmp_path)!r}, 7)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # forks do not carry a pool of threads
    done = subprocess.run(
        [sys.executable, "-c", call], cwd=REPO, env=environment, timeout=LONG, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    ends = json.loads((tmp_path / "ends.json").read_text())
    assert ends == [0, *[signal.SIGKILL] * KILLS, 0]
    results, lines = {}, {}
    for name in ("whole", "killed"):
        results[name] = world.timeless(json.loads((tmp_path / name / "results.json").read_text()))
        written = world.lines(tmp_path / name / "samples.jsonl")
        lines[name] = [{k: v for k, v in line.items() if k != "ms"} for line in written]
        assert world.lines(tmp_path / name / "errors.jsonl") == []
    assert results["killed"] == results["whole"]
    assert sorted(map(json.dumps, lines["killed"])) == sorted(map(json.dumps, lines["whole"]))
    assert len(json.loads((tmp_path / "killed" / "run.json").read_text())["resumed"]) >= 8
