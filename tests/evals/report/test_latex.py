"""A run as LaTeX: bold by interval, controls as footnotes, text that LaTeX takes."""

import re
import shutil
import subprocess

import pytest

from halludecode.core.errors import InvalidParameter
from halludecode.evals.report.latex import escape, table
from halludecode.evals.report.render import render
from halludecode.evals.results.sections import Section
from halludecode.evals.runner.run import run_eval
from tests.support import eval_world as world


def entry(value):
    return {"n": 9, "metrics": {"accuracy": {"value": value, "low": value - 0.01, "high": 0.99}}}


def gap(value, low, high, **controls):
    d = {"value": value, "low": low, "high": high, "p": 0.01, "p_holm": 0.01}
    whole = {"task": "pope", "data": "a_b", "split": None, "n": 9}
    return {**whole, "metrics": {"accuracy": d}, "controls": controls}


def test_bold_is_by_interval_and_a_letter_points_to_what_controls_say():
    shift = {"yes_ratio": {"verdict": "only a yes-ratio shift"}}
    part = Section(
        "pope",
        "a_b",
        {("greedy", None): entry(0.8), ("m3id", None): entry(0.9), ("vcd", None): entry(0.85)},
        {("m3id", None): gap(0.1, -0.01, 0.2), ("vcd", None): gap(0.05, 0.01, 0.09, **shift)},
    )
    text = table(part, {})
    assert r"\toprule" in text and r"POPE on a\_b" in text
    assert r"m3id & 90.0 {\scriptsize [89.0, 99.0]}" in text  # the largest number is not bold
    assert r"vcd & \textbf{85.0} {\scriptsize" in text
    assert r"$+5.0^{a}$" in text and r"$^{a}$ Only a yes-ratio shift." in text


def test_special_characters():
    assert escape("50% of a_b & {c}\\") == r"50\% of a\_b \& \{c\}\textbackslash{}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("latex")
    source = world.folder(tmp / "set_1")
    options = {"tasks": ["pope", "chair"], "strategies": ["greedy", "vcd"], "data": [source]}
    options |= {"prompt_preset": "opera", "progress": False}
    run_eval(world.FakeEngine(), **options, output=tmp / "run")
    return render([tmp / "run"], "latex", tmp / "paper")


def test_the_folder_of_a_paper(folder):
    methods, bib = ((folder / name).read_text() for name in ("methods.tex", "references.bib"))
    cited = set(re.findall(r"\\cite\{(\w+)\}", methods))
    assert cited == {"vcd", "pope", "chair"} == set(re.findall(r"@\w+\{(\w+),", bib))
    for word in ("torch 0", "halludecode", "SHA-256", "fake", "weights", "opera"):
        assert word in methods
    for figure in ("pope-set-1", "chair-set-1"):
        assert (folder / "figures" / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
        assert "<svg" in (folder / "figures" / f"{figure}.svg").read_text()
        assert f"figures/{figure}.pdf" in (folder / "figures.tex").read_text()
    tables = (folder / "tables.tex").read_text()
    assert tables.count(r"\begin{table}") == tables.count(r"\end{table}") == 2
    assert tables.count("{") == tables.count("}")


def test_latex_is_a_folder(folder):
    with pytest.raises(InvalidParameter, match="--output FOLDER"):
        render([folder.parent / "run"], "latex")


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_it_compiles(folder):
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "paper.pdf").stat().st_size > 10_000
