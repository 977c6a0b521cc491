"""CHAIR of captions cut short, for the controls at equal length and at equally many objects.

What a caption names is read from the whole caption and kept up to the cut, so that a cut changes no
part of speech.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from halludecode.evals.statistics.score import Id, Score, Sums, gather, ratio


def shortened(score: Score, words: Mapping[Id, int]) -> Score:
    """The score with every caption cut after its first words.

    Args:
        score: CHAIR of whole captions.
        words: Caption to the number of the scorer's words that stay (punctuation counts); captions
            that are not named are left out.
    """
    outcomes = {i: _shortened(score.outcomes[i], count) for i, count in words.items()}
    rows = [(str(o["image_id"]), _counts(o)) for o in outcomes.values()]
    clusters, columns = gather(rows, list(score.columns))
    flags = {i: int(bool(o["hallucinated"])) for i, o in outcomes.items()}
    return replace(
        score,
        n=len(outcomes),
        outcomes=outcomes,
        clusters=clusters,
        columns=columns,
        shares={"chair_s": flags},
    )


def cut_after_objects(score: Score, objects: Mapping[Id, int]) -> Score:
    """The score with every caption cut behind its k-th different object.

    Args:
        score: CHAIR of whole captions.
        objects: Caption to k; captions that are not named are left out.
    """
    ends = {i: _end(score.outcomes[i]["mentions"], count) for i, count in objects.items()}
    return replace(shortened(score, ends), formula=_at_objects)


def length_rates(score: Score) -> Score:
    """Hallucinated mentions per 100 words; precision and F1 over object types."""
    return replace(score, formula=_rates)


def _shortened(outcome: Mapping[str, Any], words: int) -> dict[str, Any]:
    kept = [mention for mention in outcome["mentions"] if mention["index"] < words]
    present = set(outcome["missed"]) | {
        mention["object"] for mention in outcome["mentions"] if not mention["hallucinated"]
    }
    named = [mention["object"] for mention in kept]
    return {
        "image_id": outcome["image_id"],
        "words": outcome["words"][:words],
        "generated": named,
        "hallucinated": [mention["object"] for mention in kept if mention["hallucinated"]],
        "missed": sorted(present - set(named)),
        "mentions": kept,
    }


def _end(mentions: Sequence[Mapping[str, Any]], count: int) -> int:
    """The words up to and including the one that names the ``count``-th different object."""
    named: set[str] = set()
    for mention in mentions:
        named.add(mention["object"])
        if len(named) == count:
            return mention["index"] + 1
    return 0


def _counts(outcome: Mapping[str, Any]) -> dict[str, float]:
    types = set(outcome["generated"])
    correct_types = len(types - set(outcome["hallucinated"]))
    return {
        "captions": 1,
        "flagged": bool(outcome["hallucinated"]),
        "mentions": len(outcome["generated"]),
        "wrong": len(outcome["hallucinated"]),
        "types": len(types),
        "found": correct_types,
        "present": correct_types + len(outcome["missed"]),
        "words": len(outcome["words"]),
    }


def _at_objects(s: Sums) -> dict[str, np.ndarray]:
    return {
        "chair_s": ratio(s["flagged"], s["captions"]),
        "chair_i": ratio(s["wrong"], s["mentions"]),
        "recall": ratio(s["found"], s["present"]),
        "objects": ratio(s["types"], s["captions"]),
    }


def _rates(s: Sums) -> dict[str, np.ndarray]:
    precision = ratio(s["found"], s["types"])
    recall = ratio(s["found"], s["present"])
    return {
        "per_100_words": 100 * ratio(s["wrong"], s["words"]),
        "precision": precision,
        "f1": ratio(2 * precision * recall, precision + recall),
    }


class CutCaptions:
    """How controls cut captions, for the benchmark of them."""

    @classmethod
    def shortened(cls, score: Score, words: Mapping[Id, int]) -> Score:
        """What a caption names is read from the whole of it and kept up to the cut."""
        return shortened(score, words)

    @classmethod
    def length_rates(cls, score: Score) -> Score:
        """Invented mentions per 100 words, precision and F1 over object types."""
        return length_rates(score)

    @classmethod
    def objects_named(cls, score: Score) -> Mapping[Id, int]:
        """The different COCO categories of every caption."""
        return {i: len(set(outcome["generated"])) for i, outcome in score.outcomes.items()}

    @classmethod
    def cut_after_objects(cls, score: Score, objects: Mapping[Id, int]) -> Score:
        """Cut behind the word that names the k-th category."""
        return cut_after_objects(score, objects)
