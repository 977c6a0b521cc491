"""Answers made elsewhere as a run folder, which `compare` and `report` take like any other."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.answer_file import (
    Given,
    changed_by_final,
    check_rule,
    lines_of,
    offer,
)
from halludecode.evals.benchmarks.base import Benchmark
from halludecode.evals.data.answers import digest
from halludecode.evals.data.run_files import key_of
from halludecode.evals.data.samples import EvalUnit, Sample
from halludecode.evals.load import data_name
from halludecode.evals.presets import PRESETS
from halludecode.evals.results.build import Report, build_results
from halludecode.evals.runner.run_folder import RunStore
from halludecode.evals.runner.run_record import recipes, versions
from halludecode.evals.runner.score_file import (
    Read,
    chosen_benchmark,
    odd_questions,
    read_systems,
    scorer_options,
    sentences,
)

STATED = ("model", "engine", "dtype", "temperature", "max_new_tokens", "prompt", "revision")
Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Imported:
    """Answers of several systems, judged, before anything is written.

    Args:
        benchmark: What they are to.
        run: The content of a ``run.json``.
        lines: Lines of a ``samples.jsonl``.
        units: What every system answered, by split.
        unshared: Answers of each system to what not all of them answered.
        told: Sentences on what was read and how.
    """

    benchmark: Benchmark
    run: dict[str, Any] = field(repr=False)
    lines: list[dict[str, Any]] = field(repr=False)
    units: list[EvalUnit] = field(repr=False)
    unshared: dict[tuple[str, str | None], int]
    told: list[str]


def import_answers(
    task: Any,
    predictions: Mapping[str, Paths],
    *,
    output: str | Path,
    fresh: bool = False,
    **options: Any,
) -> Report:
    """Writes a run folder from answers made elsewhere: one strategy a name.

    Args:
        task: A benchmark: ``pope``, ``chair(family=pattern)`` ...
        predictions: Name of a strategy to its file, its folder with a file a split, or several
            files. ``greedy`` is what the others are compared with.
        output: The run folder, which must not hold a run.
        fresh: Start over in a folder that holds a run.
        **options: As for `judged`.

    Returns:
        The report; its results are over what all of these names answered, and
        ``entry["left_out"]`` counts what else each of them answered.

    Raises:
        InvalidData: A file or the folder cannot be used; nothing is written.
    """
    found = judged(task, predictions, **options)
    names, run = list(predictions), found.run
    lines = {key_of(line): line for line in found.lines}
    results = build_results(lines, found.units, names, run, run["seed"])
    for entry in results["runs"]:
        if more := _left_out(found, entry):
            entry["left_out"] = entry.get("left_out", 0) + more
            entry["unshared"] = more

    with RunStore(Path(output), *_parted(run), fresh=fresh, check=_refuse(Path(output))) as store:
        store.append(found.lines)
        written = store.write_results(results)
        return Report(written, Path(output), store.run, told=tuple(found.told))


def judged(
    task: Any,
    predictions: Mapping[str, Paths],
    *,
    annotations: str | Path | None = None,
    captions: str | Path | None = None,
    data: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    answers: str = "as_written",
    seed: int = 0,
    stated: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> Imported:
    """Reads, matches and judges the answers of several systems.

    Args:
        task: A benchmark, as for `import_answers`.
        predictions: Name to file or files, as for `import_answers`.
        annotations: The questions: everything that ``score`` takes.
        captions: COCO captions file, CHAIR only; by default the one beside the instances.
        data: A data folder to look for the questions in, in place of ``annotations``.
        columns: Our names of columns to the files', as for ``score``.
        answers: ``as_written`` or ``final``.
        seed: Of sampled decoding, as stated by the user; ``compare --seeds`` tells runs by it.
        stated: What the user says of the run: any of `STATED`.
        **parameters: Old names of a benchmark's parameters, such as ``family``.

    Raises:
        InvalidData: A file cannot be used, or the systems have no answered sample in common.
    """
    check_rule(answers)
    if not predictions or not all(predictions):
        raise InvalidData("import needs answers: give --predictions NAME=FILE, once a system.")
    chosen = chosen_benchmark(task, parameters).settled(PRESETS["llava-1.5"])
    notes = annotations if annotations is not None else data
    notes = None if notes is None else Path(notes)
    options = scorer_options(chosen, {"captions": captions})
    chosen = chosen if notes is None else chosen.bound_to(notes)
    systems = {name: _paths(files) for name, files in predictions.items()}
    read = read_systems(chosen, systems, notes, columns, **options)
    lines: list[dict[str, Any]] = []
    told: list[str] = []
    samples: dict[str | None, dict[Any, Sample]] = {}
    for asked, given in read.values():
        for split in given:
            own = {s.id: s for s in asked[split] if s.id in given[split].answers}
            samples[split] = {**own, **samples.get(split, {})}
    first = next(iter(next(iter(samples.values())).values()))
    # Results that hold their own questions lie nowhere but in themselves.
    place = notes or (Path(chosen.title or chosen.name) if chosen.truth_in else None)
    source = data_name(first.image, place)
    changed = 0
    told += [sentence for name, (_, given) in read.items() for sentence in sentences(given, name)]
    for name, (asked, given) in read.items():
        for split, own in given.items():
            head = {"task": chosen.name, "data": source, "split": split, "strategy": name}
            chosen.check_given(own)
            lines += _lines(chosen, asked[split], own, head, answers)
            if answers == "as_written":
                changed += changed_by_final(chosen, asked[split], own.answers)
    told += _unanswered(read, samples)
    if changed:
        told.append(offer(changed, len(lines)))
    told += odd_questions(chosen, {k: list(own.values()) for k, own in samples.items()}, source)
    told += chosen.ways(annotations=notes, **options)
    units, unshared = _shared(chosen, source, samples, {n: g for n, (_, g) in read.items()})
    made = _run(chosen, predictions, read, notes, captions, answers, seed, stated or {}, units)
    return Imported(chosen, made, lines, units, unshared, told)


def _unanswered(
    read: Mapping[str, Read], samples: Mapping[str | None, Mapping[Any, Sample]]
) -> Iterable[str]:
    """How much of what was asked nobody answered, as a sentence a split."""
    for split, answered in samples.items():
        asked = {s.id for own, given in read.values() if split in given for s in own[split]}
        if len(answered) < len(asked):
            where = f"{split}: " if split else ""
            yield f"{where}{len(asked) - len(answered)} of {len(asked)} samples have no answer."


def _paths(files: Paths) -> list[Path]:
    return [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]


# Lines ------------------------------------------------------------------------------------------


def _lines(
    benchmark: Benchmark,
    samples: Sequence[Sample],
    given: Given,
    head: Mapping[str, Any],
    answers: str,
) -> Iterable[dict[str, Any]]:
    """Lines as `eval` writes them; what nobody measured is None."""
    by_id = {s.id: s for s in samples}
    for i, line in lines_of(benchmark, samples, given.answers, answers).items():
        sample = by_id[i]
        asked = {"prompt": sample.question, "image": str(sample.image)}
        asked["data_hash"] = sample.digest
        judged = {k: v for k, v in line.items() if k not in ("id", "image", "prompt")}
        unknown = dict.fromkeys(("margin", "tokens", "ms", "effect", "finish"))
        yield {"id": i, **head, **asked, **judged, **unknown}


def _shared(
    benchmark: Benchmark,
    source: str,
    samples: Mapping[str | None, Mapping[Any, Sample]],
    given: Mapping[str, Mapping[str | None, Given]],
) -> tuple[list[EvalUnit], dict[tuple[str, str | None], int]]:
    """What all systems answered, and how many answers of each are to something else."""
    units, unshared = [], dict[tuple[str, str | None], int]()
    for split, known in samples.items():
        sets = [set(own[split].answers) if split in own else set() for own in given.values()]
        both = set.intersection(*sets)
        for name, answered in zip(given, sets, strict=True):
            if more := len(answered - both):
                unshared[name, split] = more
        if both:
            kept = tuple(sample for i, sample in known.items() if i in both)
            units.append(EvalUnit(benchmark, source, split, kept))
    if not units:
        raise InvalidData(
            f"{' and '.join(given)} have no answered sample in common; give answers to the same "
            "questions."
        )
    return units, unshared


def _left_out(found: Imported, entry: Mapping[str, Any]) -> int:
    """Answers of an entry's strategy to what others did not answer; of a mean over all splits."""
    own = {split: n for (name, split), n in found.unshared.items() if name == entry["strategy"]}
    splits = {unit.split for unit in found.units}
    return own.get(entry["split"], 0) if entry["split"] in splits else sum(own.values())


# The run ----------------------------------------------------------------------------------------


def _run(
    benchmark: Benchmark,
    predictions: Mapping[str, Paths],
    read: Mapping[str, tuple[Any, Mapping[str | None, Given]]],
    annotations: Path | None,
    captions: str | Path | None,
    answers: str,
    seed: int,
    stated: Mapping[str, Any],
    units: Sequence[EvalUnit],
) -> dict[str, Any]:
    """The content of ``run.json``: what is stated is the user's word, nothing else is known."""
    unknown = [name for name in stated if name not in STATED]
    if unknown:
        raise InvalidData(f"{unknown[0]!r} cannot be stated; {', '.join(STATED)} can.")
    said = {name: value for name, value in stated.items() if value is not None}
    sampling = {name: said.get(name) for name in ("max_new_tokens", "temperature")}
    files = {"annotations": annotations, "captions": captions}
    return {
        "model": said.get("model", "not stated"),
        "model_digest": None,
        "engine": said.get("engine", "imported"),
        "dtype": said.get("dtype"),
        "seed": seed,
        "prompts": {benchmark.name: {"preset": None, "template": said.get("prompt")}},
        "sampling": dict.fromkeys(benchmark.kinds(), sampling),
        "answers": answers,
        **recipes({benchmark.name: benchmark}),
        "imported": {
            "stated": said,
            "annotations": {
                name: {"file": str(path), "digest": digest(path)}
                for name, path in files.items()
                if path is not None
            },
        },
        "strategies": {
            name: {
                "spec": name,
                "files": {str(path): digest(path) for path in _paths(predictions[name])},
                "read": [own.sentence for own in given.values()],
            }
            for name, (_, given) in read.items()
        },
        "data": {
            "/".join(part for part in unit.key if part): {
                "digest": unit.digest,
                "samples": len(unit.samples),
                "revision": None,
            }
            for unit in units
        },
        "limit": {benchmark.name: None},
        **benchmark.record(),
        "hardware": {},
        "versions": versions(),
        "model_facts": {},
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _parted(run: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What all answers of a folder must share, and the rest."""
    at = list(run).index("imported")
    names = list(run)[:at]
    return {name: run[name] for name in names}, {n: v for n, v in run.items() if n not in names}


def _refuse(path: Path) -> Callable[[Mapping[Any, Any]], None]:
    def check(done: Mapping[Any, Any]) -> None:
        if done:
            raise InvalidData(
                f"{path} holds a run already; choose another output folder or start over with "
                "--fresh."
            )

    return check
