"""POPE's answers from files: one split, or a folder with a file for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.pope import relabel as repope
from halludecode.evals.benchmarks.pope import scoring as pope
from halludecode.evals.data.answers import load_answers, naming, refuse_strangers
from halludecode.evals.statistics.score import Score, match


def split_in(stem: str) -> str:
    """The POPE split in a file's or data set's name; without any the name itself."""
    return next((name for name in pope.SETTINGS if name in stem), stem)


def split_files(folder: Path) -> dict[str, Path]:
    """The question or answer files of a folder by split, POPE's own first.

    Args:
        folder: Holds ``*.json`` or ``*.jsonl`` files.

    Raises:
        InvalidData: Two files of one split.
    """
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.json*")):
        split = split_in(file.stem)
        if split in found:
            raise InvalidData(
                f"{file}: {found[split].name} is already the {split} split of this folder."
            )
        found[split] = file
    own = [name for name in pope.SETTINGS if name in found]
    return {name: found[name] for name in [*own, *(n for n in found if n not in own)]}


def score_answers(
    predictions: Path, annotations: Path | None, parser: str, relabel: Path | None
) -> Score:
    """Scores answers to a question file; of folders every split and their mean.

    Args:
        predictions: Answers, or a folder with a file a split.
        annotations: Questions, or a folder alike.
        parser: A key of `pope.RULES`.
        relabel: Questions with later labels, see `relabel`; None takes the questions' own.

    Raises:
        InvalidData: A file cannot be used, or files and folders are mixed.
    """
    if annotations is None:
        raise InvalidData("POPE needs its question file to score answers; give --annotations.")
    given = [Path(path) for path in (predictions, annotations, relabel) if path is not None]
    folders = [path for path in given if path.is_dir()]
    if not folders:
        return _split(predictions, annotations, parser, relabel)
    if len(folders) < len(given):
        other = next(path for path in given if path not in folders)
        raise InvalidData(f"{folders[0]} is a folder and {other} is not; give either, not both.")
    answered, asked, *later = map(split_files, folders)
    # POPE's own folder holds tables as well: only splits count, and what is named after answers.
    asked = {s: file for s, file in asked.items() if s in answered or s in pope.SETTINGS}
    _same_splits(folders[0], answered, folders[1], asked)
    for found in later:
        mine = {s: file for s, file in found.items() if s in asked}
        _same_splits(folders[2], mine, folders[1], asked)
    scores = {
        split: _split(answered[split], asked[split], parser, later[0][split] if later else None)
        for split in asked
    }
    return replace(pope.mean(scores), notes=_split_notes(scores))


def _same_splits(
    folder: Path, found: Mapping[str, Path], other: Path, asked: Mapping[str, Path]
) -> None:
    if set(found) != set(asked) or not asked:
        names = [", ".join(splits) or "none" for splits in (found, asked)]
        raise InvalidData(
            f"{folder} holds the splits {names[0]}, {other} {names[1]}; give files named after the "
            "same splits in both."
        )


def _split_notes(scores: Mapping[str, Score]) -> dict[str, Any]:
    """What is told beside a mean: the splits, and how many labels changed in all of them."""
    splits: dict[str, dict[str, Any]] = {}
    total: Counter[str] = Counter()
    for name, score in scores.items():
        metrics = {metric: {"value": value} for metric, value in score.metrics.items()}
        splits[name] = {"n": score.n, "metrics": metrics, "degenerate": list(score.degenerate)}
        if "relabelled" in score.notes:
            splits[name]["relabelled"] = score.notes["relabelled"]
            total.update(score.notes["relabelled"])
    return {"splits": splits} | ({"relabelled": dict(total)} if total else {})


def _split(predictions: Path, annotations: Path, parser: str, relabel: Path | None) -> Score:
    questions = pope.load_questions(annotations)
    answers = load_answers(predictions)
    asked = {q.question_id for q in questions}
    refuse_strangers(predictions, answers, asked, "question of the annotations")
    if relabel is None:
        with naming(predictions):
            return pope.score(questions, answers, parser)
    with naming(predictions):
        match([q.question_id for q in questions], answers, "question_id")
    kept, counts = repope.relabel(questions, pope.load_questions(relabel))
    known = {q.question_id: answers[q.question_id] for q in kept}
    with naming(predictions):
        score = pope.score(kept, known, parser)
    return replace(score, notes={**score.notes, "relabelled": counts})
