"""AMBER's descriptions cut short, for the control at equally many objects.

A description is the nouns that AMBER knows, in order. What of the picture it covers, and what it
thinks up, is told of the whole only, so CHAIR and Hal are what a cut leaves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from halludecode.evals.statistics.score import Id, Score, Sums, gather, ratio


def described(score: Score) -> dict[Id, Mapping[str, Any]]:
    """The descriptions of a score, which may hold questions too."""
    return {i: outcome for i, outcome in score.outcomes.items() if "nouns" in outcome}


def cut_after_objects(score: Score, objects: Mapping[Id, int]) -> Score:
    """The score of the descriptions, each cut behind its k-th different noun.

    Args:
        score: Of whole descriptions.
        objects: Description to k; those that are not named are left out.

    Returns:
        ``chair`` (not rounded to tenths, as the official figure is), ``hal`` and ``objects``.
    """
    texts = described(score)
    kept = {i: _cut(texts[i], count) for i, count in objects.items()}
    rows = [(str(o.get("image") or f"item {i}"), _counts(o)) for i, o in kept.items()]
    clusters, columns = gather(rows, ("texts", "flagged", "nouns", "wrong", "types"))
    return replace(
        score,
        n=len(kept),
        outcomes=kept,
        clusters=clusters,
        columns=columns,
        formula=_formula,
        shares={"hal": {i: int(bool(o["hallucinated"])) for i, o in kept.items()}},
    )


def _cut(outcome: Mapping[str, Any], count: int) -> dict[str, Any]:
    nouns = list(_until(outcome["nouns"], count))
    wrong = set(outcome["hallucinated"])
    left = {"nouns": nouns, "hallucinated": [noun for noun in nouns if noun in wrong]}
    return {"image": outcome.get("image"), **left}


def _until(nouns: Sequence[str], count: int) -> Iterable[str]:
    named: set[str] = set()
    for noun in nouns:
        if len(named) == count:
            return
        named.add(noun)
        yield noun


def _counts(outcome: Mapping[str, Any]) -> dict[str, float]:
    return {
        "texts": 1,
        "flagged": bool(outcome["hallucinated"]),
        "nouns": len(outcome["nouns"]),
        "wrong": len(outcome["hallucinated"]),
        "types": len(set(outcome["nouns"])),
    }


def _formula(s: Sums) -> dict[str, np.ndarray]:
    return {
        "chair": ratio(s["wrong"], s["nouns"]),
        "hal": ratio(s["flagged"], s["texts"]),
        "objects": ratio(s["types"], s["texts"]),
    }
