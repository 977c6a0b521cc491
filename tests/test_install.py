"""The built wheel by itself: what it holds, how light its import is, what its commands say."""

import json
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from halludecode import __version__
from tests.support import LONG

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "vllm", "datasets", "nltk", "pycocotools", "scipy", "matplotlib")


def run(*command, cwd):
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=LONG
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("halludecode-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel, which sees this one's dependencies but not its checkout."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False)
    scripts = folder / "venv" / "bin"
    python = scripts / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python),
        *("install", "-q", "--no-deps", wheel),
        cwd=folder,
    )
    site = Path(
        run(python, "-c", "import sysconfig as s; print(s.get_path('purelib'))", cwd=folder).strip()
    )
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return scripts


def test_the_wheel_holds_what_the_package_reads(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {"halludecode/py.typed"}
    for folder in ("halludecode", "configs/strategies"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(ROOT).as_posix()
                wanted.add(name if name.startswith("halludecode/") else f"halludecode/{name}")
    assert wanted <= names
    assert any(name.startswith("halludecode/testbed/assets/") for name in names)
    assert any(name.startswith("halludecode/evals/benchmarks/chair/data/") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith("tests/")]


def test_the_version_is_stated_once(wheel):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"] and "version" not in project
    assert wheel.name.startswith(f"halludecode-{__version__}-")
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text(), re.M)
    for path in (ROOT / "halludecode").rglob("*.py"):
        stated = __version__ in path.read_text(encoding="utf-8")
        assert stated == (path == ROOT / "halludecode" / "__init__.py"), path
    latest = re.search(r"^## (\S+) \((.+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert latest[1] == __version__ and re.fullmatch(r"\d{4}-\d\d-\d\d", latest[2])


def test_import_is_light(installed, tmp_path):
    code = (
        "import sys, time; start = time.process_time(); import halludecode; "
        "took = time.process_time() - start; "
        f"print(took, halludecode.__file__, *[n for n in {HEAVY!r} if n in sys.modules])"
    )
    took, where, *heavy = zip(
        *(run(installed / "python", "-c", code, cwd=tmp_path).split() for _ in range(3)),
        strict=True,
    )
    assert str(ROOT) not in where[0]
    assert heavy == []
    assert min(map(float, took)) < 0.3


def test_its_commands_run(installed, tmp_path):
    assert "Commands" in run(installed / "halludecode", "--help", cwd=tmp_path)
    listed = json.loads(run(installed / "halludecode", "list", "--json", cwd=tmp_path))
    assert "vcd" in [entry["name"] for entry in listed]
    by_module = run(installed / "python", "-m", "halludecode", "--version", cwd=tmp_path)
    assert by_module == run(installed / "halludecode", "--version", cwd=tmp_path)
    found = json.loads(run(installed / "halludecode", "doctor", "--json", cwd=tmp_path))
    assert found["engines"]["hf"]["usable"]


def test_vllm_would_find_the_repair(installed, tmp_path):
    code = (
        "from importlib.metadata import entry_points; "
        "found = entry_points(group='vllm.platform_plugins')['halludecode']; print(found.load()())"
    )
    assert run(installed / "python", "-c", code, cwd=tmp_path) == "None\n"
