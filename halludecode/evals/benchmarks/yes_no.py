"""Benchmarks of yes/no questions, and the published ways of reading an answer as yes or no.

The rules disagree in exactly such answers as "No!", "NO" or "There is a snowboard", so they are
kept apart by name, and nothing is stripped from an answer unless its rule does so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.base import YES_RATIO, YES_RATIO_PLOT, Benchmark, Metric
from halludecode.evals.data.columns import Columns, read_id, said, yes_or_no
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Score, Sums, ratio


def _official(answer: str, label: str) -> str:
    tokens = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(tokens) else "yes"


def _opera(answer: str, label: str) -> str:
    tokens = answer.replace(".", "").replace(",", "").split(" ")
    denied = any(t in ("No", "not", "no", "NO") or t.endswith("n't") for t in tokens)
    return "no" if denied else "yes"


def _vcd(answer: str, label: str) -> str:
    # Only the word that would be right is looked for, anywhere, even inside "snowboard".
    right = label in answer.lower()
    return label if right else ("no" if label == "yes" else "yes")


def _lmms_eval(answer: str, label: str) -> str:
    text = answer.lower().strip()
    return text if text in ("yes", "no") else "other"


def _vlmevalkit(answer: str, label: str) -> str:
    words = _strip_punctuation(answer.lower()).split()
    if ("yes" in words) == ("no" in words):
        return "other"
    return "yes" if "yes" in words else "no"


def _repope(answer: str, label: str) -> str:
    text = answer.lower()
    if "yes" in text:
        return "yes"
    return "no" if "no" in text else "other"  # "no" covers "not"


def _strip_punctuation(text: str) -> str:
    comma_in_number = re.search(r"\d,\d", text) is not None
    stripped = text
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        beside_space = mark + " " in text or " " + mark in text
        stripped = stripped.replace(mark, "" if beside_space or comma_in_number else " ")
    # The kit passes a flag where re.sub takes a count, so at most 32 periods go.
    return re.sub(r"\.(?!\d)", "", stripped, count=32)


RULES: Mapping[str, Callable[[str, str], str]] = MappingProxyType(
    {
        "official": _official,
        "opera": _opera,
        "vcd": _vcd,
        "lmms_eval": _lmms_eval,
        "vlmevalkit": _vlmevalkit,
        "repope": _repope,
    }
)


@lru_cache(maxsize=1 << 15)
def parse_answer(answer: str, rule: str = "official", label: str | None = None) -> str:
    """Reads an answer as ``yes``, ``no`` or ``other`` (only some rules know the last).

    Args:
        answer: The model's raw words; nothing is stripped unless the rule does so.
        rule: A key of `RULES`.
        label: The right answer; the ``vcd`` rule depends on it, the others ignore it.

    Raises:
        InvalidData: The rule is unknown, or ``vcd`` is used without a label.
    """
    if rule not in RULES:
        raise InvalidData(f"parser {rule!r} is unknown; the known ones are {', '.join(RULES)}.")
    if rule == "vcd" and label not in ("yes", "no"):
        raise InvalidData("parser 'vcd' reads an answer in the light of its label; give one.")
    return RULES[rule](answer, label or "")


def neither_remarks(score: Score) -> list[str]:
    """How many answers hold neither word and are counted as one all the same, as a sentence."""
    if not score.unparsed:
        return []
    return [
        f"{score.unparsed} of {score.n} answers hold neither yes nor no as a word; rule "
        f"{score.rule} leaves {score.unread} unread and counts the others as yes or no."
    ]


_EITHER = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


@lru_cache(maxsize=1 << 15)  # asked of the same answers by every count of them
def is_unparsed(answer: str) -> bool:
    """Whether an answer holds neither the word yes nor the word no, in any case."""
    return _EITHER.search(answer) is None


# MME ---------------------------------------------------------------------------------------------


def _mme_official(answer: str) -> str:
    text = answer.lower()
    if text in ("yes", "no"):
        return text
    if "yes" in text[:4]:
        return "yes"
    return "no" if "no" in text[:4] else "other"


def _mme_lmms_eval(answer: str) -> str:
    text = answer.lower().strip().replace(".", "")
    return {"y": "yes", "n": "no"}.get(text) or _mme_official(text)


MME_RULES: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        "official": _mme_official,
        "lmms_eval": _mme_lmms_eval,
        "vlmevalkit": lambda answer: _vlmevalkit(answer, ""),
    }
)


def parse_mme_answer(answer: str, rule: str = "official") -> str:
    """Reads an MME answer as ``yes``, ``no`` or ``other``.

    Args:
        answer: The model's raw words, without the line end of the results file.
        rule: A key of `MME_RULES`.

    Raises:
        InvalidData: The rule is unknown.
    """
    if rule not in MME_RULES:
        raise InvalidData(
            f"parser {rule!r} is unknown for MME; the known ones are {', '.join(MME_RULES)}."
        )
    return MME_RULES[rule](answer)


# Counting ----------------------------------------------------------------------------------------

COUNTS = ("n", "asked", "correct", "tp", "fp", "fn", "unparsed", "unread")


def count(parsed: str, label: str, answer: str, rule: str = "official") -> dict[str, float]:
    """What one answer adds to each of `COUNTS`.

    Args:
        parsed: The answer as the rule reads it.
        label: The right one.
        answer: The raw words.
        rule: A key of `RULES`.
    """
    return dict(_counts(parsed, label, is_unparsed(answer), rule))


@cache
def _counts(parsed: str, label: str, unparsed: bool, rule: str) -> dict[str, float]:
    counts = {"asked": 1.0, "unparsed": float(unparsed)}
    counts["unread"] = float(parsed == "other")
    if rule == "repope" and parsed == "other":  # which it does not count
        return counts
    # An unreadable answer to a yes question is a miss, except that lmms-eval forgets it.
    missed = parsed == "no" or (parsed == "other" and rule != "lmms_eval")
    return counts | {
        "n": 1.0,
        "correct": float(parsed == label),
        "tp": float(parsed == "yes" and label == "yes"),
        "fp": float(parsed == "yes" and label == "no"),
        "fn": float(label == "yes" and missed),
    }


def rates(s: Sums) -> dict[str, np.ndarray]:
    """Accuracy, precision, recall, F1, share of yes; how many hold neither word, and are unread."""
    precision = ratio(s["tp"], s["tp"] + s["fp"])
    recall = ratio(s["tp"], s["tp"] + s["fn"])
    return {
        "accuracy": ratio(s["correct"], s["n"]),
        "precision": precision,
        "recall": recall,
        "f1": ratio(2 * precision * recall, precision + recall),
        "yes_ratio": ratio(s["tp"] + s["fp"], s["n"]),
        "unparsed": np.asarray(s["unparsed"], dtype=float),
        "unread": np.asarray(s["unread"], dtype=float),
    }


# Benchmarks --------------------------------------------------------------------------------------

# Tables of questions, as POPE, MME and AMBER have them on the hub.
QUESTIONS = Columns(
    needs={
        "question_id": ("question_id", "index", "id"),
        "image": ("image",),
        "question": ("question", "text"),
        "answer": ("answer", "label"),
    },
    takes={"category": ("category",), "image_source": ("image_source", "image_path")},
    signs=(frozenset({"question", "answer"}), frozenset({"text", "label"})),
    names=("image_source", "question_id"),
)


@dataclass(frozen=True)
class YesNoBenchmark(Benchmark):
    """Base of benchmarks of yes/no questions.

    As it is, it reads `QUESTIONS`, judges by POPE's official rule and reports accuracy, precision,
    recall, F1 and the share of yes over pictures.
    """

    text_kind = "yes_no"
    columns = (QUESTIONS,)
    examples = tuple(
        {"question_id": n, "image": f"{n // 2}.png", "question": f"Is {n} there?", "answer": answer}
        for n, answer in enumerate(("yes", "no", "no", "yes"))
    )
    metrics = (
        Metric(
            "accuracy",
            "accuracy %",
            beside=(("f1", "F1"), ("yes_ratio", "yes")),
            control="yes_ratio",
            headline=True,
            guessing=50.0,
        ),
    )
    more_metrics = (Metric("f1", "F1 %", headline=True), YES_RATIO)
    plots = (YES_RATIO_PLOT,)
    rule: ClassVar[Callable[[str], str]] = staticmethod(parse_answer)

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """One question."""
        return self.question(record)

    def question(self, record: Record) -> Sample:
        """The question of a row of `QUESTIONS`."""
        cells = record.fields
        return Sample(
            read_id(cells["question_id"]),
            said(cells["question"]),
            cells["image"],
            label=yes_or_no(cells["answer"], record.where),
            where=record.where,
        )

    def judge(self, sample: Sample, answer: str) -> dict[str, Any]:
        """``parsed`` is yes, no or other by the benchmark's rule, ``score`` 1 or 0."""
        parsed = self.rule(answer)
        return {"parsed": parsed, "score": int(parsed == sample.label)}

    def unparsed(self, lines: Sequence[Mapping[str, Any]]) -> int:
        """Answers with neither word."""
        return sum(is_unparsed(line["answer"]) for line in lines)

    def remarks(self, score: Score) -> list[str]:
        """Answers that a rule made for one word reads although they hold neither."""
        return neither_remarks(score)

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Score:
        """The counts of all answers; see `Benchmark.cluster`."""
        rows = [(self.cluster(x), count(x["parsed"], x["label"], x["answer"])) for x in lines]
        return self.tally(lines, rows, rates, wilson=("accuracy",))
