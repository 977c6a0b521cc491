"""What answers get that do not change with the picture: the control of paired benchmarks.

A pair is two questions (or more) that differ in little but their right answers: one question about
a picture and its edit, or two about one picture. Whoever gives both the same answer has not told
them apart, however right each half may look. So beside every paired benchmark stands what it gives
to *always yes* and *always no* (or each option), and to the run's own answers with the first one of
every pair *copied* to the others: what is left is not owed to seeing the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halludecode.evals.benchmarks.base import Benchmark

COPIED = "first answer copied"
Line = Mapping[str, Any]


def fixed_answers(benchmark: Benchmark, lines: Sequence[Line]) -> dict[str, dict[str, float]]:
    """Metrics of answers that do not change within a pair.

    Args:
        benchmark: Scores.
        lines: Lines of a run folder that can be scored, in order.

    Returns:
        ``always ANSWER`` and `COPIED` to the benchmark's declared metrics; {} where it has no
        pairs.
    """
    return {**constant_answers(benchmark, lines), **copied_answers(benchmark, lines)}


def constant_answers(benchmark: Benchmark, lines: Sequence[Line]) -> dict[str, dict[str, float]]:
    """Those that are the same for all: the first choice of every question, the second ..."""
    if not _paired(benchmark, lines):
        return {}
    choices = [benchmark.choices(line) for line in lines]
    found = {}
    for place in range(max(map(len, choices), default=0)):
        given = [own[place] if place < len(own) else "" for own in choices]
        name = " or ".join(dict.fromkeys(filter(None, given)))
        answered = [_with(line, word) for line, word in zip(lines, given, strict=True)]
        found[f"always {name}"] = _metrics(benchmark, answered)
    return found


def copied_answers(benchmark: Benchmark, lines: Sequence[Line]) -> dict[str, dict[str, float]]:
    """Those with the first answer of every pair in place of all its answers."""
    if not _paired(benchmark, lines):
        return {}
    first: dict[str, Line] = {}
    copied = []
    for line in lines:
        name = benchmark.pair(line)
        source = line if name is None else first.setdefault(name, line)
        same = source is line
        copied.append(line if same else _with(line, source["parsed"], source["answer"]))
    return {COPIED: _metrics(benchmark, copied)}


def _paired(benchmark: Benchmark, lines: Sequence[Line]) -> bool:
    return any(benchmark.pair(line) is not None for line in lines)


def _metrics(benchmark: Benchmark, lines: Sequence[Line]) -> dict[str, float]:
    metrics = benchmark.score(lines).metrics
    shown = [metric.name for metric in (*benchmark.metrics, *benchmark.more_metrics)]
    return {name: metrics[name] for name in shown if name in metrics}


def _with(line: Line, parsed: str, answer: str | None = None) -> dict[str, Any]:
    """The line under another answer, which is read as ``parsed``."""
    right = int(parsed == line["label"])
    return {
        **line,
        "answer": parsed if answer is None else answer,
        "parsed": parsed,
        "score": right,
    }
