"""Answers to any benchmark, by id, from a file of JSON lines."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.fixed_answers import fixed_answers
from halludecode.evals.data.answers import load_answers, naming, refuse_strangers
from halludecode.evals.statistics.score import Score, match

if TYPE_CHECKING:
    from halludecode.evals.benchmarks.base import Benchmark

ID_NAMES = ("id", "question_id", "index")
ANSWER_NAMES = ("answer", "text", "response", "prediction")


def score_answers(
    benchmark: Benchmark, predictions: Path, annotations: Path | None, parser: str
) -> Score:
    """Judges every answer as `eval` would, and scores the lines.

    Args:
        benchmark: Reads and judges.
        predictions: JSON lines of an id and an answer, under any of the names above.
        annotations: The question file.
        parser: Only ``official``: the benchmark has one way of reading answers.

    Raises:
        InvalidData: A file cannot be used, or ids do not match; the sentence names file and line.
    """
    title = benchmark.title or benchmark.name
    if annotations is None:
        raise InvalidData(f"{title} needs its questions to score answers; give --annotations.")
    if parser != "official":
        raise InvalidData(f"parser {parser!r} is unknown for {title}; it has only official.")
    samples = benchmark.finish(benchmark.load(annotations))
    answers = load_answers(predictions, ID_NAMES, ANSWER_NAMES)
    refuse_strangers(predictions, answers, {s.id for s in samples}, "question", ID_NAMES)
    with naming(predictions):
        match([sample.id for sample in samples], answers, "id")
    sizes = Counter(map(benchmark.group, samples))
    lines = {}
    for sample in samples:
        group = benchmark.group(sample)
        filled = replace(sample, group=group, group_size=sizes[group])
        asked = {"id": sample.id, "image": sample.image, "prompt": sample.question}
        lines[sample.id] = {**asked, **benchmark.answered(filled, answers[sample.id])}
    whole = benchmark.complete(lines)
    if not whole:
        raise InvalidData(f"{annotations} holds no group of questions that {title} counts whole.")
    with naming(predictions):
        score = benchmark.score(list(whole.values()))
    left_out = len(lines) - len(whole)
    fixed = fixed_answers(benchmark, list(whole.values()))
    notes = {"left_out": left_out, "fixed_answers": fixed}
    return replace(score, notes={**score.notes, **{n: v for n, v in notes.items() if v}})
