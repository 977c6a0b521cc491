"""Answers that are no answers: text that repeats itself, and what is empty or refused.

A model that says one sentence over and over names one set of objects, and one that says nothing
names none: both look faithful to every count of invented objects. No cut undoes that, so a
difference is not said to hold where one side's text has come apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from halludecode.evals.benchmarks.base import Benchmark
from halludecode.evals.results.yes_ratio import Line, Pairs
from halludecode.evals.statistics import intervals as stats
from halludecode.evals.statistics.score import Score, gather, ratio

N = 4  # words of a repeated run
# A side has come apart if more than this share of its runs were said before in the same text, and
# more than on the other side by an interval that leaves out zero. Plain decoding of the models
# whose captions were published stays below (0.0 to 4.5 %, benchmarks/published_claims.md).
REPEATS = 0.05
# Likewise if more than this share is empty or refused, and more than on the other side (McNemar).
UNANSWERED = 0.01
CHANCE = 0.05
UNTOLD = {
    "repetition": "cannot be told, as one side's text repeats itself",
    "unanswered": "cannot be told, as one side leaves more unanswered",
}
_WORD = re.compile(r"\w+")
_REFUSAL = re.compile(
    r"(i( am|['\u2019]?m) (so |very )?sorry\b|sorry,|i apologi[sz]e\b|as an ai\b|"
    r"(unfortunately,? )?i( am|['\u2019]m) (unable|not able) to\b|"
    r"(unfortunately,? )?i (can ?not|can['\u2019]t|could not) "
    r"(answer|assist|help|see|view|describe|provide|process|determine)\b|unfortunately,? i\b)",
    re.IGNORECASE,
)


@lru_cache(maxsize=1 << 15)
def repeated(text: str) -> tuple[int, int]:
    """Runs of four words that the text had said before, and all its runs; case and marks aside."""
    words = _WORD.findall(text.lower())
    runs = list(zip(*(words[i:] for i in range(N)), strict=False))
    return len(runs) - len(set(runs)), len(runs)


def unanswered(answer: str) -> str:
    """``empty`` or ``refused``, or "" for an answer; a refusal is told by how it begins."""
    if not answer.strip():
        return "empty"
    return "refused" if _REFUSAL.match(answer.strip()) else ""


def repetition(
    benchmark: Benchmark, pairs: Pairs, *, seed: int = 0, level: float = 0.95
) -> dict[str, Any]:
    """The share of repeated runs of four words, over all texts of a side.

    Args:
        benchmark: Says which answers are texts, and which part is scored.
        pairs: (strategy's line, baseline's line) of every sample.
        seed: Seed of the bootstrap of pictures.
        level: Coverage.

    Returns:
        ``n`` texts, ``difference`` with both sides, and ``apart``: ``strategy`` or ``baseline`` if
        its text has come apart; {} where no answer is a text.
    """
    texts = [pair for pair in pairs if benchmark.is_text(pair[0])]
    if not texts:
        return {}
    ours, theirs = (_repeats(benchmark, [p[side] for p in texts]) for side in (0, 1))
    gap = stats.compare(ours, theirs, seed=seed, level=level)["repeated"].to_dict()
    apart = None
    if stats.excludes_zero(gap):
        more = "strategy" if gap["value"] > 0 else "baseline"
        apart = more if gap[more]["value"] > REPEATS else None
    return {"n": len(texts), "difference": gap, "apart": apart}


def _repeats(benchmark: Benchmark, lines: Sequence[Line]) -> Score:
    rows = []
    for line in lines:
        again, runs = repeated(benchmark.scored_text(line["answer"]))
        rows.append((benchmark.cluster(line), {"again": again, "runs": runs}))
    clusters, columns = gather(rows, ("again", "runs"))
    return Score(
        task=benchmark.name,
        n=len(lines),
        rule=f"{N} words",
        outcomes={line["id"]: {} for line in lines},
        clusters=clusters,
        columns=columns,
        formula=lambda s: {"repeated": ratio(s["again"], s["runs"])},
    )


def unanswered_counts(pairs: Pairs) -> dict[str, Any]:
    """How many answers of either side are empty or refused.

    Args:
        pairs: (strategy's line, baseline's line) of every sample.

    Returns:
        ``n``, ``strategy`` and ``baseline`` (``empty`` and ``refused``), McNemar's ``p`` that both
        leave equally many unanswered, and ``apart`` as for `repetition`.
    """
    kinds = [[unanswered(pair[side]["answer"]) for pair in pairs] for side in (0, 1)]
    counts = [{kind: found.count(kind) for kind in ("empty", "refused")} for found in kinds]
    flags = [{i: int(bool(kind)) for i, kind in enumerate(found)} for found in kinds]
    p = stats.mcnemar(*stats.discordant(*flags))
    shares = [sum(count.values()) / max(len(pairs), 1) for count in counts]
    more = "strategy" if shares[0] > shares[1] else "baseline"
    apart = more if p < CHANCE and max(shares) > UNANSWERED else None
    sides = {"strategy": counts[0], "baseline": counts[1]}
    return {"n": len(pairs), **sides, "p": p, "apart": apart}


def lost(controls: Mapping[str, Any]) -> str:
    """Why nothing of a difference can be said to hold; "" where it can.

    Args:
        controls: The controls of one difference.
    """
    apart = (name for name in UNTOLD if controls.get(name, {}).get("apart"))
    return next((UNTOLD[name] for name in apart), "")


def withdrawn(controls: Mapping[str, Any]) -> dict[str, Any]:
    """The controls, none of which says that something holds where `lost` tells otherwise.

    Args:
        controls: As they were made: some have a ``verdict``, those of texts one by metric under
            ``matched``.
    """
    why = lost(controls)
    found = {name: dict(block) for name, block in controls.items()}
    if why:
        for block in found.values():
            if isinstance(block.get("verdict"), str):
                block["verdict"] = _without(block["verdict"], why)
            if "verdict" in (cut := block.get("matched", {})):
                said = {metric: _without(told, why) for metric, told in cut["verdict"].items()}
                block["matched"] = {**cut, "verdict": said}
    return found


def _without(verdict: str, why: str) -> str:
    return why if verdict.startswith(("holds", "hidden")) else verdict
