"""The one result type of all scorers.

Every metric is a function of sums over clusters (pictures), so that resampling pictures is one
matrix product: ``metrics = formula(weights @ columns)``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from halludecode.core.errors import InvalidData

Id = int | str
Sums = Mapping[str, np.ndarray]
Formula = Callable[[Sums], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Score:
    """Metrics of one task, with what is needed to resample, pair and explain them.

    Args:
        task: Name of the benchmark.
        n: Items scored (questions or captions).
        rule: Name of the answer rule or word family that was used.
        outcomes: What was found for every item, in the order of the data.
        clusters: Name of the picture behind every entry of the columns.
        columns: Named sums per cluster, float64 ``[clusters]``.
        formula: Metrics from column sums ``[...]``; NaN marks a zero denominator.
        strata: Group of each cluster, resampled within itself; None is one group.
        shares: Metrics that are plain shares of items, with 0/1 flags by item for McNemar.
        wilson: The shares whose interval is Wilson's; all other intervals are bootstrapped.
        unparsed: Answers that hold none of the words asked for as a word, whatever the rule.
        unread: Answers that the rule could not read.
        notes: Further facts a reader needs, such as the path that made the words.
        metrics: Metric values; 0.0 where a denominator is zero. Computed, not given.
        degenerate: Names of those metrics. Computed, not given.
    """

    task: str
    n: int
    rule: str
    outcomes: Mapping[Id, Mapping[str, Any]]
    clusters: tuple[str, ...]
    columns: Mapping[str, np.ndarray]
    formula: Formula
    strata: tuple[str, ...] | None = None
    shares: Mapping[str, Mapping[Id, int]] = field(default_factory=dict)
    wilson: tuple[str, ...] = ()
    unparsed: int = 0
    unread: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(init=False)
    degenerate: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        values = self.formula({name: column.sum() for name, column in self.columns.items()})
        degenerate = tuple(name for name, value in values.items() if not np.isfinite(value))
        metrics = {name: float(np.nan_to_num(value)) for name, value in values.items()}
        object.__setattr__(self, "metrics", metrics)
        object.__setattr__(self, "degenerate", degenerate)

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics under cluster weights.

        Args:
            weights: How often each cluster was drawn, ``[resamples, clusters]``.

        Returns:
            Metric name to values ``[resamples]``; a zero denominator gives 0.0.
        """
        return self.from_sums(weights @ self.table())

    def table(self) -> np.ndarray:
        """The columns side by side, ``[clusters, columns]``."""
        return np.stack(list(self.columns.values()), axis=1)

    def from_sums(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics of sums of the columns ``[resamples, columns]``, see `resampled`."""
        values = self.formula({name: sums[:, i] for i, name in enumerate(self.columns)})
        return {name: np.nan_to_num(value) for name, value in values.items()}


def ratio(numerator: np.ndarray | float, denominator: np.ndarray | float) -> np.ndarray:
    """``numerator / denominator``, NaN where the denominator is 0."""
    below = np.asarray(denominator, dtype=float)
    return np.divide(numerator, below, out=np.full(below.shape, np.nan), where=below != 0)


def gather(
    rows: Sequence[tuple[str, Mapping[str, float]]], names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Sums item counts into clusters.

    Args:
        rows: Cluster name and counts of every item.
        names: Column names, in order; a count that an item lacks is 0. None is all that rows have.

    Returns:
        Cluster names in first-seen order and the columns, float64 ``[clusters]``.
    """
    places = {cluster: i for i, cluster in enumerate(dict.fromkeys(name for name, _ in rows))}
    # Ten thousand answers have a few dozen different counts.
    kinds: dict[tuple[tuple[str, float], ...], int] = {}
    at = np.array([places[cluster] for cluster, _ in rows], int)
    kind = np.array([kinds.setdefault((*counts.items(),), len(kinds)) for _, counts in rows], int)
    if names is None:
        names = list(dict.fromkeys(name for counts in kinds for name, _ in counts))
    values = {name: np.zeros(len(kinds)) for name in names}
    for i, counts in enumerate(kinds):
        for name, count in counts:
            values[name][i] = count
    return tuple(places), {n: np.bincount(at, own[kind], len(places)) for n, own in values.items()}


def mean_of(scores: Mapping[str, Score], totals: Collection[str] = ("unparsed", "unread")) -> Score:
    """The unweighted mean over splits, with pictures shared between splits resampled together.

    Args:
        scores: Split name to its score, all under one rule.
        totals: Metrics that are added up instead.

    Returns:
        Mean metrics; item ids become ``split/id``.

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
    names = {split: tuple(s.columns) for split, s in scores.items()}
    wanted = [f"{split}.{name}" for split, own in names.items() for name in own]
    clusters, columns = gather(rows, wanted)
    parts = {split: (s.formula, names[split]) for split, s in scores.items()}
    shares = {}
    for name in next(iter(scores.values())).shares:
        flags = [s.shares.get(name, {}) for s in scores.values()]
        if len({len(own) for own in flags}) == 1:  # a mean of shares is a share of all
            pairs = zip(scores, flags, strict=True)
            shares[name] = {f"{split}/{i}": f for split, own in pairs for i, f in own.items()}
    return Score(
        task=next(iter(scores.values())).task,
        n=sum(s.n for s in scores.values()),
        rule=rules.pop(),
        outcomes={f"{k}/{i}": o for k, s in scores.items() for i, o in s.outcomes.items()},
        clusters=clusters,
        columns=columns,
        formula=partial(_mean_formula, parts, frozenset(totals)),
        shares=shares,
        unparsed=sum(s.unparsed for s in scores.values()),
        unread=sum(s.unread for s in scores.values()),
        notes={"splits": tuple(scores)},
    )


def _mean_formula(
    splits: Mapping[str, tuple[Formula, Sequence[str]]], totals: Collection[str], s: Sums
) -> dict[str, np.ndarray]:
    parts = [
        formula({name: s[f"{split}.{name}"] for name in names})
        for split, (formula, names) in splits.items()
    ]
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    values = {name: [np.nan_to_num(part[name]) for part in parts] for name in shared}
    return {n: (np.sum if n in totals else np.mean)(v, axis=0) for n, v in values.items()}


def match(wanted: Sequence[Id], given: Mapping[Id, Any], what: str) -> None:
    """Checks that ``given`` has exactly the ids of ``wanted``.

    Args:
        wanted: Ids of the data.
        given: Predictions by id.
        what: Name of the id, such as ``question_id``.

    Raises:
        InvalidData: Ids are missing or foreign; the first three are named.
    """
    known = set(wanted)
    missing = [i for i in wanted if i not in given]
    extra = [i for i in given if i not in known]
    if missing:
        raise InvalidData(
            f"{len(missing)} of {len(known)} predictions are missing: {what} {_some(missing)}; "
            "answer every item, or score against a file that holds only the answered ones."
        )
    if extra:
        raise InvalidData(
            f"{len(extra)} predictions belong to no item: {what} {_some(extra)}; "
            "check that predictions and annotations are of the same set."
        )


def _some(ids: Sequence[Id]) -> str:
    return ", ".join(map(str, ids[:3])) + (", ..." if len(ids) > 3 else "")
