"""CHAIR at equal length: is a gain more than shorter captions?

A caption that stops earlier names fewer absent objects: within one model's captions CHAIR_s grows
threefold from the short third to the long one. Four views: both captions of a picture cut to the
shorter; only pictures whose captions are about equally long; all captions cut at fixed numbers of
words; and hallucinated mentions per 100 words. What a caption names is read from the whole caption
and kept up to the cut, so that a cut changes no part of speech; the fixed budgets instead score the
cut text itself, as published curves do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from halludecode.evals.results.yes_ratio import judge
from halludecode.evals.statistics import intervals as stats
from halludecode.evals.statistics.score import Id, Score, Sums, gather, ratio

BUDGETS = (20, 40, 60, 80)  # white-space words, as in published curves
ALIKE = 0.1  # lengths differ by at most this share of the longer
VERDICTS = {
    "only": "only a matter of length",
    "kept": "holds at equal length",
    "reversed": "turns round at equal length",
    "hidden": "hidden by the length",
    "none": "no clear difference",
}
JUDGED = ("chair_i", "chair_s", "recall")

Rescore = Callable[[int], tuple[Score, Score]]


def length_control(
    a: Score,
    b: Score,
    plain: Mapping[str, Mapping[str, Any]],
    *,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Length-matched CHAIR of the same pictures' captions.

    Args:
        a: CHAIR of the strategy.
        b: CHAIR of the baseline.
        plain: The differences of the two as they are: value, low and high by metric.
        seed: Seed of the bootstrap.
        level: Coverage.

    Returns:
        ``matched`` (both captions cut to the shorter, in the scorer's words), ``alike`` (pictures
        whose captions differ by at most `ALIKE` in length) and ``rates`` (hallucinated mentions per
        100 words; precision and F1 over object types), each with ``n`` and ``metrics``; ``matched``
        also with a verdict on each of `JUDGED`.
    """
    cut = {i: min(_length(a, i), _length(b, i)) for i in a.outcomes}
    matched = _metrics(shortened(a, cut), shortened(b, cut), seed, level)
    verdicts = {name: VERDICTS[judge(plain[name], matched["metrics"][name])] for name in JUDGED}
    return {
        "matched": matched | {"verdict": verdicts},
        "alike": _alike(a, b, seed, level),
        "rates": _metrics(replace(a, formula=_rates), replace(b, formula=_rates), seed, level),
    }


def budget_curve(
    rescore: Rescore,
    captions: Sequence[tuple[str, str]],
    *,
    budgets: Sequence[int] = BUDGETS,
    seed: int = 0,
    level: float = 0.95,
) -> list[dict[str, Any]]:
    """CHAIR of both sides with every caption cut at a number of white-space words.

    Args:
        rescore: Number of words to both scores of the cut captions.
        captions: (strategy's, baseline's) of every picture, uncut.
        budgets: Numbers of words.
        seed: Seed of the bootstrap.
        level: Coverage.

    Returns:
        Per budget ``words``, ``n``, ``metrics`` and ``reach``: how many captions of either side
        have as many words. Where few do, the sides differ in length again.
    """
    sizes = [(len(ours.split()), len(theirs.split())) for ours, theirs in captions]
    return [
        {
            "words": words,
            "reach": {
                "strategy": sum(ours >= words for ours, _ in sizes),
                "baseline": sum(theirs >= words for _, theirs in sizes),
            },
            **_metrics(*rescore(words), seed, level),
        }
        for words in budgets
    ]


def shortened(score: Score, cut: Mapping[Id, int]) -> Score:
    """The score with every caption cut after its first words.

    Args:
        score: CHAIR of whole captions.
        cut: Caption to the number of the scorer's words that stay (punctuation counts); captions
            that are not named are left out.
    """
    outcomes = {i: _shortened(score.outcomes[i], words) for i, words in cut.items()}
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


def _length(score: Score, name: Id) -> int:
    return len(score.outcomes[name]["words"])


def _shortened(outcome: Mapping[str, Any], words: int) -> dict[str, Any]:
    kept = [m for m in outcome["mentions"] if m["index"] < words]
    present = set(outcome["missed"]) | {
        m["object"] for m in outcome["mentions"] if not m["hallucinated"]
    }
    said = [m["object"] for m in kept]
    return {
        "image_id": outcome["image_id"],
        "words": outcome["words"][:words],
        "generated": said,
        "hallucinated": [m["object"] for m in kept if m["hallucinated"]],
        "missed": sorted(present - set(said)),
        "mentions": kept,
    }


def _counts(outcome: Mapping[str, Any]) -> dict[str, float]:
    types = set(outcome["generated"])
    found = len(types - set(outcome["hallucinated"]))
    return {
        "captions": 1,
        "flagged": bool(outcome["hallucinated"]),
        "mentions": len(outcome["generated"]),
        "wrong": len(outcome["hallucinated"]),
        "types": len(types),
        "found": found,
        "present": found + len(outcome["missed"]),
        "words": len(outcome["words"]),
    }


def _alike(a: Score, b: Score, seed: int, level: float) -> dict[str, Any]:
    sizes = {i: (_length(a, i), _length(b, i)) for i in a.outcomes}
    near = [i for i, (x, y) in sizes.items() if abs(x - y) <= ALIKE * max(x, y)]
    if not near:
        return {"n": 0, "reason": f"no two captions are within {ALIKE:.0%} of each other's length"}
    ours, theirs = ({i: sizes[i][side] for i in near} for side in (0, 1))
    return _metrics(shortened(a, ours), shortened(b, theirs), seed, level)


def _rates(s: Sums) -> dict[str, np.ndarray]:
    precision = ratio(s["found"], s["types"])
    recall = ratio(s["found"], s["present"])
    return {
        "per_100_words": 100 * ratio(s["wrong"], s["words"]),
        "precision": precision,
        "f1": ratio(2 * precision * recall, precision + recall),
    }


def _metrics(a: Score, b: Score, seed: int, level: float) -> dict[str, Any]:
    gaps = stats.compare(a, b, seed=seed, level=level)
    return {"n": a.n, "metrics": {name: gap.to_dict() for name, gap in gaps.items()}}
