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
    if not any(benchmark.pair(line) is not None for line in lines):
        return {}
    answered = {**_always(benchmark, lines), COPIED: _copied(benchmark, lines)}
    shown = [metric.name for metric in (*benchmark.metrics, *benchmark.more_metrics)]
    found: dict[str, dict[str, float]] = {}
    for name, given in answered.items():
        metrics = benchmark.score(given).metrics
        found[name] = {metric: metrics[metric] for metric in shown if metric in metrics}
    return found


def _always(benchmark: Benchmark, lines: Sequence[Line]) -> dict[str, list[dict[str, Any]]]:
    """The lines under every constant answer: the first choice of all questions, the second ..."""
    choices = [benchmark.choices(line) for line in lines]
    found = {}
    for place in range(max(map(len, choices), default=0)):
        given = [own[place] if place < len(own) else "" for own in choices]
        name = " or ".join(dict.fromkeys(filter(None, given)))
        found[f"always {name}"] = [
            _with(line, word) for line, word in zip(lines, given, strict=True)
        ]
    return found


def _copied(benchmark: Benchmark, lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The lines with the first answer of every pair in place of all its answers."""
    first: dict[str, Line] = {}
    copied = []
    for line in lines:
        name = benchmark.pair(line)
        source = line if name is None else first.setdefault(name, line)
        if source is line:
            copied.append(dict(line))
        else:
            copied.append(_with(line, source["parsed"], source["answer"]))
    return copied


def _with(line: Line, parsed: str, answer: str | None = None) -> dict[str, Any]:
    """The line under another answer, which is read as ``parsed``."""
    right = int(parsed == line["label"])
    return {
        **line,
        "answer": parsed if answer is None else answer,
        "parsed": parsed,
        "score": right,
    }
