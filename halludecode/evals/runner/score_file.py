"""Scores predictions made elsewhere: the work behind ``halludecode score``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.base import Benchmark
from halludecode.evals.benchmarks.registry import BENCHMARKS, choose
from halludecode.evals.data.answers import digest
from halludecode.evals.statistics.intervals import intervals
from halludecode.evals.statistics.score import Score


def score_predictions(
    task: Any,
    predictions: Path | str,
    annotations: Path | str | None = None,
    captions: Path | str | None = None,
    parser: str = "official",
    family: str | None = None,
    gt_family: str | None = None,
    *,
    incomplete: str | None = None,
    image_ids: Path | str | None = None,
    details: Path | str | None = None,
    relabel: Path | str | None = None,
    similarity: Any = None,
    allow_missing: bool = False,
    resamples: int = 0,
) -> dict[str, Any]:
    """Scores a predictions file, or a results folder (MME, all splits of POPE).

    Args:
        task: A benchmark: ``pope``, ``chair(family=pattern)`` ...
        predictions: JSON lines of ``id`` and ``answer``; of POPE ``question_id``, of CHAIR
            ``image_id`` and ``caption``; AMBER's ``response``; HallusionBench's own results with
            ``model_prediction``; MME a folder of ``<subtask>.txt`` with image, question, truth,
            answer; POPE also a folder with one file a split, beside a folder of annotations: each
            split and their mean are then scored.
        annotations: The question file; CHAIR's COCO instances file or finished sets (``.tsv``), by
            default the shipped sets of COCO 2014; MME a folder of questions that must all be
            answered, optional; AMBER's ``data`` folder or ``annotations.json`` in it.
        captions: COCO captions file, CHAIR only.
        parser: Answer rule of every task but CHAIR.
        family: CHAIR's word family for the predictions, or a name of `chair.MIXTURES`.
        gt_family: The same for the reference captions; None repeats ``family``.
        incomplete: What becomes of a caption's unfinished last sentence; see `chair.trim`.
        image_ids: List of pictures of which each must have a caption, and no other may; see
            `image_ids.load_ids`. None scores what is there.
        details: File to write every caption's words to; see `caption_records.records`.
        relabel: POPE questions with later labels, such as RePOPE's; see `repope.relabel`.
        similarity: Similarity of two words, AMBER only; see `amber.score`.
        allow_missing: Score only what is answered, AMBER and HallusionBench only.
        resamples: Bootstrap resamples for ``low`` and ``high``; 0 leaves both out.

    Returns:
        ``task``, ``n``, ``metrics`` (name to ``{"value": ...}``), the rule or family that was used,
        ``unparsed``, ``degenerate``, digests of the files, for CHAIR ``sentences``, for a folder of
        POPE splits ``splits``, and for relabelled questions ``relabelled``.

    Raises:
        InvalidData: Any bad input, in one sentence with file and line.
        InvalidParameter: There is no such benchmark or parameter; near misses are named.
        MissingExtra: A library or its data is not installed.
    """
    old = {"family": family, "gt_family": gt_family, "incomplete": incomplete}
    old |= {"image_ids": image_ids, "similarity": similarity}
    benchmark = _chosen(task, old)
    sources = {"predictions": predictions, "annotations": annotations, "captions": captions}
    sources |= {"relabel": relabel}
    given = {"captions": captions, "details": details, "relabel": relabel}
    options = _options(benchmark, {**given, "allow_missing": allow_missing or None})
    _check_output(details, sources.values())
    notes = None if annotations is None else Path(annotations)
    score = benchmark.score_file(Path(predictions), notes, parser, **options)
    if notes is not None:
        sources |= benchmark.annotation_files(notes)
    made = as_json(score, benchmark, resamples=resamples)
    made["files"] = {name: digest(path) for name, path in sources.items() if path is not None}
    return made | benchmark.written(score, **options)


def _chosen(task: Any, old: Mapping[str, Any]) -> Benchmark:
    """The benchmark, with parameters that were given by their old names."""
    chosen = choose(task)
    if len(chosen) != 1:
        raise InvalidData("score takes one task; name one.")
    given = {name: value for name, value in old.items() if value is not None}
    for name in given:
        _check_owner(name, chosen[0], [cls for cls in BENCHMARKS if name in cls.aliases])
    return choose(chosen, **given)[0]


def _options(benchmark: Benchmark, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, paths as such; refuses what the benchmark does not take."""
    options = {name: value for name, value in given.items() if value is not None}
    for name in options:
        _check_owner(name, benchmark, [cls for cls in BENCHMARKS if name in cls.scorer_options])
    return options | {n: Path(value) for n, value in options.items() if isinstance(value, str)}


def _check_owner(name: str, benchmark: Benchmark, owners: Sequence[type[Benchmark]]) -> None:
    names = [cls.name for cls in owners]
    if benchmark.name not in names:
        listed = " and ".join(names) if names[1:] else f"task {names[0]}"
        option = name.replace("_", "-")
        raise InvalidData(f"{option} is for {listed}, not {benchmark.name}; leave it out.")


def _check_output(details: Path | str | None, inputs: Iterable[Path | str | None]) -> None:
    taken = {Path(path).resolve() for path in inputs if path is not None}
    if details is not None and Path(details).resolve() in taken:
        raise InvalidData(f"{details} is an input; write details to another file.")


def as_json(score: Score, benchmark: Benchmark, *, resamples: int = 0) -> dict[str, Any]:
    """A score as the JSON document of ``score --json``."""
    metrics: dict[str, dict[str, float]] = {n: {"value": v} for n, v in score.metrics.items()}
    if resamples:
        for name, interval in intervals(score, resamples=resamples).items():
            metrics[name] |= {"low": interval.low, "high": interval.high}
    out: dict[str, Any] = {"task": score.task, "n": score.n, "metrics": metrics}
    out |= benchmark.summary(score)
    out |= {name: list(v) if isinstance(v, tuple) else v for name, v in score.notes.items()}
    return out | {"degenerate": list(score.degenerate)}
