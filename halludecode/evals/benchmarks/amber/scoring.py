"""AMBER: descriptions against lists of what is and is not there, and yes/no questions.

Wang et al. 2023, "AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination
Evaluation", arXiv 2311.07397; counting of the released ``inference.py`` (junyangwang0410/AMBER).
The positive class of the questions is no. The released script starts every denominator at 0.001 and
rounds every figure to a tenth of a percent, F1 from rounded precision and recall; so do the metrics
here. The annotations are not part of this package, the word lists are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.amber.description_words import (
    Describer,
    Naming,
    Nouns,
    Similarity,
    make_describer,
    read_description,
)
from halludecode.evals.benchmarks.amber.files import (
    ATTRIBUTES,
    DIMENSIONS,
    TYPES,
    AmberItem,
    Lexicon,
    files,
    load_items,
    load_lexicon,
    make_item,
)
from halludecode.evals.benchmarks.yes_no import is_unparsed, parse_answer
from halludecode.evals.statistics.score import Id, Score, Sums, gather, match

__all__ = [
    "DIMENSIONS",
    "RULES",
    "TYPES",
    "AmberItem",
    "Lexicon",
    "Naming",
    "files",
    "judge",
    "load_items",
    "load_lexicon",
    "make_describer",
    "make_item",
    "parse_amber_answer",
    "read_description",
    "score",
    "score_lines",
]

# Answers -----------------------------------------------------------------------------------------


def _lmms_eval(answer: str) -> str:
    text = answer.lower()
    return "yes" if "yes" in text else ("no" if "no" in text else "other")


RULES: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        "official": lambda answer: {"Yes": "yes", "No": "no"}.get(answer, "other"),
        "vlmevalkit": lambda answer: parse_answer(answer, "vlmevalkit"),
        "lmms_eval": _lmms_eval,
    }
)


def parse_amber_answer(answer: str, rule: str = "official") -> str:
    """Reads the answer to a question as ``yes``, ``no`` or ``other``.

    Args:
        answer: The model's raw words.
        rule: ``official``: exactly "Yes" or "No"; ``vlmevalkit``: the word yes or the word no, but
            not both; ``lmms_eval``: these letters anywhere, yes before no. Only the reading is
            theirs, figures stay official.

    Raises:
        InvalidData: The rule is unknown.
    """
    if rule not in RULES:
        raise InvalidData(
            f"parser {rule!r} is unknown for AMBER; the known ones are {', '.join(RULES)}."
        )
    return RULES[rule](answer)


# Scoring -----------------------------------------------------------------------------------------


def score(
    items: Sequence[AmberItem],
    responses: Mapping[Id, str],
    lexicon: Lexicon | None = None,
    *,
    rule: str = "official",
    similarity: Similarity | str | None = None,
    allow_missing: bool = False,
    nouns: Nouns | None = None,
) -> Score:
    """Scores the dimensions that are answered.

    Args:
        items: The annotations, ids unique.
        responses: Item id to raw response: every item of each dimension that has any.
        lexicon: From `load_lexicon`; descriptions need it.
        rule: A key of `RULES`, for the questions.
        similarity: Similarity of two words for the descriptions, or ``spacy:MODEL`` (officially
            ``spacy:en_core_web_lg``); None is 0 for any two words. It moves the numbers, so it is
            recorded.
        allow_missing: Score only what is answered; ``notes["missing"]`` counts the rest.
        nouns: Text to its lemmatised nouns; None is NLTK's way, the official one.

    Returns:
        Of what is answered: ``chair cover hal cog``; ``existence.accuracy .precision .recall .f1``,
        the same for ``attribute`` and its ``state number action``, and for ``relation``; without a
        prefix over all questions, where the three dimensions are there; ``amber``,
        (1 - chair + f1) / 2. Pictures are the clusters. ``notes["printed"]`` holds the percentages
        under the released script's headings.

    Raises:
        InvalidData: Unknown rule or similarity, ids that do not match, an object without a lexicon
            entry.
        MissingExtra: NLTK, its data or spaCy's model is not installed.
    """
    items, missing = _answered(items, responses, allow_missing)
    describer = None
    if any(item.label is None for item in items):
        describer = make_describer(lexicon, similarity, nouns)
    outcomes = {item.id: judge(item, responses[item.id], rule, describer) for item in items}
    ways = describer.ways if describer else {}
    return _tally(items, outcomes, rule, {"missing": missing, **ways})


def judge(
    item: AmberItem, answer: str, rule: str = "official", describer: Describer | None = None
) -> dict[str, Any]:
    """What one response says, as in `Score.outcomes`.

    Args:
        item: What was asked for.
        answer: The raw response.
        rule: A key of `RULES`.
        describer: Reads descriptions; questions do without.

    Raises:
        InvalidData: Unknown rule, a description without a describer, or an object without a lexicon
            entry.
    """
    found: dict[str, Any] = {"image": item.image, "answer": answer}
    if item.label is None:
        return found | (describer or make_describer(None)).read(answer, item)
    parsed = parse_amber_answer(answer, rule)
    return found | {"parsed": parsed, "label": item.label, "correct": int(parsed == item.label)}


def score_lines(lines: Sequence[Mapping[str, Any]], rule: str = "official") -> Score:
    """Scores lines of a run folder, whose ``parsed`` tells all that is needed.

    Args:
        lines: Lines of ``samples.jsonl``.
        rule: The rule by which they were parsed.
    """
    items, outcomes = [], {}
    for line in lines:
        item = AmberItem(
            line["id"],
            line["type"],
            line.get("label"),
            tuple(line.get("objects", ())),
            tuple(line.get("hallu", ())),
            line["image"],
        )
        items.append(item)
        parsed = {"parsed": line["parsed"], "label": item.label, "correct": line["score"]}
        told = line["parsed"] if item.label is None else parsed
        outcomes[item.id] = {"image": item.image, "answer": line["answer"], **told}
    return _tally(items, outcomes, rule, {})


def _tally(
    items: Sequence[AmberItem],
    outcomes: dict[Id, dict[str, Any]],
    rule: str,
    notes: Mapping[str, Any],
) -> Score:
    has = tuple(name for name in DIMENSIONS if any(item.dimension == name for item in items))
    rows = [(item.image or f"item {item.id}", _counts(item, outcomes[item.id])) for item in items]
    clusters, columns = gather(rows, _COLUMNS)
    metrics = _formula(has, {name: column.sum() for name, column in columns.items()})
    told = {
        "dimensions": has,
        "clusters": "pictures" if all(item.image for item in items) else "items",
        "printed": _printed(metrics),
    }
    return Score(
        task="amber",
        n=len(items),
        rule=rule,
        outcomes=outcomes,
        clusters=clusters,
        columns=columns,
        formula=partial(_formula, has),
        shares=_shares(has, items, outcomes),
        unparsed=sum("parsed" in o and is_unparsed(o["answer"]) for o in outcomes.values()),
        unread=sum(outcome.get("parsed") == "other" for outcome in outcomes.values()),
        notes={**notes, **told},
    )


def _answered(
    items: Sequence[AmberItem], responses: Mapping[Id, str], allow_missing: bool
) -> tuple[list[AmberItem], int]:
    """The items to score, and how many of the same dimensions have no response."""
    asked = {item.dimension for item in items if item.id in responses}
    wanted = [item for item in items if item.dimension in asked]
    found = [item for item in wanted if item.id in responses] if allow_missing else wanted
    match([item.id for item in found], responses, "id")
    if not found:
        raise InvalidData("there are no responses to score; give a file with AMBER responses.")
    return found, len(wanted) - len(found)


# Counting ----------------------------------------------------------------------------------------

_PER_TEXT = ("texts", "clean", "nouns", "wrong", "truth", "covered", "hallu", "thought_of")
_PER_PART = ("n", "correct", "no", "said", "hit")  # no: truths that are no; said: answers
_QUESTIONS = ("existence", *ATTRIBUTES, "relation")
_COLUMNS = (*_PER_TEXT, *(f"{part}.{name}" for part in _QUESTIONS for name in _PER_PART))
# Group of the table: the parts it counts, its dimension, and the script's (misspelt) heading.
_GROUPS: Mapping[str, tuple[tuple[str, ...], str, str]] = MappingProxyType(
    {
        "": (_QUESTIONS, "", "Descriminative Task"),
        "existence.": (("existence",), "existence", "Exsitence"),
        "attribute.": (ATTRIBUTES, "attribute", "Attribute"),
        **{f"{p}.": ((p,), "attribute", p.capitalize()) for p in ATTRIBUTES},
        "relation.": (("relation",), "relation", "Relation"),
    }
)


def _groups(has: Collection[str]) -> list[str]:
    """The groups of the table, the one over all questions only where every dimension is there."""
    whole = set(has) >= set(DIMENSIONS[1:])
    return [name for name, (_, of, _) in _GROUPS.items() if of in has or (whole and not of)]


def _counts(item: AmberItem, outcome: Mapping[str, Any]) -> dict[str, float]:
    if item.label is None:
        wrong = len(outcome["hallucinated"])
        return {
            "texts": 1.0,
            "clean": float(wrong == 0),
            "nouns": float(len(outcome["nouns"])),
            "wrong": float(wrong),
            "truth": float(len(item.truth)),
            "covered": float(len(outcome["covered"])),
            "hallu": float(len(item.hallu)),
            "thought_of": float(len(outcome["thought_of"])),
        }
    no, said = item.label == "no", outcome["parsed"] == "no"
    values = (1, outcome["correct"], no, said, no and said)
    return {f"{item.part}.{k}": float(v) for k, v in zip(_PER_PART, values, strict=True)}


def _shares(
    has: Collection[str], items: Sequence[AmberItem], outcomes: Mapping[Id, Mapping[str, Any]]
) -> dict[str, dict[Id, int]]:
    shares: dict[str, dict[Id, int]] = {}
    if "generative" in has:
        texts = [item.id for item in items if item.label is None]
        shares["hal"] = {i: int(bool(outcomes[i]["hallucinated"])) for i in texts}
    for group in _groups(has):
        asked = [item.id for item in items if item.part in _GROUPS[group][0]]
        shares[f"{group}accuracy"] = {i: outcomes[i]["correct"] for i in asked}
    return shares


def _percent(numerator: np.ndarray, denominator: np.ndarray, start: float = 0.001) -> np.ndarray:
    """Percentage to one decimal, over a denominator that starts above 0; NaN over nothing."""
    values = np.asarray(numerator / (denominator + start) * 100)
    return np.where(denominator == 0, np.nan, _tenths(values))


def _tenths(values: np.ndarray) -> np.ndarray:
    # The script rounds as Python does; numpy rounds 0.35 up, but is 30 times as fast on resamples.
    return np.round(values, 1) if np.ndim(values) else np.asarray(round(float(values), 1))


def _formula(has: Collection[str], s: Sums) -> dict[str, np.ndarray]:
    percent: dict[str, np.ndarray] = {}
    if "generative" in has:
        percent["chair"] = _percent(s["wrong"], s["nouns"])
        percent["cover"] = _percent(s["covered"], s["truth"])
        clean = np.asarray(s["clean"] / (s["texts"] + 0.001) * 100)
        percent["hal"] = np.where(s["texts"] == 0, np.nan, _tenths(100 - clean))
        percent["cog"] = _percent(s["thought_of"], s["hallu"])
    for group in _groups(has):
        percent |= {f"{group}{name}": value for name, value in _questions(group, s).items()}
    if {"chair", "f1"} <= percent.keys():
        percent["amber"] = (100 - percent["chair"] + percent["f1"]) / 2
    # At most four decimals are there; 90.6 / 100 would have sixteen.
    return {name: np.round(value / 100, 4) for name, value in percent.items()}


def _questions(group: str, s: Sums) -> dict[str, np.ndarray]:
    parts = _GROUPS[group][0]
    n, correct, no, said, hit = (sum(s[f"{part}.{name}"] for part in parts) for name in _PER_PART)
    # Attributes add up three denominators, each of which starts at 0.001; the whole has its own.
    start = 0.001 * len(parts) if group else 0.001
    precision, recall = _percent(hit, said, start), _percent(hit, no, start)
    p, r = precision / 100, recall / 100
    smooth = 0.001 if group == "existence." else 0.0001
    return {
        "accuracy": _percent(correct, n, start),
        "precision": precision,
        "recall": recall,
        "f1": _tenths(2 * p * r / (p + r + smooth) * 100),
    }


def _printed(metrics: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Percentages under the headings of the released script."""
    values = {name: round(100 * float(np.nan_to_num(v)), 1) for name, v in metrics.items()}
    tables = {"Generative Task": {n: n.capitalize() for n in ("chair", "cover", "hal", "cog")}}
    tables["Generative Task"]["chair"] = "CHAIR"
    for group, (_, _, heading) in _GROUPS.items():
        names = ("accuracy", "precision", "recall", "f1")
        tables[heading] = {f"{group}{name}": name.capitalize() for name in names}
    return {
        heading: {title: values[name] for name, title in table.items()}
        for heading, table in tables.items()
        if table.keys() <= values.keys()
    }
