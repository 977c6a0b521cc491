"""Tables of paired differences, with p-values by Holm over a table's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halludecode.evals.statistics import intervals as stats
from halludecode.evals.statistics.score import Formula, Score, Sums, ratio

Row = tuple[str, Mapping[str, Any], float]  # what, its difference, what it is multiplied by


def paired(
    first: Mapping[str, Sequence[float]],
    second: Mapping[str, Sequence[float]],
    formula: Formula,
) -> dict[str, Any]:
    """A formula's one value, of sums over pictures, where both sides have them."""
    shared = tuple(sorted(first.keys() & second.keys()))

    def score(side: Mapping[str, Sequence[float]]) -> Score:
        sums = np.array([side[key] for key in shared], dtype=float)
        columns = {str(i): column for i, column in enumerate(sums.T)}
        return Score("schemes", len(shared), "", {k: {} for k in shared}, shared, columns, formula)

    (difference,) = stats.compare(score(first), score(second)).values()
    return difference.to_dict()


def mean(sums: Sums) -> dict[str, np.ndarray]:
    """Of a column beside a column of ones."""
    return {"mean": ratio(sums["0"], sums["1"])}


def gap(sums: Sums) -> dict[str, np.ndarray]:
    """Share right below minus share right above, in points."""
    return {"gap": 100 * (ratio(sums["3"], sums["2"]) - ratio(sums["1"], sums["0"]))}


def table(rows: Sequence[Row], sides: tuple[str, str], digits: int = 1) -> list[str]:
    """A table of differences, with p-values by Holm over its rows."""
    head = ["", *sides, "difference", "95 % interval", "p", "p, Holm", "test"]
    made = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (what, g, by), p in zip(rows, stats.holm([g["p"] for _, g, _ in rows]), strict=True):
        values = [by * g[side]["value"] for side in ("strategy", "baseline")]
        own = [f"{value:.{digits}f}" for value in values]
        gap_, low, high = (f"{by * g[key]:+.{digits}f}" for key in ("value", "low", "high"))
        cells = [what, *own, gap_, f"[{low}, {high}]"]
        made.append("| " + " | ".join([*cells, small(g["p"]), small(p), g["test"]]) + " |")
    return made


def small(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def clear(rows: Sequence[Row]) -> str:
    """The rows that Holm leaves, in a sentence."""
    kept = [
        f"{what} ({by * g['value']:+.1f})"
        for (what, g, by), p in zip(rows, stats.holm([g["p"] for _, g, _ in rows]), strict=True)
        if p < 0.05
    ]
    return f"Clear at 0.05 by Holm: {'; '.join(kept)}." if kept else "Nothing is clear at 0.05."
