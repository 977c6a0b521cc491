"""POPE: yes/no questions about the presence of objects.

Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models", arXiv 2305.10355;
official code AoiDragon/POPE. Positive class is yes. Where the published scripts divide by zero, the
metric is 0.0 and listed in `Score.degenerate`.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.yes_no import RULES, is_unparsed, parse_answer
from halludecode.evals.data.records import Record, read_records, read_text
from halludecode.evals.statistics.score import Id, Score, Sums, gather, match, ratio

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
    if label not in ("yes", "no"):
        raise InvalidData(f'{record.where}: label is {label!r}; it must be "yes" or "no".')
    return PopeQuestion(
        question_id=record.get("question_id", kind=(int, str), what="an integer"),
        image=record.get("image", kind=str, what="a file name"),
        text=record.get("text", kind=str, what="the question"),
        label=label,
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
    if name[:1] not in tuple("aeiou"):
        return f"Is there a {name} in the image?"
    return f"Is there an {name} in the {'imange' if typo else 'image'}?"


# Scoring ----------------------------------------------------------------------------------------

_COLUMNS = ("n", "asked", "correct", "tp", "fp", "fn", "unparsed")


def score(
    questions: Sequence[PopeQuestion], answers: Mapping[Id, str], rule: str = "official"
) -> Score:
    """Scores one answer per question.

    Args:
        questions: The questions, ids unique.
        answers: Question id to raw answer, exactly one for every question.
        rule: A key of `RULES`.

    Returns:
        Metrics ``accuracy precision recall f1 yes_ratio unparsed``; pictures are the clusters.

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
        counted = not (rule == "repope" and parsed == "other")
        outcomes[q.question_id] = {
            "image": q.image,
            "answer": answer,
            "parsed": parsed,
            "label": q.label,
            "correct": int(parsed == q.label),
        }
        rows.append((q.image, _counts(parsed, q.label, rule, counted, is_unparsed(answer))))
    clusters, columns = gather(rows, _COLUMNS)
    unparsed = int(columns["unparsed"].sum())
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
        formula=_formula,
        shares={"accuracy": right},
        wilson=("accuracy",),
        unparsed=unparsed,
    )


def _counts(parsed: str, label: str, rule: str, counted: bool, unparsed: bool) -> dict[str, float]:
    counts = {"asked": 1.0, "unparsed": float(unparsed)}
    if counted:
        # An unreadable answer to a yes question is a miss, except that lmms-eval forgets it.
        missed = parsed == "no" or (parsed == "other" and rule != "lmms_eval")
        counts |= {
            "n": 1.0,
            "correct": float(parsed == label),
            "tp": float(parsed == "yes" and label == "yes"),
            "fp": float(parsed == "yes" and label == "no"),
            "fn": float(label == "yes" and missed),
        }
    return counts


def _formula(s: Sums) -> dict[str, np.ndarray]:
    precision = ratio(s["tp"], s["tp"] + s["fp"])
    recall = ratio(s["tp"], s["tp"] + s["fn"])
    return {
        "accuracy": ratio(s["correct"], s["n"]),
        "precision": precision,
        "recall": recall,
        "f1": ratio(2 * precision * recall, precision + recall),
        "yes_ratio": ratio(s["tp"] + s["fp"], s["n"]),
        "unparsed": np.asarray(s["unparsed"], dtype=float),
    }


def mean(scores: Mapping[str, Score]) -> Score:
    """The unweighted mean over splits, with pictures shared between splits resampled together.

    Args:
        scores: Split name to its score, all under one rule.

    Returns:
        Mean metrics (``unparsed`` is the total); item ids become ``split/id``.

    Raises:
        InvalidData: No splits, or splits scored under different rules.
    """
    rules = {s.rule for s in scores.values()}
    if len(rules) != 1:
        raise InvalidData(f"a mean needs splits scored under one rule, found {sorted(rules)}.")
    rows = [
        (cluster, {f"{split}.{name}": column[i] for name, column in s.columns.items()})
        for split, s in scores.items()
        for i, cluster in enumerate(s.clusters)
    ]
    clusters, columns = gather(rows, [f"{split}.{name}" for split in scores for name in _COLUMNS])
    outcomes = {f"{k}/{i}": o for k, s in scores.items() for i, o in s.outcomes.items()}
    right = {f"{k}/{i}": f for k, s in scores.items() for i, f in s.shares["accuracy"].items()}
    sizes = {len(s.shares["accuracy"]) for s in scores.values()}
    return Score(
        task="pope",
        n=sum(s.n for s in scores.values()),
        rule=rules.pop(),
        outcomes=outcomes,
        clusters=clusters,
        columns=columns,
        formula=partial(_mean_formula, tuple(scores)),
        shares={"accuracy": right} if len(sizes) == 1 else {},
        unparsed=sum(s.unparsed for s in scores.values()),
        notes={"splits": tuple(scores)},
    )


def _mean_formula(splits: tuple[str, ...], s: Sums) -> dict[str, np.ndarray]:
    parts = [_formula({name: s[f"{split}.{name}"] for name in _COLUMNS}) for split in splits]
    metrics = {
        name: np.mean([np.nan_to_num(part[name]) for part in parts], axis=0) for name in parts[0]
    }
    metrics["unparsed"] = np.sum([part["unparsed"] for part in parts], axis=0)
    return metrics
