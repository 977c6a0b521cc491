"""POPE's answers from files: what they may be to, in one split or several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.answer_file import Given, check_missing, texts_of
from halludecode.evals.benchmarks.base import Benchmark
from halludecode.evals.benchmarks.pope import relabel as repope
from halludecode.evals.benchmarks.pope import scoring as pope
from halludecode.evals.data.answer_records import stem_of
from halludecode.evals.data.answers import naming
from halludecode.evals.data.records import first_fields
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.intervals import with_intervals
from halludecode.evals.statistics.score import Score


def split_in(stem: str) -> str:
    """The POPE split in a file's or data set's name; without any the name itself."""
    return next((name for name in pope.SETTINGS if name in stem), stem)


def split_files(folder: Path) -> dict[str, Path]:
    """The question files of a folder by split, POPE's own first.

    Args:
        folder: Holds ``*.json`` or ``*.jsonl`` files.

    Raises:
        InvalidData: Two files of one split.
    """
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.json*")):
        if file.name.startswith("."):  # a Mac's ._x.jsonl
            continue
        split = split_in(stem_of(file))
        if split in found:
            raise InvalidData(
                f"{file}: {found[split].name} is already the {split} split of this folder."
            )
        found[split] = file
    own = [name for name in pope.SETTINGS if name in found]
    return {name: found[name] for name in [*own, *(n for n in found if n not in own)]}


def question_files(annotations: Path, answered: Collection[str]) -> dict[str, Path]:
    """The question files that answers may be to, by split.

    Args:
        annotations: A question file, a folder of them or above them, or LLaVA's own question file
            with its labels in a folder beside.
        answered: What files of answers are named after.

    Raises:
        InvalidData: There are none, or several folders of them.
    """
    if annotations.is_dir():
        found = split_files(annotations)
        # POPE's own folder holds tables as well: only splits count, and names of answers.
        kept = {s: f for s, f in found.items() if s in pope.SETTINGS}
        kept |= {s: f for s, f in found.items() if s in answered and "label" in first_fields(f)}
        return kept or _labelled(annotations, [p for p in annotations.iterdir() if p.is_dir()])
    first = first_fields(annotations)
    if "label" not in first and {"question_id", "text", "category"} <= first.keys():
        beside = [annotations.parent, *(p for p in annotations.parent.iterdir() if p.is_dir())]
        return _labelled(annotations, beside)
    return {split_in(stem_of(annotations)): annotations}


def _labelled(annotations: Path, folders: Sequence[Path]) -> dict[str, Path]:
    """The splits of the one folder that holds some."""
    own = ({s: f for s, f in split_files(p).items() if s in pope.SETTINGS} for p in sorted(folders))
    found = [files for files in own if files]
    if len(found) != 1:
        what = "no question files" if not found else "several folders of question files"
        raise InvalidData(
            f"{annotations}: {what} with labels ({', '.join(pope.SETTINGS)}); give the folder that "
            "holds coco_pope_random.jsonl and the others."
        )
    return found[0]


def score_splits(
    benchmark: Benchmark,
    asked: Mapping[str | None, Sequence[Sample]],
    given: Mapping[str | None, Given],
    parser: str,
    rule: str,
    **options: Any,
) -> Score:
    """Scores answers; of several splits each and their mean.

    Raises:
        InvalidData: Answers are missing, or the parser is unknown.
    """
    allowed = bool(options.get("allow_missing"))
    lacking = [str(split) for split in asked if split not in given]
    if lacking and not allowed:
        there = ", ".join(map(str, given)) or "none"
        first = next(iter(given.values())).path
        place = first.parent if benchmark.split_named(first) else first
        raise InvalidData(
            f"{place} holds the splits {there}, the annotations {', '.join(map(str, asked))}; "
            "give files named after the same splits in both, or --allow-missing."
        )
    later = _later(options.get("relabel"), list(given))
    scores = {
        str(split): _split(benchmark, asked[split], own, parser, rule, allowed, later.get(split))
        for split, own in given.items()
    }
    if len(scores) == 1:
        return next(iter(scores.values()))
    return replace(pope.mean(scores), notes=_split_notes(scores, options.get("resamples", 0)))


def _later(relabel: Path | None, splits: Sequence[str | None]) -> dict[str | None, Path]:
    """The file of later labels of every split."""
    if relabel is None:
        return {}
    if not relabel.is_dir():
        if len(splits) > 1:
            raise InvalidData(
                f"{relabel} is a file and the answers are of several splits; give a folder of "
                "later labels."
            )
        return dict.fromkeys(splits, relabel)
    found = split_files(relabel)
    lacking = [str(split) for split in splits if split not in found]
    if lacking:
        raise InvalidData(
            f"{relabel} holds the splits {', '.join(found) or 'none'}, the answers "
            f"{', '.join(map(str, splits))}; give files named after the same splits in both."
        )
    return {split: found[str(split)] for split in splits}


def _split_notes(scores: Mapping[str, Score], resamples: int) -> dict[str, Any]:
    """What is told beside a mean: the splits, and how many labels changed in all of them."""
    splits: dict[str, dict[str, Any]] = {}
    total: Counter[str] = Counter()
    for name, score in scores.items():
        metrics = with_intervals(score, resamples)
        splits[name] = {"n": score.n, "metrics": metrics, "degenerate": list(score.degenerate)}
        splits[name] |= {k: score.notes[k] for k in ("missing",) if k in score.notes}
        if "relabelled" in score.notes:
            splits[name]["relabelled"] = score.notes["relabelled"]
            total.update(score.notes["relabelled"])
    return {"splits": splits} | ({"relabelled": dict(total)} if total else {})


def _split(
    benchmark: Benchmark,
    samples: Sequence[Sample],
    given: Given,
    parser: str,
    rule: str,
    allowed: bool,
    relabel: Path | None,
) -> Score:
    missing = check_missing(samples, given, allowed)
    questions = [
        pope.PopeQuestion(s.id, str(s.image), s.question, str(s.label), where=s.where)
        for s in samples
        if s.id in given.answers
    ]
    answers, unread = texts_of(benchmark, samples, given.answers, rule)
    told: dict[str, Any] = dict(missing)
    if relabel is not None:
        everything = [replace(q) for q in questions]
        questions, told["relabelled"] = repope.relabel(everything, pope.load_questions(relabel))
        answers = {q.question_id: answers[q.question_id] for q in questions}
    with naming(given.path):
        score = pope.score(questions, answers, parser, unread)
    return replace(score, notes={**score.notes, **told})
