import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import typer

from halludecode.cli import doctor as _doctor


@pytest.fixture
def module(monkeypatch):
    def put(name, **names):
        fake = ModuleType(name)
        vars(fake).update(names)
        monkeypatch.setitem(sys.modules, name, fake)

    return put


@pytest.mark.parametrize(("usable", "code"), [(True, 0), (False, 1)])
def test_doctor_exits_by_the_hf_engine(cli, monkeypatch, usable, code):
    found = {
        "versions": {"python": "3.11", "torch": None},
        "devices": [{"name": "cpu", "detail": "2 cores"}],
        "engines": {
            "hf": {"usable": usable, "provides": ["rows"], "shows": ["heads: mass"], "why": None}
        },
        "builds": {},
        "chair": {"path": "tables", "why": "tables"},
        "missing": [{"what": "scipy", "fix": "pip install scipy"}],
        "notes": ["a note"],
    }
    monkeypatch.setattr(_doctor, "report", lambda: found)
    result = cli("doctor")
    assert result.code == code
    for part in ("2 cores", "fix: pip install scipy", "a note", "usable", "heads: mass"):
        assert part in result.out
    assert json.loads(cli("doctor", "--json").out) == found


def test_demo_passes_its_options_on(cli, module):
    calls = []

    def run_demo(*given):
        calls.append(given)
        print("one table")
        return SimpleNamespace(failed=len(calls) - 1)

    module("halludecode.evals.demo", run_demo=run_demo)
    result = cli("demo", "--output", "runs/d", "--image", "cat.jpg")
    assert (result.code, result.out) == (0, "one table\n")
    assert cli("demo").code == 1  # a sample failed
    assert calls == [(Path("runs/d"), Path("cat.jpg")), (Path("runs/demo"), None)]


def test_testbed_words_go_to_its_own_application(cli, module):
    seen = []
    app = typer.Typer()

    @app.command()
    def data(output: Path, seed: int = 0) -> None:
        seen.append((output, seed))

    @app.command()
    def info() -> int:
        return 1

    module("halludecode.testbed.cli", app=app)
    assert cli("testbed", "data", "out", "--seed", "3").code == 0
    assert seen == [(Path("out"), 3)]
    assert cli("testbed", "info").code == 1
    assert "--seed" in cli("testbed", "data", "--help").out
    wrong = cli("testbed", "data", "--colour")
    assert wrong.code == 2
    assert wrong.err.count("\n") == 1
