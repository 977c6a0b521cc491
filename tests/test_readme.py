"""The README says what is true: its table is current and its code runs."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from halludecode.cli import main
from halludecode.core.errors import InvalidData
from halludecode.core.needs import KINDS
from halludecode.core.registry import STRATEGIES
from tests.support import commands
from tests.support import readme_tables as _readme
from tests.support.processes import environment
from tests.support.readme import TEXT, fences, strategy

ROOT = Path(__file__).parent.parent
COMMANDS = commands.shown("".join(fences("")))


def test_it_can_be_read_in_one_go():
    assert len(TEXT.splitlines()) <= 200


def test_the_tables_are_current():
    record = json.loads((ROOT / _readme.RECORD).read_text(encoding="utf-8"))
    assert _readme.updated(TEXT, record) == TEXT, "run: make record"


def test_the_family_table_names_every_strategy_and_explains_refusals():
    record = json.loads((ROOT / _readme.RECORD).read_text(encoding="utf-8"))
    made = _readme.family_table(record)
    assert set(STRATEGIES.names()) <= {row["strategy"] for row in record}
    for row in record:
        assert row["outcome"] in ("pass", "refused"), f"{row} fails; the table would say so"
        if row["outcome"] == "refused" and not _readme.left_out(row["strategy"]):
            assert _readme._short(row["reason"]) in made


def test_the_family_table_reads_well():
    base = {"engine": "hf", "family": "a", "outcome": "pass", "reason": ""}
    record = [
        {**base, "strategy": "vcd"},
        {**base, "strategy": "var", "outcome": "refused", "reason": "a has no sinks."},
        {**base, "strategy": "vcd", "family": "b", "outcome": "fail"},
    ]
    assert _readme.family_table(record).splitlines() == [
        "| family | hf |",
        "| --- | --- |",
        "| `a` | 1 of 2; not `var` (1) |",
        "| `b` | 0 of 1; **fails**: `vcd` |",
        "",
        "(1) a has no sinks.",
    ]


def test_the_family_table_tells_engines_apart_where_they_differ():
    both = [
        {"engine": engine, "family": "a", "strategy": name, "outcome": outcome, "reason": reason}
        for engine, name, outcome, reason in (
            ("hf", "dola", "pass", ""),
            ("vllm", "dola", "fail", ""),
            ("hf", "opera", "pass", ""),
            ("vllm", "opera", "refused", "vLLM has no beams"),
            ("hf", "pai", "pass", ""),
            ("hf", "var", "refused", "a has no sinks"),
            ("vllm", "var", "refused", "a has no sinks"),
            ("hf", "vcd", "pass", ""),
            ("vllm", "vcd", "pass", ""),
        )
    ]
    assert _readme.family_table(both).splitlines()[2:] == [
        "| `a` | 4 of 5; not `var` (1) | 1 of 4; not `opera` (2), `var` (1); **fails**: `dola` |",
        "",
        "(1) a has no sinks; (2) vLLM has no beams",
    ]
    none = [row | {"outcome": "refused", "reason": "b is not served"} for row in both[1:2]]
    assert "| `b` | not run | no (1) |" in _readme.family_table(
        [*both[:1], none[0] | {"family": "b"}]
    )


def test_the_table_has_a_line_per_strategy():
    lines = _readme.strategy_table().splitlines()
    assert sorted(line.split("`")[1] for line in lines[2:]) == STRATEGIES.names()
    kinds = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]]
    assert kinds == sorted(kinds, key=KINDS.index), "grouped"
    assert len({line.count(" | ") for line in lines}) == 1


def test_a_readme_without_markers_is_refused():
    with pytest.raises(InvalidData, match="strategies:begin"):
        _readme.updated("# Nothing here")


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_shown_is_understood(line, capsys):
    commands.check(line, main, capsys)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)]+)\)", TEXT))))
def test_every_link_leads_somewhere(target):
    assert (ROOT / target).exists()


def run(code, cwd):
    ours = environment(ROOT)  # whatever else is installed
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=cwd, env=ours, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_strategy_shown_is_a_strategy(tmp_path):
    (tmp_path / "shown.py").write_text(strategy(), encoding="utf-8")
    checks = (
        "import shown; from halludecode.catalog import info; i = info('my_vcd'); "
        "print(i.rows, i.off, [p.name for p in i.params])"
    )
    expected = "('main', 'noised') {'alpha': 0.0, 'beta': 0.0} ['alpha', 'beta', 'noise_step']\n"
    assert run(checks, tmp_path) == expected


def test_the_first_example_runs_and_shows_a_difference(tmp_path):
    lines = run(fences("python")[0], tmp_path).splitlines()
    greedy, vcd, both = (line.split(" -> ") for line in lines[::2])
    assert len(lines) == 6
    assert "var(p=0.6," in both[0]
    assert all("rows it needed: ('main'," in line for line in lines[1::2])
    assert greedy[1] != vcd[1]
    assert lines[3].split("changed: ")[1] != "0"


def test_the_generate_command_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (line,) = (line for line in COMMANDS if line.startswith("halludecode generate "))
    assert main(shlex.split(line)[1:]) == 0
    assert capsys.readouterr().out.startswith("the image features")
    assert (tmp_path / "why.html").is_file()
