"""A new benchmark is one file: another package's is found everywhere, its suite included."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import eval_world as world
from tests.support.processes import environment

ROOT = Path(__file__).parents[2]
BENCHMARK = '''
"""Whether something is red (a test)."""

from halludecode.core.params import param
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.benchmarks.yes_no import YesNoBenchmark


@benchmark("redness")
class Redness(YesNoBenchmark):
    """Is it red? One picture a question."""

    title = "Redness"
    shade: str = param("red", "which red", choices=("red", "crimson"))
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a module of ours in an environment where the other package is installed."""
    site = tmp_path_factory.mktemp("site")
    (site / "their_questions").mkdir()
    (site / "their_questions" / "__init__.py").write_text("")
    (site / "their_questions" / "redness.py").write_text(BENCHMARK)
    info = site / "their_questions-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-questions\nVersion: 1.0\n")
    entry = "[halludecode.benchmarks]\nredness = their_questions.redness\n"
    (info / "entry_points.txt").write_text(entry)

    def call(*words: str, code: int = 0) -> str:
        env = environment(site)
        env.pop("HALLUDECODE_RECORD", None)  # the record is of what is in this repository
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout if code == 0 else done.stderr

    return call


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    """A data folder, and a run on it with the embedded model."""
    root = tmp_path_factory.mktemp("redness")
    questions = []
    for n in range(4):
        world.picture(root / "set" / "images" / f"{n}.png", n)
        asked = {"question_id": n, "image": f"{n}.png", "text": "Is there a dog in the image?"}
        questions.append({**asked, "label": "yes" if n % 2 else "no"})
    world.write_lines(root / "set" / "redness.jsonl", questions)
    run(
        *("halludecode", "eval", "--model", "testbed", "--tasks", "redness(shade=crimson)"),
        *("--strategy", "greedy", "--strategy", "vcd", "--data", str(root / "set")),
        *("--output", str(root / "run")),
    )
    return root


def test_it_is_listed(run):
    listed = {
        row["name"]: row for row in json.loads(run("halludecode", "list", "--tasks", "--json"))
    }
    assert listed["redness"]["metrics"] == ["accuracy"]
    assert "which red" in run("halludecode", "list", "redness")


def test_eval_scores_and_records_it(made):
    results = json.loads((made / "run" / "results.json").read_text())
    assert [(e["task"], e["n"]) for e in results["runs"]] == [("redness", 4)] * 2
    assert {"accuracy", "f1", "yes_ratio"} <= results["runs"][0]["metrics"].keys()
    assert json.loads((made / "run" / "run.json").read_text())["redness"] == {"shade": "crimson"}


def test_compare_and_report_show_it(run, made):
    compared = json.loads(run("halludecode", "compare", str(made / "run"), "--json"))
    assert [gap["task"] for gap in compared["differences"]] == ["redness"]
    assert "yes_ratio" in compared["differences"][0]["controls"]
    assert "REDNESS on set" in run("halludecode", "report", str(made / "run"))
    page = made / "page.html"
    run("halludecode", "report", str(made / "run"), "--format", "html", "--output", str(page))
    assert "REDNESS" in page.read_text().upper()


def test_score_takes_answers_from_elsewhere(run, made):
    answers = made / "answers.jsonl"
    world.write_lines(answers, [{"question_id": n, "answer": "No."} for n in range(4)])
    words = ("halludecode", "score", "--task", "redness", "--predictions", str(answers))
    scored = json.loads(run(*words, "--annotations", str(made / "set" / "redness.jsonl"), "--json"))
    assert (scored["task"], scored["n"]) == ("redness", 4)
    assert scored["metrics"]["accuracy"]["value"] == 0.5


def test_a_bad_parameter_is_one_line(run):
    words = ("halludecode", "score", "--task", "redness(shade=blue)", "--predictions", "x")
    assert "shade must be one of red, crimson" in run(*words, code=2)


def test_a_run_is_shown_where_it_is_not_installed(made):
    words = (sys.executable, "-m", "halludecode", "report", str(made / "run"))
    shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "REDNESS on set" in shown.stdout
    words = (sys.executable, "-m", "halludecode", "compare", "--full", str(made / "run"))
    shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "'redness' is not installed here and stands as in results.json" in shown.stdout
    assert "REDNESS, set, n = 4" in shown.stdout
    two = (*words[:-1], f"{made / 'run'}:greedy", f"{made / 'run'}:vcd")
    refused = subprocess.run(two, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "'redness' is not installed here, and its answers cannot be scored" in refused.stderr


def test_a_package_that_cannot_be_loaded_is_told_and_left_out(made, tmp_path):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    groups = ("halludecode.benchmarks", "halludecode.strategies")
    (info / "entry_points.txt").write_text("".join(f"[{g}]\nbroken = broken\n" for g in groups))
    env = environment(tmp_path)
    for words, kind in ((("list", "--tasks"), "task"), (("list",), "strategy")):
        command = (sys.executable, "-m", "halludecode", *words, "--json")
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)
        told = f"{kind} 'broken' of broken cannot be loaded and is left out (ModuleNotFoundError"
        assert done.stderr.count(told) == 1


def test_the_contract_suite_covers_it(run):
    suite = "tests/evals/benchmarks/test_contract.py"
    out = run("pytest", "-q", suite, "-k", "redness", "-p", "no:cacheprovider")
    passed = int(out.split(" passed")[0].split()[-1])
    assert passed >= 18, out[-600:]
