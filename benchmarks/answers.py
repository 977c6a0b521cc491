"""What 10,000 answers of every paired, relational and judged benchmark cost.

    .venv/bin/python benchmarks/answers.py [--only rbench rope] [--output runs/bench/answers.md]

Questions are a benchmark's own examples, copied under other ids and pictures until they make 10,000
samples; of the answers of two systems 70 % are right and the rest are other questions' answers.
``import`` of both files and ``compare --json``, of the run folder and of the files, are commands of
their own: processor time, user and system, start and imports included. A judge answers at once, in
the process: its own time is not ours. Beside it stands what this machine needs for 20 million
additions in Python, a number to read the others by: with other work on the machine both grow.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from halludecode.evals.benchmarks.base import Benchmark
from halludecode.evals.benchmarks.chair.scoring import load_truth
from halludecode.evals.benchmarks.judged import JudgedBenchmark
from halludecode.evals.benchmarks.registry import BENCHMARKS
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample

ANSWERS, TARGET = 10_000, 3.0  # seconds
RIGHT = 0.7
COMMAND = """
import sys
from halludecode.__main__ import main
from halludecode.evals.data import judge
replies = {replies!r}
judge.Judge.ask = lambda self, p: judge.Verdict(self.model, p, replies[len(p) % 2], False)
main()
"""


def measured() -> list[type[Benchmark]]:
    """Benchmarks that read their own table and judge answers one by one."""
    return [
        cls
        for cls in BENCHMARKS
        if cls.load is Benchmark.load and cls.score_given is Benchmark.score_given
    ]


def questions(cls: type[Benchmark], answers: int = ANSWERS) -> list[dict[str, Any]]:
    """Rows under the data set's own names that make at least this many samples."""
    kind = cls.columns[0]
    theirs = {ours: names[0] for ours, names in {**kind.needs, **kind.takes}.items()}
    made = (Record("example", dict(row), 1) for row in cls.examples)
    samples = sum(len(cls().samples(record)) for record in made)
    rows = [
        {theirs[n]: _copied(n, c, k, n in kind.pictures) for n, c in row.items()}
        for k in range(-(-answers // samples))
        for row in cls.examples
    ]
    if cls.name == "objhal":  # whose ids must be COCO's
        rows = [row | {"image_id": i} for row, i in zip(rows, sorted(load_truth()), strict=False)]
    return rows


def _copied(name: str, cell: Any, k: int, picture: bool) -> Any:
    if isinstance(cell, list):
        return [_copied(name, part, k, picture) for part in cell] if picture else cell
    if isinstance(cell, int) and not isinstance(cell, bool):
        return cell + 1000 * k
    return f"{k}_{cell}" if picture or name == "question_id" else cell


def answers_of(samples: Sequence[Sample], rng: random.Random) -> list[dict[str, Any]]:
    """Seven of ten right, the others another question's."""
    said = [str(s.label) if s.label is not None else "A cup and a dog are seen." for s in samples]
    return [
        {"id": s.id, "answer": own if rng.random() < RIGHT else rng.choice(said)}
        for s, own in zip(samples, said, strict=True)
    ]


@cache
def environment() -> dict[str, str]:
    """One thread, and modules compiled, as installing leaves them."""
    own = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": tempfile.mkdtemp()}
    own.pop("PYTHONDONTWRITEBYTECODE", None)
    return own


def seconds(arguments: Sequence[Any], replies: Sequence[str]) -> float:
    """Processor time of one command."""
    code = COMMAND.format(replies=tuple(replies))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(
    cls: type[Benchmark], folder: Path, answers: int = ANSWERS
) -> tuple[int, tuple[float, float, float]]:
    """How many answers, and what import and both ways of comparing cost."""
    made, table = cls(), folder / f"{cls.name}.jsonl"
    table.write_text("\n".join(map(json.dumps, questions(cls, answers))), encoding="utf-8")
    samples = [s for own in made.annotated(table, ()).values() for s in own]
    files = [folder / f"{system}.jsonl" for system in "ab"]
    for seed, file in enumerate(files):
        lines = map(json.dumps, answers_of(samples, random.Random(seed)))
        file.write_text("\n".join(lines), encoding="utf-8")
    task, replies = cls.name, ("", "")
    if issubclass(cls, JudgedBenchmark) and isinstance(made, JudgedBenchmark):
        words = folder / "words.txt"
        words.write_text("{} " * len(made.asked(samples[0], "")), encoding="utf-8")
        task, replies = f"{cls.name}(judge_model=stub,template='{words}')", cls.replies
    told = ("--task", task, "--annotations", table, "--json")
    named = [part for f in files for part in ("--predictions", f"{_name(f)}={f}")]
    run = folder / "run"
    costs = (
        seconds(("import", *named, "--output", run, *told), replies),
        seconds(("compare", run, "--json"), replies),
        seconds(("compare", *files, *told), replies),
    )
    return len(samples), costs


def _name(file: Path) -> str:
    return "greedy" if file.stem == "a" else file.stem


def spin() -> float:
    """Processor time of 20 million additions."""
    start, total = time.process_time(), 0
    for i in range(20_000_000):
        total += i
    return time.process_time() - start


def page(rows: Sequence[tuple[str, int, tuple[float, float, float]]], spun: Sequence[float]) -> str:
    """The whole page."""
    table = ["| benchmark | answers of each | import | compare a run | compare two files |"]
    table.append("|---|---|---|---|---|")
    for name, n, costs in rows:
        table.append(f"| {name} | {n} | " + " | ".join(f"{c:.2f} s" for c in costs) + " |")
    names = [row[0] for row in rows]
    only = "" if len(names) == len(measured()) else " ".join(names)
    heads = ("import", "compare a run", "compare two files")
    missed = [
        f"{name} ({head} {cost:.1f} s)"
        for name, _, costs in rows
        for head, cost in zip(heads, costs, strict=True)
        if cost >= TARGET
    ]
    told = f"Missed: {', '.join(missed)}." if missed else "Every command keeps to it."
    parts = [
        "# What ten thousand answers cost",
        f"Made by `python benchmarks/answers.py{only and ' --only '}{only}`; do not edit.",
        f"Processor time (user and system) of whole commands on one thread ({platform.machine()}, "
        f"Python {platform.python_version()}), two systems of {ANSWERS} answers each. The target "
        f"is {TARGET:.0f} s. 20 million additions in Python took {min(spun):.1f} to "
        f"{max(spun):.1f} s around them.",
        "\n".join(table),
        told,
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure, write the page and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="names of benchmarks; all without")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/answers.md"))
    args = parser.parse_args()
    rows, spun = [], [spin()]
    warm_up = measured()[0]  # compiles the modules
    with tempfile.TemporaryDirectory() as folder:
        measure(warm_up, Path(folder), answers=100)
    for cls in measured():
        if not args.only or cls.name in args.only:
            with tempfile.TemporaryDirectory() as folder:
                rows.append((cls.name, *measure(cls, Path(folder))))
            spun.append(spin())
            sys.stderr.write(f"{rows[-1]}\n")
    text = page(rows, spun)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
