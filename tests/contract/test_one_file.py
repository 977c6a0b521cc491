"""A new method is one file: another package's strategy is found everywhere, the laws included.

So are what `make strategy` writes and what README.md shows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from halludecode.core.errors import InvalidParameter
from tests.support import readme, scaffold
from tests.support.processes import environment

ROOT = Path(__file__).parents[2]
METHOD = '''\
"""Louder: trust the first choice more (a test, arXiv:0000.00000).

z = (1 + by) * l
"""

from halludecode.core.strategy import Paper, Strategy, param, strategy

PAPER = Paper("0000.00000", "Title", "Last, First", "Venue", 2026)


@strategy("louder", paper=PAPER, off={"by": 0.0})
class Louder(Strategy):
    """Scale the logits."""

    by: float = param(1.0, "by how much", ge=0)

    def combine(self, step):
        """Scaled."""
        return (1 + self.by) * step["main"]
'''
NEW = "new_strategy_of_24_signs"
FILES = {"louder": METHOD, NEW: scaffold.text(NEW), "my_vcd": readme.strategy()}
EVERY = pytest.mark.parametrize("name", FILES)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a module of ours in an environment where the other package is installed."""
    site = tmp_path_factory.mktemp("site")
    (site / "their_methods").mkdir()
    (site / "their_methods" / "__init__.py").write_text("")
    for name, text in FILES.items():
        (site / "their_methods" / f"{name}.py").write_text(text)
    info = site / "their_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-methods\nVersion: 1.0\n")
    entries = [f"{name} = their_methods.{name}" for name in FILES]
    (info / "entry_points.txt").write_text("\n".join(["[halludecode.strategies]", *entries]))

    def call(*words: str) -> str:
        env = environment(site)
        env.pop("HALLUDECODE_RECORD", None)  # the record is of what is in this repository
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    return call


def test_it_is_listed_with_what_it_needs(run):
    listed = {row["name"]: row for row in json.loads(run("halludecode", "list", "--json"))}
    assert listed["louder"]["rows"] == ["main"]
    assert "by how much" in run("halludecode", "list", "louder")


def test_the_command_line_and_the_engine_run_it(run, tmp_path):
    Image.new("RGB", (96, 96), (200, 60, 30)).save(tmp_path / "picture.png")
    said = run(
        *(
            "halludecode",
            "generate",
            "--model",
            "testbed",
            "--image",
            str(tmp_path / "picture.png"),
        ),
        *("--prompt", "Describe the image.", "--strategy", "louder(by=2)", "--json"),
    )
    assert json.loads(said)["strategy"] == "louder(by=2.0)"


@EVERY
def test_it_passes_the_laws(run, name):
    suite = "tests/contract/test_contract.py"
    of_it = f"{name} and (llava- or short or bounds)"
    out = run("pytest", "-q", suite, "-k", of_it, "-p", "no:cacheprovider")
    passed = int(out.split(" passed")[0].split()[-1])
    assert passed >= 15, out[-600:]


@EVERY
@pytest.mark.parametrize("how", [("check",), ("format", "--check")])
def test_it_passes_lint(name, how):
    place = f"halludecode/strategies/{name}.py"
    command = (sys.executable, "-m", "ruff", *how, "--stdin-filename", place, "-")
    done = subprocess.run(command, cwd=ROOT, input=FILES[name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_make_strategy_refuses_names_that_cannot_be():
    for name in ("", "My", "two words", "_x", "class", "a" * 25):
        with pytest.raises(InvalidParameter, match="lower-case letters"):
            scaffold.text(name)
    with pytest.raises(InvalidParameter, match="there is such a strategy"):
        scaffold.text("vcd")


def test_make_strategy_writes_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaffold, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["scaffold", NEW])
    scaffold.main()
    assert (tmp_path / f"{NEW}.py").read_text() == FILES[NEW]
    assert f"make laws NAME={NEW}" in capsys.readouterr().out
