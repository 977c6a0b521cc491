"""MME: two yes/no questions a picture, one right with yes and one with no.

Fu et al. 2023, "MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models",
arXiv 2306.13394; rules of the official ``calculation.py``. A subtask scores
100 acc + 100 acc+ (0 to 200), where acc counts questions and acc+ pictures with both right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.yes_no import MME_RULES, is_unparsed, parse_mme_answer
from halludecode.evals.data.records import read_text
from halludecode.evals.statistics.score import Id, Score, Sums, gather, match, ratio

__all__ = [
    "COGNITION",
    "HALLUCINATION",
    "MME_RULES",
    "PERCEPTION",
    "SUBTASKS",
    "MmeQuestion",
    "load_questions",
    "load_results",
    "parse_mme_answer",
    "score",
]

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
HALLUCINATION = ("existence", "count", "position", "color")
SUBTASKS = PERCEPTION + COGNITION
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class MmeQuestion:
    """One question.

    Args:
        id: ``subtask/picture#k``, k counting the questions of the picture from 1.
        subtask: A name of `SUBTASKS`.
        image: File name of the picture.
        text: The question.
        label: ``yes`` or ``no``.
        path: The picture's file; None where only its name is known.
        where: ``file:line`` of the question, for messages; empty where there is no file.
    """

    id: str
    subtask: str
    image: str
    text: str
    label: str
    path: Path | None = None
    where: str = ""

    @classmethod
    def from_id(cls, name: str, text: str, label: str, where: str = "") -> MmeQuestion:
        """A question from its id ``subtask/picture#k``.

        Raises:
            InvalidData: The id has another form or names an unknown subtask.
        """
        subtask, slash, rest = name.partition("/")
        image, mark, k = rest.rpartition("#")
        if subtask not in SUBTASKS or not slash or not mark or not k.isdigit():
            raise InvalidData(
                f"{name!r} is not an MME id; it must read subtask/picture#k with one of "
                f"{', '.join(SUBTASKS)}."
            )
        return cls(name, subtask, image, text, label, where=where)


# Reading -----------------------------------------------------------------------------------------


def load_questions(folder: Path | str) -> list[MmeQuestion]:
    """Reads the questions of a folder, subtasks in MME's own order.

    Three layouts are read: ``<subtask>/*.txt`` with image, question, answer; the release's
    ``<subtask>/*.txt`` (or ``<subtask>/questions_answers_YN/*.txt``) with question, answer, named
    like their picture; and ``<subtask>.txt`` with image, question, answer. Columns are separated by
    tabs.

    Raises:
        InvalidData: No folder, no subtask in it, an unknown subtask, or a line of another form.
    """
    _pictures_in.cache_clear()
    questions = [question for question, _ in _read(Path(folder), answers=False)]
    by_picture: dict[tuple[str, str], list[MmeQuestion]] = {}
    for question in questions:
        by_picture.setdefault((question.subtask, question.image), []).append(question)
    for (subtask, image), own in by_picture.items():
        if len(own) % 2:
            raise InvalidData(
                f"{own[-1].where}: MME {subtask}: {image} has {len(own)} question"
                f"{'s' if own[1:] else ''}, and a picture counts only with pairs of them; give it "
                "two, or leave it out."
            )
    return questions


def load_results(folder: Path | str) -> tuple[list[MmeQuestion], dict[Id, str]]:
    """Reads the official results: ``<subtask>.txt`` with image, question, truth, answer.

    Returns:
        The questions and the raw answer to each, by id.

    Raises:
        InvalidData: As `load_questions`.
    """
    rows = _read(Path(folder), answers=True)
    return [question for question, _ in rows], {q.id: answer for q, answer in rows}


def _read(folder: Path, *, answers: bool) -> list[tuple[MmeQuestion, str]]:
    if not folder.is_dir():
        raise InvalidData(f"{folder} is not a folder; MME is a folder with one entry per subtask.")
    folder = root_of(folder)
    files = subtasks_in(folder, answers=answers)
    if not files:
        raise InvalidData(
            f"{folder} holds no MME subtask; expected entries such as {SUBTASKS[0]}.txt."
        )
    out: list[tuple[MmeQuestion, str]] = []
    for subtask, paths in files.items():
        asked: dict[str, int] = {}
        for path in paths:
            text = read_text(path)
            if answers and not text.strip():
                raise InvalidData(f"{path} is empty; it must hold the answers of {subtask}.")
            for line, row in enumerate(text.split("\n"), start=1):
                if row.strip():
                    image, text, label, answer = _row(path, line, row, answers)
                    k = asked[image] = asked.get(image, 0) + 1
                    picture = None if answers else _picture(folder / subtask, image)
                    name = picture.name if picture and not answers else image
                    question = MmeQuestion(
                        id=f"{subtask}/{name}#{k}",
                        subtask=subtask,
                        image=name,
                        text=text,
                        label=label,
                        path=picture,
                        where=f"{path}:{line}",
                    )
                    out.append((question, answer))
    return out


def subtasks_in(folder: Path, *, answers: bool = False) -> dict[str, list[Path]]:
    """The text files of every subtask that a folder holds, in MME's order.

    What a system or a release keeps beside them is left aside: ``._x.txt``, and texts without a
    tab, such as readme.txt. A folder that holds one more folder is that folder.

    Args:
        folder: The folder.
        answers: Whether results are meant, which have no folder a subtask.

    Raises:
        InvalidData: Something in it looks like a subtask and is none.
    """
    found: dict[str, list[Path]] = {}
    for entry in _seen(folder):
        name = entry.stem if entry.suffix == ".txt" else entry.name
        paths = [entry] if entry.suffix == ".txt" else []
        if entry.is_dir() and not answers:
            inner = entry / "questions_answers_YN"
            texts = _seen(inner if inner.is_dir() else entry)
            paths = [path for path in texts if path.suffix == ".txt"]
        if name not in SUBTASKS:
            paths = [path for path in paths if "\t" in read_text(path)]
        if paths and name not in SUBTASKS:
            raise InvalidData(
                f"{entry}: {name!r} is not an MME subtask; the known ones are "
                f"{', '.join(SUBTASKS)}."
            )
        if paths:
            found[name] = paths
    return {name: found[name] for name in SUBTASKS if name in found}


def root_of(folder: Path) -> Path:
    """The folder itself, or the one in it, or in that one, that holds the subtasks."""
    place = folder
    for _ in range(3):
        if has_subtasks(place):
            return place
        inner = [entry for entry in _seen(place) if entry.is_dir()] if place.is_dir() else []
        if len(inner) != 1:
            break
        place = inner[0]
    return folder


def has_subtasks(folder: Path) -> bool:
    """Whether an entry of a folder is called like a subtask."""
    return folder.is_dir() and any(e.name.removesuffix(".txt") in SUBTASKS for e in _seen(folder))


def _seen(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _row(path: Path, line: int, row: str, answers: bool) -> tuple[str, str, str, str]:
    cells = row.split("\t")
    if not answers and len(cells) == 2:
        cells = [path.stem, *cells]
    wanted = 4 if answers else 3
    if len(cells) != wanted:
        names = "image, question, truth, answer" if answers else "image, question, answer"
        raise InvalidData(
            f"{path}:{line}: {len(cells)} columns separated by tabs, expected {wanted} ({names}); "
            "replace tabs and line ends inside an answer by spaces."
        )
    label = cells[2].strip().lower()
    if label not in ("yes", "no"):
        raise InvalidData(f"{path}:{line}: the truth is {cells[2]!r}; it must be Yes or No.")
    return cells[0], cells[1], label, cells[3] if answers else ""


def _picture(folder: Path, image: str) -> Path | None:
    named = Path(image).suffix.lower() in _PICTURES
    names = [image.lower()] if named else [f"{image.lower()}{s}" for s in _PICTURES]
    for place in (folder, folder / "images"):
        if (place / image).is_file():
            return place / image
        there = _pictures_in(place)
        if found := next((there[name] for name in names if name in there), None):
            return found
    return None


@lru_cache(maxsize=64)
def _pictures_in(folder: Path) -> Mapping[str, Path]:
    """The files of a folder by name in small letters: ``p1.JPG`` is ``p1.jpg``."""
    return {entry.name.lower(): entry for entry in _seen(folder)} if folder.is_dir() else {}


# Scoring -----------------------------------------------------------------------------------------

_COLUMNS = ("n", "correct", "pairs", "both")


def score(
    questions: Sequence[MmeQuestion], answers: Mapping[Id, str], rule: str = "official"
) -> Score:
    """Scores one answer per question; consecutive questions of a subtask are a picture's pair.

    Args:
        questions: Questions of any subtasks; those of one picture stand together.
        answers: Question id to raw answer, exactly one for every question.
        rule: A key of `MME_RULES`.

    Returns:
        ``<subtask>.acc``, ``.acc_plus``, ``.score`` for the subtasks present, and ``perception``,
        ``cognition``, ``hallucination_subset``, ``total``: sums over those present, which
        ``notes["subtasks"]`` lists. Pictures are the clusters, resampled within their subtask.

    Raises:
        InvalidData: Unknown rule, no questions, ids that do not match, or a broken pair.
    """
    if not questions:
        raise InvalidData("there are no questions to score; give a folder with MME subtasks.")
    match([q.id for q in questions], answers, "question")
    outcomes = {q.id: _outcome(q, answers[q.id], rule) for q in questions}
    present = tuple(name for name in SUBTASKS if any(q.subtask == name for q in questions))
    rows: list[tuple[str, dict[str, float]]] = []
    shares: dict[str, dict[Id, int]] = {}
    for name in present:
        pairs = _pairs(name, [q for q in questions if q.subtask == name])
        acc = {q.id: outcomes[q.id]["correct"] for pair in pairs for q in pair}
        plus = {first.id: acc[first.id] * acc[second.id] for first, second in pairs}
        shares[f"{name}.acc_plus"] = plus  # of pairs: the questions of one are not independent
        for first, second in pairs:
            counts = (2, acc[first.id] + acc[second.id], 1, plus[first.id])
            named = {f"{name}.{key}": float(v) for key, v in zip(_COLUMNS, counts, strict=True)}
            rows.append((f"{name}/{first.image}", named))
    clusters, columns = gather(rows, [f"{name}.{key}" for name in present for key in _COLUMNS])
    return Score(
        task="mme",
        n=len(questions),
        rule=rule,
        outcomes=outcomes,
        clusters=clusters,
        columns=columns,
        formula=partial(_formula, present),
        strata=tuple(cluster.split("/", 1)[0] for cluster in clusters),
        shares=shares,
        wilson=tuple(shares),
        unparsed=sum(is_unparsed(o["answer"]) for o in outcomes.values()),
        unread=sum(o["parsed"] == "other" for o in outcomes.values()),
        notes={"subtasks": present},
    )


def _outcome(question: MmeQuestion, answer: str, rule: str) -> dict[str, Any]:
    parsed = parse_mme_answer(answer, rule)
    return {
        "image": question.image,
        "subtask": question.subtask,
        "answer": answer,
        "parsed": parsed,
        "label": question.label,
        "correct": int(parsed == question.label),
    }


def _pairs(subtask: str, questions: Sequence[MmeQuestion]) -> list[tuple[MmeQuestion, MmeQuestion]]:
    if len(questions) % 2:
        raise InvalidData(
            f"MME {subtask}: {len(questions)} questions are no pairs; "
            "every picture needs exactly two, on consecutive lines."
        )
    pairs = list(zip(questions[::2], questions[1::2], strict=True))
    for first, second in pairs:
        if first.image != second.image:
            where = f"{second.where}: " if second.where else ""
            raise InvalidData(
                f"{where}MME {subtask}: the pair of {first.image} is broken by {second.image}; "
                "every picture needs exactly two questions, on consecutive lines."
            )
    return pairs


def _formula(present: tuple[str, ...], s: Sums) -> dict[str, np.ndarray]:
    metrics: dict[str, np.ndarray] = {}
    for name in present:
        acc = ratio(s[f"{name}.correct"], s[f"{name}.n"])
        plus = ratio(s[f"{name}.both"], s[f"{name}.pairs"])
        metrics[f"{name}.acc"], metrics[f"{name}.acc_plus"] = acc, plus
        metrics[f"{name}.score"] = 100 * acc + 100 * plus
    zero = np.zeros_like(next(iter(metrics.values())))
    for group, members in (
        ("perception", PERCEPTION),
        ("cognition", COGNITION),
        ("hallucination_subset", HALLUCINATION),
    ):
        scores = [metrics[f"{name}.score"] for name in members if name in present]
        metrics[group] = sum(scores, start=zero)
    metrics["total"] = metrics["perception"] + metrics["cognition"]
    return metrics
