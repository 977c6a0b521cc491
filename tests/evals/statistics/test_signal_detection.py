"""d' and criterion: by hand, against the normal model's own truth, and as a control."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halludecode.evals.results.detection import VERDICTS, detection
from halludecode.evals.statistics.signal_detection import detection_score, normal_quantile

Z = NormalDist().inv_cdf


def answers(hits, positives, alarms, negatives):
    said = [(True, i < hits) for i in range(positives)]
    said += [(False, i < alarms) for i in range(negatives)]
    return [(str(i), str(i // 2), positive, yes) for i, (positive, yes) in enumerate(said)]


def test_by_hand_with_the_log_linear_correction():
    metrics = detection_score("pope", answers(8, 10, 2, 10)).metrics
    hit, alarm = Z(8.5 / 11), Z(2.5 / 11)
    assert metrics["d_prime"] == pytest.approx(hit - alarm)
    assert metrics["criterion"] == pytest.approx(-(hit + alarm) / 2)
    assert (metrics["hit_rate"], metrics["false_alarm_rate"]) == (0.8, 0.2)


def test_rates_of_none_and_all_have_a_number_and_one_kind_alone_has_none():
    assert detection_score("pope", answers(5, 5, 0, 5)).metrics["d_prime"] == pytest.approx(
        Z(5.5 / 6) - Z(0.5 / 6)
    )
    assert "d_prime" in detection_score("pope", answers(3, 5, 0, 0)).degenerate


@given(st.lists(st.floats(0.001, 0.999), min_size=1, max_size=20))
def test_quantiles_are_the_normal_ones(shares):
    table = np.array([shares, shares])
    assert normal_quantile(table).tolist() == [[Z(p) for p in shares]] * 2


def pair(i, label, ours, theirs):
    line = {"id": i, "task": "pope", "image": str(i // 4), "label": label}
    return {**line, "parsed": ours}, {**line, "parsed": theirs}


def test_a_shift_toward_yes_is_told_from_seeing_more():
    rng = np.random.default_rng(3)
    shifted, better = [], []
    for i in range(1200):
        label, side = ("yes", 1) if i % 2 else ("no", -1)
        evidence = 0.8 * side + rng.normal()
        clear = 1.3 * side + rng.normal()
        words = ["yes" if x > 0 else "no" for x in (evidence - 0.8, evidence, clear)]
        shifted.append(pair(i, label, words[1], words[0]))  # the baseline says no too often
        better.append(pair(i, label, words[2], words[1]))
    gain = {None: {"metrics": {"accuracy": {"value": 0.1, "low": 0.05, "high": 0.15}}}}
    shift = detection({None: shifted}, gain)[None]
    assert shift["parametric"]
    assert shift["verdict"] == VERDICTS["only"]
    assert shift["metrics"]["criterion"]["high"] < 0
    assert detection({None: better}, gain)[None]["verdict"] == VERDICTS["kept"]


def test_splits_have_a_mean_and_unread_answers_do_not_say_yes():
    made = [pair(i, ("no", "yes")[i % 2], "other", "yes") for i in range(8)]
    found = detection({"random": made, "popular": made}, {})
    assert list(found) == ["random", "popular", "mean"]
    assert found["mean"]["n"] == 16
    rates = found["mean"]["metrics"]["hit_rate"]
    assert (rates["strategy"]["value"], rates["baseline"]["value"]) == (0, 1)
