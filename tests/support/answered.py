"""Lines of a run folder without a run: samples of a benchmark, and answers to them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from halludecode.evals.benchmarks.base import Benchmark
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample

# What the official scripts say to made-up answers; every entry names script and commit.
OFFICIAL = json.loads((Path(__file__).parents[1] / "data" / "paired_official.json").read_text())


def samples_of(benchmark: Benchmark, rows: Iterable[dict[str, Any]]) -> list[Sample]:
    """The samples of rows under our names, with their groups, as a run has them."""
    records = (Record(f"row {n}", row, n) for n, row in enumerate(rows, start=1))
    made = benchmark.finish([sample for record in records for sample in benchmark.samples(record)])
    sizes = Counter(map(benchmark.group, made))
    return [
        replace(s, group=benchmark.group(s), group_size=sizes[benchmark.group(s)]) for s in made
    ]


def lines_of(
    benchmark: Benchmark, samples: Iterable[Sample], answer: Callable[[Sample], str]
) -> list[dict[str, Any]]:
    """The lines of what is answered so."""
    return [
        {"id": s.id, "image": s.image, "prompt": s.question, **benchmark.answered(s, answer(s))}
        for s in samples
    ]
