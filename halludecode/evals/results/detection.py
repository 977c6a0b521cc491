"""d' and criterion: the yes-ratio control of yes/no answers that have no margins.

Parametric, unlike `yes_ratio`: it holds as far as the normal model of `signal_detection` does, and
a rule whose evidence has another variance moves d' by saying yes more often alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.results.yes_ratio import Pairs, judge
from halludecode.evals.statistics import intervals as stats
from halludecode.evals.statistics.score import Score, mean_of
from halludecode.evals.statistics.signal_detection import detection_score

VERDICTS = {
    "only": "only a yes-ratio shift shown (d', parametric)",
    "kept": "d' moves with it (parametric)",
    "reversed": "d' moves the other way (parametric)",
    "hidden": "d' moves and accuracy does not (parametric)",
    "none": "no clear difference",
}


def detection(
    splits: Mapping[str | None, Pairs],
    plains: Mapping[str | None, Mapping[str, Any]],
    *,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str | None, dict[str, Any]]:
    """Sensitivity d' and criterion of both sides by split and, of named splits, their mean.

    Args:
        splits: (strategy's line, baseline's line) of every question.
        plains: The differences as answered, by split: ``{"metrics": {"accuracy": ...}}``.
        seed: Seed of the bootstrap of pictures.
        level: Coverage.

    Returns:
        Split to ``n``, ``metrics`` (``d_prime criterion hit_rate false_alarm_rate``), ``verdict``
        on accuracy and ``parametric``, True.
    """
    sides = [
        {split: _score(pairs, side) for split, pairs in splits.items() if pairs} for side in (0, 1)
    ]
    ours, theirs = sides
    if ours and None not in ours:
        for side in sides:
            side["mean"] = mean_of({str(split): score for split, score in side.items()})
    blocks: dict[str | None, dict[str, Any]] = {}
    for split, score in ours.items():
        gaps = stats.compare(score, theirs[split], seed=seed, level=level)
        found = {name: gap.to_dict() for name, gap in gaps.items()}
        plain = plains.get(split, {}).get("metrics", {}).get("accuracy")
        verdict = VERDICTS[judge(plain, found["d_prime"])] if plain else ""
        blocks[split] = {"n": score.n, "metrics": found, "verdict": verdict, "parametric": True}
    return blocks


def _score(pairs: Pairs, side: int) -> Score:
    benchmark = benchmark_named(pairs[0][0]["task"])
    lines = [(pair[0], pair[side]) for pair in pairs]
    answers = [
        (str(line["id"]), benchmark.cluster(line), line["label"] == "yes", own["parsed"] == "yes")
        for line, own in lines
    ]
    strata = {benchmark.cluster(line): benchmark.stratum(line) for line, _ in lines}
    return detection_score(benchmark.name, answers, strata)
