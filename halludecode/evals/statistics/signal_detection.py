"""Sensitivity and criterion of yes/no answers without margins, by the equal-variance normal model.

A rule that says yes more often moves hits and false alarms together. If the evidence behind the
answers is normal with one variance whether or not yes is right, d' = z(hits) - z(false alarms) does
not move with the criterion c = -(z(hits) + z(false alarms)) / 2. That is an assumption, not a
measurement: margins need none. Rates of 0 and 1 have no z, so half an answer is added to either
count of every kind of question (the log-linear correction; Hautus 1995, Behavior Research Methods
27), in the estimate and in every resample alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

from halludecode.evals.statistics.score import Score, Sums, gather

COUNTS = ("hits", "positives", "alarms", "negatives")


def detection_score(
    task: str,
    answers: Sequence[tuple[str, str, bool, bool]],
    strata: Mapping[str, str] | None = None,
) -> Score:
    """Hit and false-alarm rate, d' and criterion of yes/no answers.

    Args:
        task: Name of the benchmark.
        answers: (id, cluster, whether yes is right, whether yes was answered) of every question; an
            answer that is neither yes nor no is none that says yes.
        strata: What each cluster is resampled within; None is all together.

    Returns:
        Metrics ``d_prime criterion hit_rate false_alarm_rate``; the rates are not corrected.
    """
    rows = [(cluster, _counts(positive, yes)) for _, cluster, positive, yes in answers]
    clusters, columns = gather(rows, COUNTS)
    return Score(
        task=task,
        n=len(answers),
        rule="equal-variance normal model",
        outcomes={name: {"yes": yes, "positive": right} for name, _, right, yes in answers},
        clusters=clusters,
        columns=columns,
        formula=_formula,
        strata=tuple(strata[name] for name in clusters) if strata else None,
    )


def normal_quantile(p: np.ndarray | float) -> np.ndarray:
    """The z below which a standard normal lies with probability ``p``, elementwise; 0 < p < 1."""
    # Shares of whole numbers: ten thousand resamples hold a few hundred different ones.
    shares, place = np.unique(np.asarray(p, dtype=float), return_inverse=True)
    z = NormalDist().inv_cdf
    return np.array([z(share) for share in shares])[place].reshape(np.shape(p))


def _counts(positive: bool, yes: bool) -> dict[str, float]:
    kind, said = ("positives", "hits") if positive else ("negatives", "alarms")
    return {kind: 1.0, said: float(yes)}


def _formula(s: Sums) -> dict[str, np.ndarray]:
    hit, alarm = (
        normal_quantile((np.asarray(s[said], dtype=float) + 0.5) / (s[asked] + 1.0))
        for said, asked in (("hits", "positives"), ("alarms", "negatives"))
    )
    both = (np.asarray(s["positives"]) > 0) & (np.asarray(s["negatives"]) > 0)
    return {
        "d_prime": np.where(both, hit - alarm, np.nan),
        "criterion": np.where(both, -(hit + alarm) / 2, np.nan),
        "hit_rate": np.asarray(s["hits"]) / np.maximum(s["positives"], 1),
        "false_alarm_rate": np.asarray(s["alarms"]) / np.maximum(s["negatives"], 1),
    }
