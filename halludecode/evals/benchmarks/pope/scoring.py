"""POPE: yes/no questions about the presence of objects.

Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models", arXiv 2305.10355;
official code AoiDragon/POPE. Positive class is yes. Where the published scripts divide by zero, the
metric is 0.0 and listed in `Score.degenerate`.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.yes_no import COUNTS, RULES, count, parse_answer, rates
from halludecode.evals.data.records import Record, read_records, read_text
from halludecode.evals.statistics.score import Id, Score, gather, match
from halludecode.evals.statistics.score import mean_of as mean

__all__ = [
    "RULES",
    "SETTINGS",
    "TYPOS",
    "PopeQuestion",
    "Prior",
    "build_questions",
    "load_questions",
    "mean",
    "parse_answer",
    "score",
]

SETTINGS = ("random", "popular", "adversarial")
TYPOS = ("none", "vcd", "generator")


@dataclass(frozen=True)
class PopeQuestion:
    """One question of a POPE file.

    Args:
        question_id: Unique in its file.
        image: File name of the picture.
        text: The question.
        label: ``yes`` or ``no``.
        category: None where the file names none.
        where: ``file:line``, for messages; empty where there is no file.
    """

    question_id: Id
    image: str
    text: str
    label: str  # "yes" | "no"
    category: str | None = None
    where: str = field(default="", compare=False, repr=False)


def load_questions(path: Path | str) -> list[PopeQuestion]:
    """Reads a POPE question file: JSON lines or one JSON array, with LF or CRLF.

    Args:
        path: The file; ``.gz`` is unpacked.

    Raises:
        InvalidData: Unreadable, a key is missing or of the wrong type, a label is neither yes nor
            no, or an id occurs twice; the sentence names file and line.
    """
    questions: list[PopeQuestion] = []
    seen: dict[Id, int] = {}
    for record in read_records(path):
        question = _question(record)
        first = seen.setdefault(question.question_id, record.line)
        if first != record.line:
            raise InvalidData(
                f"{record.where}: question_id {question.question_id} was already used on line "
                f"{first}; ids must be unique, so score each split with its own file."
            )
        questions.append(question)
    return questions


def _question(record: Record) -> PopeQuestion:
    label = record.get("label", kind=str, what='"yes" or "no"')
    if label.strip().lower() not in ("yes", "no"):
        raise InvalidData(f'{record.where}: label is {label!r}; it must be "yes" or "no".')
    return PopeQuestion(
        question_id=record.get("question_id", kind=(int, str), what="an integer"),
        image=record.get("image", kind=str, what="a file name"),
        text=record.get("text", kind=str, what="the question"),
        label=label.strip().lower(),
        category=record.fields.get("category"),
        where=record.where,
    )


# Construction -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prior:
    """How often objects occur, and which occur together.

    Args:
        freq: Object to number of images with it; the order of keys breaks ties.
        cooc: Object to its companions, most frequent first.
    """

    freq: Mapping[str, int]
    cooc: Mapping[str, Sequence[str]]

    @classmethod
    def count(cls, objects: Mapping[str, Sequence[str]]) -> Prior:
        """Counts images per object and per pair of objects; ties keep first-seen order."""
        freq: Counter[str] = Counter()
        pairs: dict[str, Counter[str]] = {}
        for names in objects.values():
            present = list(dict.fromkeys(names))
            freq.update(present)
            for name in present:
                pairs.setdefault(name, Counter()).update(o for o in present if o != name)
        cooc = {name: [other for other, _ in row.most_common()] for name, row in pairs.items()}
        return cls(dict(freq), cooc)

    @classmethod
    def load(cls, freq: Path | str, cooc: Path | str) -> Prior:
        """Reads the two tables published with POPE (``*_ground_truth_objects``, ``*_co_occur``)."""
        return cls(json.loads(read_text(freq)), json.loads(read_text(cooc)))


def build_questions(
    objects: Mapping[str, Sequence[str]],
    setting: str,
    *,
    seed: int,
    prior: Mapping[str, Sequence[str]] | Prior | None = None,
    per_image: int = 3,
    typos: str = "none",
) -> list[dict[str, Any]]:
    """Builds POPE questions the official way: yes and no in turn, ``2 * per_image`` an image.

    The negative of a pair is never in the image nor asked about it before. ``random`` draws it from
    all known objects, ``popular`` takes the most frequent one, ``adversarial`` the one most often
    seen with the positive just asked about; the last two fall back to a draw when none is left.

    Args:
        objects: Image to the ordered names of what it shows. Images with fewer than ``per_image``
            names are skipped.
        setting: ``random``, ``popular`` or ``adversarial``.
        seed: Seed of the draws; a draw depends on seed, image and position only, not on the order
            of the images.
        prior: What frequencies are counted on: object lists of other images, or the tables
            themselves. None counts the images that are kept.
        per_image: Positives an image.
        typos: ``none`` (the official files of today; ``official`` is accepted); ``generator``
            repeats the old template bug that turns "an apple ... image" into "... imange" in every
            setting; ``vcd`` does so in the adversarial setting only, as VCD's files do.

    Returns:
        Records with ``question_id`` (from 1), ``image``, ``text``, ``label``.

    Raises:
        InvalidData: Unknown setting or typos, or an image for which no absent object exists.
    """
    typos = "none" if typos == "official" else typos
    if setting not in SETTINGS:
        raise InvalidData(f"POPE setting {setting!r} is unknown; use one of {', '.join(SETTINGS)}.")
    if typos not in TYPOS:
        raise InvalidData(f"POPE typos {typos!r} is unknown; use one of {', '.join(TYPOS)}.")
    if per_image < 1:
        raise InvalidData(f"per_image is {per_image}; it must be at least 1.")
    kept = {image: list(dict.fromkeys(names)) for image, names in objects.items()}
    kept = {image: names for image, names in kept.items() if len(names) >= per_image}
    if prior is None:
        prior = kept
    if not isinstance(prior, Prior):
        prior = Prior.count(prior)
    ranked = sorted(prior.freq, key=prior.freq.__getitem__, reverse=True)  # stable: ties as seen
    typo = typos == "generator" or (typos == "vcd" and setting == "adversarial")
    questions: list[dict[str, Any]] = []
    for image, names in kept.items():
        asked = set(names)
        for i in range(per_image):
            order = {"random": [], "popular": ranked, "adversarial": prior.cooc.get(names[i], [])}
            absent = next((name for name in order[setting] if name not in asked), None)
            if absent is None:
                absent = _draw(prior.freq, asked, f"{seed}:{image}:{i}", image)
            asked.add(absent)
            for name, label in ((names[i], "yes"), (absent, "no")):
                text = _ask(name, typo)
                number = len(questions) + 1
                questions.append(
                    {"question_id": number, "image": image, "text": text, "label": label}
                )
    return questions


def _draw(freq: Mapping[str, int], asked: set[str], seed: str, image: str) -> str:
    # Sorted, so that the draw does not depend on the order in which images were counted.
    candidates = sorted(name for name in freq if name not in asked)
    if not candidates:
        raise InvalidData(
            f"image {image}: every known object is in it or already asked about; "
            "give a prior with more objects or lower per_image."
        )
    return random.Random(seed).choice(candidates)


def _ask(name: str, typo: bool) -> str:
    if not _takes_an(name):
        return f"Is there a {name} in the image?"
    return f"Is there an {name} in the {'imange' if typo else 'image'}?"


_VOWEL = re.compile(r"[aeiou]|hour|heir|honest|honou?r", re.I)
_CONSONANT = re.compile(r"uni(?![mnd])|eu|ewe|u[kst][aeiu]|ura|uri|one\b|once|u-", re.I)


def _takes_an(name: str) -> bool:
    """Whether a name begins with the sound of a vowel; letters are spelt: an SUV, a UFO."""
    first = re.split(r"[\s/-]", name, maxsplit=1)[0]
    if first.isupper():
        return first[0] in "AEFHILMNORSX"
    return _VOWEL.match(name) is not None and _CONSONANT.match(name) is None


# Scoring ----------------------------------------------------------------------------------------


def score(
    questions: Sequence[PopeQuestion],
    answers: Mapping[Id, str],
    rule: str = "official",
    unread: Collection[Id] = (),
) -> Score:
    """Scores one answer per question.

    Args:
        questions: The questions, ids unique.
        answers: Question id to raw answer, exactly one for every question.
        rule: A key of `RULES`.
        unread: Answers that never came, such as thoughts that were cut off: neither yes nor no.

    Returns:
        Metrics ``accuracy precision recall f1 yes_ratio unparsed unread``; pictures are the
        clusters.

    Raises:
        InvalidData: Unknown rule, no questions, or ids that do not match.
    """
    if not questions:
        raise InvalidData("there are no questions to score; give a POPE file with questions.")
    match([q.question_id for q in questions], answers, "question_id")
    outcomes: dict[Id, dict[str, Any]] = {}
    rows = []
    for q in questions:
        answer = answers[q.question_id]
        parsed = parse_answer(answer, rule, q.label)
        if q.question_id in unread:
            parsed = "other"
        outcomes[q.question_id] = {
            "image": q.image,
            "answer": answer,
            "parsed": parsed,
            "label": q.label,
            "correct": int(parsed == q.label),
        }
        rows.append((q.image, count(parsed, q.label, answer, rule)))
    clusters, columns = gather(rows, COUNTS)
    right = {i: o["correct"] for i, o in outcomes.items()}
    if rule == "repope":
        right = {i: flag for i, flag in right.items() if outcomes[i]["parsed"] != "other"}
    return Score(
        task="pope",
        n=len(questions),
        rule=rule,
        outcomes=outcomes,
        clusters=clusters,
        columns=columns,
        formula=rates,
        shares={"accuracy": right},
        wilson=("accuracy",),
        unparsed=int(columns["unparsed"].sum()),
        unread=int(columns["unread"].sum()),
    )
