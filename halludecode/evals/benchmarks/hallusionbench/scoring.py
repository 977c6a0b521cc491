"""HallusionBench: the same question about an original and an edited figure, or about none.

Guan et al. 2024, "HallusionBench: An Advanced Diagnostic Suite for Entangled Language Hallucination
and Visual Illusion in Large Vision-Language Models", arXiv 2310.14566; counting of the official
``utils.py`` (tianyi-lab/HallusionBench). Officially GPT-4 judges an answer as incorrect (0),
correct (1) or unclear (2); here a rule reads it as yes, no or neither in its place, so the numbers
are not the leaderboard's. The questions are not part of this package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.hallusionbench.files import (
    CATEGORIES,
    ID,
    HallusionQuestion,
    load_answers,
    load_questions,
    make_question,
)
from halludecode.evals.benchmarks.yes_no import is_unparsed, parse_answer
from halludecode.evals.statistics.score import Id, Score, Sums, gather, match, ratio

__all__ = [
    "CATEGORIES",
    "RULES",
    "HallusionQuestion",
    "attribution",
    "judge",
    "load_answers",
    "load_questions",
    "make_question",
    "parse_hallusion_answer",
    "score",
    "score_lines",
    "set_of",
]

RULES = ("official", "vlmevalkit", "lmms_eval")
_CODES = {"0": "no", "1": "yes", "2": "other"}  # what the official script asks a model to answer

# Scoring -----------------------------------------------------------------------------------------


def parse_hallusion_answer(answer: str, rule: str = "official") -> str:
    """Reads an answer as ``yes``, ``no`` or ``other``.

    Args:
        answer: The model's raw words.
        rule: ``vlmevalkit``: the word yes or the word no, but not both; ``official``: the same, and
            the official script's codes ``0`` (no), ``1`` (yes), ``2`` (uncertain); ``lmms_eval``:
            yes wherever these letters occur, no otherwise.

    Raises:
        InvalidData: The rule is unknown.
    """
    if rule not in RULES:
        raise InvalidData(
            f"parser {rule!r} is unknown for HallusionBench; the known ones are {', '.join(RULES)}."
        )
    if rule == "lmms_eval":
        return "yes" if "yes" in answer.lower() else "no"
    if rule == "official" and answer in _CODES:
        return _CODES[answer]
    return parse_answer(answer, "vlmevalkit")


def score(
    questions: Sequence[HallusionQuestion],
    answers: Mapping[Id, str],
    rule: str = "official",
    *,
    allow_missing: bool = False,
) -> Score:
    """Scores one answer per question.

    Args:
        questions: The questions, ids unique.
        answers: Question id to raw answer.
        rule: Whose reading and counting: ``official``; ``vlmevalkit``, whose set has only the
            questions with a figure, and where not knowing is wrong; or ``lmms_eval``, its rule
            without a judge, which counts having no figure as a figure.
        allow_missing: Score only the answered questions; ``notes["missing"]`` counts the others.

    Returns:
        ``aAcc`` (questions right), ``qAcc`` (question pairs with all right), ``fAcc`` (figures with
        all right); by VLMEvalKit their ``mean``, its one figure; officially ``easy`` and ``hard``
        (pairs over figures that are not, and that are, edited, where the data tell),
        ``fig_inconsistent``, ``fig_wrong``, ``fig_score``,
        ``yes_diff`` (share of yes above the truth's) and ``fp_ratio`` (share of errors whose truth
        is no). Sets are the clusters of every interval and test. ``notes`` holds ``counts``,
        ``missing``, percentages as the official script prints them, and ``attribution`` of errors
        (see `attribution`).

    Raises:
        InvalidData: Unknown rule, no questions, or ids that do not match.
    """
    asked = len(questions)
    if allow_missing:
        questions = [q for q in questions if q.id in answers]
    match([q.id for q in questions], answers, "question")
    if not questions:
        raise InvalidData("there are no answers to score; give a file with answers.")
    notes = {"missing": asked - len(questions)}
    if rule == "vlmevalkit" and any(q.blind for q in questions):
        notes["left_out"] = sum(q.blind for q in questions)
        questions = [q for q in questions if not q.blind]
        if not questions:
            raise InvalidData("VLMEvalKit asks no question without a figure; there are no others.")
    outcomes = {q.id: judge(q, answers[q.id], rule) for q in questions}
    return _tally(questions, outcomes, rule, notes)


def score_lines(lines: Sequence[Mapping[str, Any]], rule: str = "official") -> Score:
    """Scores lines of a run folder.

    Args:
        lines: Lines of ``samples.jsonl``.
        rule: The rule by which they were parsed.
    """
    questions, outcomes = [], {}
    for line in lines:
        named = {name: line[name] for name in (*ID, "visual_input")}
        question = HallusionQuestion(**named, text=line["prompt"], label=line["label"])
        questions.append(question)
        told = {"answer": line["answer"], "parsed": line["parsed"], "label": line["label"]}
        outcomes[question.id] = {**told, "correct": line["score"]}
    return _tally(questions, outcomes, rule, {})


def _tally(
    questions: Sequence[HallusionQuestion],
    outcomes: Mapping[Id, Mapping[str, Any]],
    rule: str,
    notes: Mapping[str, Any],
) -> Score:
    rows = _rows(questions, {q.id: outcomes[q.id]["correct"] for q in questions}, rule)
    rows += [(_name(q, _SET), _counts(q, outcomes[q.id])) for q in questions]
    clusters, columns = gather(rows, _COLUMNS)
    groups = _groups(questions, rule)
    official = rule == "official"
    metrics = _formula(groups, rule, {name: column.sum() for name, column in columns.items()})
    counts = {name: int(columns[name].sum()) for name in ("questions", "qAcc", "fAcc")}
    told = {
        "counts": dict(zip(("questions", "pairs", "figures"), counts.values(), strict=True)),
        "printed": {name: _printed(name, float(value)) for name, value in metrics.items()},
        "attribution": attribution(questions, outcomes) if official else None,
    }
    return Score(
        task="hallusionbench",
        n=len(questions),
        rule=rule,
        outcomes=outcomes,
        clusters=clusters,
        columns=columns,
        formula=partial(_formula, groups, rule),
        unparsed=sum(is_unparsed(o["answer"]) for o in outcomes.values()),
        unread=sum(o["parsed"] == "other" for o in outcomes.values()),
        notes={**notes, **told},
    )


def judge(question: HallusionQuestion, answer: str, rule: str = "official") -> dict[str, Any]:
    """What one answer says, as in `Score.outcomes`.

    Args:
        question: The question.
        answer: The raw answer.
        rule: A name of `RULES`.

    Raises:
        InvalidData: The rule is unknown.
    """
    parsed = parse_hallusion_answer(answer, rule)
    unclear = rule == "official" and question.blind and parsed == "other"
    return {
        "answer": answer,
        "parsed": parsed,
        "label": question.label,
        "correct": int(parsed == question.label or unclear),
    }


# Counting ----------------------------------------------------------------------------------------

_SET = ("category", "subcategory", "set_id")
_GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "qAcc": (*_SET, "question_id"),
        "fAcc": (*_SET, "figure_id"),
        "easy": (*_SET, "question_id"),
        "hard": (*_SET, "question_id"),
    }
)
_COLUMNS = (
    *(f"{name}{part}" for name in _GROUPS for part in ("", ".right")),
    *("fAcc.wrong", "fAcc.score", "questions", "right", "yes", "said", "errors", "errors.no"),
)


def set_of(question: HallusionQuestion) -> str:
    """Name of the set of figures and questions that belong together."""
    return _name(question, _SET)


def _name(question: HallusionQuestion, parts: Sequence[str]) -> str:
    return "_".join(getattr(question, part) for part in parts)


def _groups(questions: Sequence[HallusionQuestion], rule: str) -> tuple[str, ...]:
    """What is told: easy and hard only where it is known which figures are edited."""
    told = rule == "official" and all(q.visual_input is not None for q in questions)
    return tuple(_GROUPS) if told else ("qAcc", "fAcc")


def _member(question: HallusionQuestion, group: str, rule: str) -> bool:
    if group in ("easy", "hard"):
        return (question.visual_input == "2") == (group == "hard")
    return not (group == "fAcc" and rule == "official" and question.blind)


def _rows(
    questions: Sequence[HallusionQuestion], correct: Mapping[str, int], rule: str
) -> list[tuple[str, dict[str, float]]]:
    """Counts of every pair and figure by set."""
    rows: list[tuple[str, dict[str, float]]] = []
    for group in _groups(questions, rule):
        parts = _GROUPS[group]
        members: dict[str, list[HallusionQuestion]] = {}
        for q in questions:
            if _member(q, group, rule):
                members.setdefault(_name(q, parts), []).append(q)
        for found in members.values():
            right = sum(correct[q.id] for q in found)
            counts = {group: 1.0, f"{group}.right": float(right == len(found))}
            if group == "fAcc":
                counts |= {"fAcc.wrong": float(right == 0), "fAcc.score": right / len(found)}
            rows.append((_name(found[0], _SET), counts))
    return rows


def _counts(question: HallusionQuestion, outcome: Mapping[str, Any]) -> dict[str, float]:
    right, yes = outcome["correct"], question.label == "yes"
    return {
        "questions": 1.0,
        "right": float(right),
        "yes": float(yes),
        # The official script infers the answer from whether it was right.
        "said": float(right == yes),
        "errors": float(not right),
        "errors.no": float(not right and not yes),
    }


def _formula(groups: Sequence[str], rule: str, s: Sums) -> dict[str, np.ndarray]:
    metrics = {"aAcc": ratio(s["right"], s["questions"])}
    metrics |= {name: ratio(s[f"{name}.right"], s[name]) for name in groups}
    if rule == "vlmevalkit":
        metrics["mean"] = sum(np.nan_to_num(metrics[name]) for name in ("aAcc", "fAcc", "qAcc")) / 3
    if rule == "official":
        torn = s["fAcc"] - s["fAcc.right"] - s["fAcc.wrong"]
        metrics |= {
            "fig_inconsistent": ratio(torn, s["fAcc"]),
            "fig_wrong": ratio(s["fAcc.wrong"], s["fAcc"]),
            "fig_score": ratio(s["fAcc.score"], s["fAcc"]),
            "yes_diff": ratio(s["said"], s["questions"]) - ratio(s["yes"], s["questions"]),
            "fp_ratio": ratio(s["errors.no"], s["errors"]),
        }
    return metrics


def _printed(name: str, value: float) -> float:
    """A metric as the official script prints it."""
    if np.isnan(value):
        return 0.0
    if name in ("yes_diff", "fp_ratio"):
        return value
    return round(value, 4) if name == "fig_score" else round(100 * value, 4)


def attribution(
    questions: Sequence[HallusionQuestion], outcomes: Mapping[Id, Mapping[str, Any]]
) -> dict[str, int] | None:
    """Errors put down to language (LH), to vision (VI) or to either (Mix), officially counted.

    Officially GPT-4 also says whether an answer agrees with the one to the original figure; without
    a judge all are taken to agree, which moves errors from VI and Mix to LH.

    Args:
        questions: The questions.
        outcomes: Question id to its outcome in `Score.outcomes`.

    Returns:
        Numbers of questions; None where the original of an edited question is not among them.
    """

    def code(q: HallusionQuestion) -> str:
        parsed = outcomes[q.id]["parsed"]
        return "2" if parsed == "other" else str(int(parsed == q.label))

    pair = _GROUPS["qAcc"]
    first = {_name(q, pair): code(q) for q in questions if q.figure_id == "0"}
    if any(_name(q, pair) not in first for q in questions):
        return None
    found = {"LH": 0, "VI": 0, "Mix": 0}
    for q in questions:
        blame = _blame(q, first[_name(q, pair)], code(q))
        if blame:
            found[blame] += 1
    return found


def _blame(question: HallusionQuestion, original: str, code: str) -> str | None:
    """What is to blame for an answer of this code, given that to the original figure or none."""
    if code == "1" or (question.blind and code == "2"):
        return None
    if question.blind:
        return "LH"
    if question.category == "VD":
        # An edited figure answered like its original, which was right: either can be to blame.
        edited = question.figure_id != "0"
        return "Mix" if edited and original == "1" and code == "0" else "VI"
    if original == "0":
        return "LH" if code == "0" else "Mix"
    return "LH" if original == "1" and code == "0" and question.visual_input == "2" else "VI"
