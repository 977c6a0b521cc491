"""A new method is one file: another package's strategy is found everywhere, the laws included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
METHOD = '''
"""Louder: trust the first choice more (a test, arXiv:0000.00000).

    z = (1 + by) * l
"""

from halludecode.core.strategy import Strategy, param, strategy


@strategy("louder", off={"by": 0.0})
class Louder(Strategy):
    """Scale the logits."""

    by: float = param(1.0, "by how much", ge=0)

    def combine(self, step):
        """Scaled."""
        return (1 + self.by) * step["main"]
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a module of ours in an environment where the other package is installed."""
    site = tmp_path_factory.mktemp("site")
    (site / "their_methods").mkdir()
    (site / "their_methods" / "__init__.py").write_text("")
    (site / "their_methods" / "louder.py").write_text(METHOD)
    info = site / "their_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-methods\nVersion: 1.0\n")
    entry = "[halludecode.strategies]\nlouder = their_methods.louder\n"
    (info / "entry_points.txt").write_text(entry)

    def call(*words: str) -> str:
        paths = [str(site), os.environ.get("PYTHONPATH", "")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
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


def test_the_contract_suite_covers_it(run):
    suite = "tests/contract/test_contract.py"
    out = run("pytest", "-q", suite, "-k", "louder and llava-", "-p", "no:cacheprovider")
    passed = int(out.split(" passed")[0].split()[-1])
    assert passed >= 12, out[-600:]
