"""Scores predictions made elsewhere: the work behind ``halludecode score``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.answer_file import (
    Given,
    changed_by_final,
    check_rule,
    grouped,
    lines_of,
    load_records,
    offer,
    read_answers,
)
from halludecode.evals.benchmarks.base import Benchmark
from halludecode.evals.benchmarks.fixed_answers import fixed_answers
from halludecode.evals.benchmarks.registry import BENCHMARKS, choose
from halludecode.evals.data.answers import digest
from halludecode.evals.data.oddities import odd_units, oddities
from halludecode.evals.data.samples import EvalUnit, Sample
from halludecode.evals.presets import PRESETS
from halludecode.evals.results import control_text
from halludecode.evals.results.remarks import few
from halludecode.evals.statistics.intervals import with_intervals
from halludecode.evals.statistics.score import Id, Score


def score_predictions(
    task: Any,
    predictions: Path | str,
    annotations: Path | str | None = None,
    captions: Path | str | None = None,
    parser: str | None = None,
    family: str | None = None,
    gt_family: str | None = None,
    *,
    incomplete: str | None = None,
    image_ids: Path | str | None = None,
    synonyms: Path | str | None = None,
    details: Path | str | None = None,
    relabel: Path | str | None = None,
    similarity: Any = None,
    allow_missing: bool = False,
    columns: Mapping[str, str] | None = None,
    answers: str = "as_written",
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
        parser: Answer rule of every task but CHAIR; None is ``official``.
        family: CHAIR's word family for the predictions, or a name of `chair.MIXTURES`.
        gt_family: The same for the reference captions; None repeats ``family``.
        incomplete: What becomes of a caption's unfinished last sentence; see `chair.trim`.
        image_ids: List of pictures of which each must have a caption, and no other may; see
            `image_ids.load_ids`. None scores what is there.
        synonyms: Object words in place of CHAIR's own; see `chair.word_list`.
        details: File to write every caption's words to; see `caption_records.records`.
        relabel: POPE questions with later labels, such as RePOPE's; see `repope.relabel`.
        similarity: Similarity of two words, AMBER only; see `amber.score`.
        allow_missing: Score only what is answered, and count what is not.
        columns: Our names of columns (``answer``, ``id``, ``question``, ``image``, ``split``) to
            the file's, where they cannot be told from what is in them.
        answers: ``as_written``, or ``final``: what an answer finally says, see `final_answer`.
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
    old |= {"image_ids": image_ids, "similarity": similarity, "synonyms": synonyms}
    benchmark = chosen_benchmark(task, old)
    sources = {"predictions": predictions, "annotations": annotations, "captions": captions}
    sources |= {"relabel": relabel, "synonyms": synonyms}
    given = {"captions": captions, "details": details, "relabel": relabel}
    options = scorer_options(benchmark, {**given, "allow_missing": allow_missing or None})
    check_rule(answers)
    if parser not in (None, "official") and benchmark.text_kind == "caption":
        raise InvalidData(
            f"parser is for answers of yes and no, not {benchmark.name}; leave it out."
        )
    _check_output(details, sources.values())
    notes = None if annotations is None else Path(annotations)
    asked, read = read_predictions(benchmark, [Path(predictions)], notes, columns, **options)
    told = {"annotations": notes, "resamples": resamples}
    score = benchmark.score_given(asked, read, parser or "official", answers, **told, **options)
    if notes is not None:
        sources |= benchmark.annotation_files(notes)
    made = as_json(score, benchmark, resamples=resamples)
    made |= {"answers": answers, "told": sentences(read)}
    if answers == "as_written":
        pairs = ((asked[split], own.answers) for split, own in read.items())
        if changed := sum(changed_by_final(benchmark, *pair) for pair in pairs):
            made["changed_by_final"] = changed
            made["told"].append(offer(changed, sum(len(g.answers) for g in read.values())))
    fixed = {} if parser not in (None, "official") else _fixed(benchmark, asked, read, answers)
    if fixed:
        made["fixed_answers"] = next(iter(fixed.values())) if len(fixed) == 1 else fixed
        head = {"task": benchmark.name, "strategy": "the file"}
        blocks = [
            {**head, "data": split or Path(predictions).name, "fixed_answers": block}
            for split, block in fixed.items()
        ]
        made["told"] += control_text.fixed_answers(blocks, {})
    made["told"] += odd_questions(benchmark, asked)
    made["told"] += [*benchmark.ways(annotations=notes, **options), *benchmark.remarks(score)]
    if sentence := few(len(score.clusters)):
        made["told"].append(f"{benchmark.name}: {sentence}")
    if score.degenerate:
        names = ", ".join(score.degenerate)
        made["told"].append(f"{names}: nothing to divide by, so 0 stands for no value.")
    made["files"] = {name: digest(path) for name, path in sources.items() if path is not None}
    return made | benchmark.written(score, **options)


def _fixed(
    benchmark: Benchmark,
    asked: Mapping[str | None, Sequence[Sample]],
    read: Mapping[str | None, Given],
    answers: str,
) -> dict[str | None, dict[str, dict[str, float]]]:
    """`fixed_answers` of every split; {} where the benchmark has no pairs."""
    if benchmark.pair.__func__ is Benchmark.pair.__func__:
        return {}
    found: dict[str | None, dict[str, dict[str, float]]] = {}
    for split, own in read.items():
        lines = benchmark.complete(lines_of(benchmark, asked[split], own.answers, answers))
        if block := fixed_answers(benchmark, list(lines.values())):
            found[split] = block
    return found


def read_predictions(
    benchmark: Benchmark,
    paths: Sequence[Path],
    annotations: Path | None,
    columns: Mapping[str, str] | None = None,
    system: str | None = None,
    **options: Any,
) -> tuple[dict[str | None, list[Sample]], dict[str | None, Given]]:
    """What was asked and what was answered, by split.

    Args:
        benchmark: Whose answers they are.
        paths: Files or folders of answers of one system.
        annotations: The questions.
        columns: Our names of columns to the file's.
        system: Its name, where a file holds the answers of several strategies.
        **options: Those of ``scorer_options`` that were given.

    Raises:
        InvalidData: A file cannot be used; the sentence names it and the line.
    """
    (found,) = read_systems(benchmark, {system: paths}, annotations, columns, **options).values()
    return found


Read = tuple[dict[str | None, list[Sample]], dict[str | None, Given]]  # asked, given


def read_systems(
    benchmark: Benchmark,
    systems: Mapping[Any, Sequence[Path]],
    annotations: Path | None,
    columns: Mapping[str, str] | None = None,
    **options: Any,
) -> dict[Any, Read]:
    """`read_predictions` of several systems, whose annotations are read once.

    Args:
        benchmark: Whose answers they are.
        systems: Name to files or folders.
        annotations: The questions.
        columns: Our names of columns to the files'.
        **options: Those of ``scorer_options`` that were given.
    """
    whole = {
        name: benchmark.read_results(paths[0]) if len(paths) == 1 else None
        for name, paths in systems.items()
    }
    if None in whole.values() and annotations is None and benchmark.without_annotations:
        raise InvalidData(benchmark.without_annotations)
    files = {
        name: load_records(benchmark, paths, name)
        for name, paths in systems.items()
        if whole[name] is None
    }
    rows = [part for own in files.values() for part in own]
    asked = benchmark.annotated(annotations, rows, **options) if files else {}
    asked = {split: grouped(benchmark, samples) for split, samples in asked.items()}
    found: dict[Any, Read] = {}
    for name, paths in systems.items():
        results = whole[name]
        if results is not None:
            found[name] = _own_results(benchmark, paths[0], results, annotations, **options)
            continue
        mine = asked
        if all(path.is_file() for path in paths):  # files may be of some splits alone
            named = {benchmark.split_named(path) for path in paths} & asked.keys()
            mine = {split: asked[split] for split in asked if split in named} or asked
        found[name] = mine, read_answers(benchmark, files[name], mine, columns)
    return found


def sentences(read: Mapping[str | None, Given], name: str = "") -> list[str]:
    """What was taken for what, of every split; with a name before it where there are several."""
    many = len(read) > 1
    heads = [", ".join(filter(None, (name, str(split) if many else ""))) for split in read]
    return [
        f"{head}: {own.sentence}" if head else own.sentence
        for head, own in zip(heads, read.values(), strict=True)
    ]


def odd_questions(
    benchmark: Benchmark, asked: Mapping[str | None, Sequence[Sample]], data: str = ""
) -> tuple[str, ...]:
    """What is odd in the questions of every split, in words."""
    preset = PRESETS["llava-1.5"]  # whose words are the same for all
    found = {
        split: oddities((benchmark.prompt(preset, sample), sample) for sample in samples)
        for split, samples in asked.items()
    }
    return odd_units(
        EvalUnit(benchmark, data, split, tuple(samples), oddities=found[split])
        for split, samples in asked.items()
    )


def _own_results(
    benchmark: Benchmark,
    path: Path,
    results: tuple[list[Sample], dict[Id, str]],
    annotations: Path | None,
    **options: Any,
) -> Read:
    samples, answers = results
    given = Given(answers, "the last column", "place", path, complete=True)
    if annotations is None:
        return {None: samples}, {None: given}
    ((split, wanted),) = benchmark.annotated(annotations, (), **options).items()
    _same_questions(path, samples, wanted)
    return {split: wanted}, {split: given}


def _same_questions(path: Path, samples: Sequence[Sample], wanted: Sequence[Sample]) -> None:
    """Refuses results whose truths or questions are not those of the annotations."""
    labels, given = {s.id: s.label for s in wanted}, {s.id for s in samples}
    for sample in samples:
        if labels.get(sample.id, sample.label) != sample.label:
            raise InvalidData(
                f"{sample.where}: the truth of {sample.id} is {sample.label!r}, the annotations "
                f"say {labels[sample.id]!r}; use results of the same questions."
            )
    missing = [name for name in labels if name not in given]
    extra = [name for name in given if name not in labels]
    if missing or extra:
        what = "is not answered" if missing else "is not in the annotations"
        raise InvalidData(
            f"{path}: {(missing or extra)[0]} {what} "
            f"({len(missing)} missing, {len(extra)} extra); answer every question once."
        )


def chosen_benchmark(task: Any, old: Mapping[str, Any]) -> Benchmark:
    """The benchmark, with parameters that were given by their old names."""
    chosen = choose(task)
    if len(chosen) != 1:
        raise InvalidData("score takes one task; name one.")
    given = {name: value for name, value in old.items() if value is not None}
    for name in given:
        _check_owner(name, chosen[0], [cls for cls in BENCHMARKS if name in cls.aliases])
    return choose(chosen, **given)[0]


def scorer_options(benchmark: Benchmark, given: Mapping[str, Any]) -> dict[str, Any]:
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
    metrics = with_intervals(score, resamples)
    out: dict[str, Any] = {"task": score.task, "n": score.n, "metrics": metrics}
    out |= benchmark.summary(score)
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in score.notes.items()}
    out = {**{name: str(v) if isinstance(v, Path) else v for name, v in plain.items()}, **out}
    return out | {"degenerate": list(score.degenerate)}
