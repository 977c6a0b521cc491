"""The arithmetic of `benchmarks/grounding.py`, on words whose answer can be counted."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import grounding as bench


def mentions(grounding, wrong, picture=None):
    keys = [(s, r) for s in bench.SIGNALS for r in bench.REDUCE]
    values = {key: np.array(grounding, dtype=float) for key in keys}
    pictures = np.arange(len(wrong)) if picture is None else np.array(picture)
    return bench.Mentions(pictures, np.array(wrong, dtype=bool), values)


def test_auroc_counts_pairs():
    rng = np.random.default_rng(3)
    grounding, wrong = rng.integers(0, 6, 40), rng.random(40) < 0.3
    of = mentions(grounding, wrong)
    pairs = [(a, b) for a in grounding[wrong] for b in grounding[~wrong]]
    lower = sum((a < b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert bench.auroc(of, "grounding", "mean") == pytest.approx(lower)
    assert bench.auroc(of, "entropy", "max") == pytest.approx(1 - lower), "high entropy is suspect"


def test_the_threshold_is_the_best_of_all():
    rng = np.random.default_rng(4)
    wrong = rng.random(60) < 0.3
    of = mentions(np.round(rng.normal(size=60) - wrong, 1), wrong)

    def score(below):
        precision, recall = bench.rates(of, "mean", below)
        both = 0.25 * precision + recall
        return 1.25 * precision * recall / both if both else 0.0

    best = bench.best_threshold(of, "mean")
    assert score(best) == pytest.approx(max(score(x) for x in np.arange(-4, 4, 0.05)))
    assert best not in of.values["grounding", "mean"], "between two words"


def test_rates_of_flags():
    of = mentions([0.1, 0.2, 0.9, 0.3], [True, False, True, False])
    assert bench.rates(of, "max", 0.25) == (0.5, 0.5)
    assert bench.rates(of, "max", 0.0) == (0.0, 0.0)


def test_intervals_resample_pictures_not_words():
    # One picture holds all hallucinated words: without it nothing can be told, with it all can.
    of = mentions([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 2, 3])
    (low, high), (words_low, words_high) = bench.bootstrap(
        of, [lambda m: bench.auroc(m, "grounding", "mean"), lambda m: float(m.wrong.sum())], 200
    )
    assert (low, high) == (1.0, 1.0)
    assert (words_low, words_high % 3) == (0.0, 0.0)


def test_splits_keep_their_pictures_apart():
    a = mentions([0.0, 1.0], [True, False], [0, 2])
    both = bench.joined([a, a])
    assert both.picture.tolist() == [0, 2, 3, 5]
    assert both.values["mass", "max"].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_the_page_says_what_the_numbers_say():
    rng = np.random.default_rng(5)
    wrong = rng.random(200) < 0.3
    of = mentions(rng.normal(size=200) - 3 * wrong, wrong, np.arange(200) // 4)
    reduce, below = bench.choose(of)
    measured = bench.measure(of, reduce, below, 50)
    told = bench.reading(measured)
    assert "grounding tells" in told
    assert "entropy does not tell" in told, "its sign points the other way here"
    assert "Grounding is better than entropy" in told
    record = {
        "model": "m",
        "model_digest": "0" * 40,
        "pictures": {"dev": 1, "test": 1},
        "resamples": 50,
        "reduce": reduce,
        "grounding_below": below,
        "measured": dict.fromkeys(("dev", *bench.TEST, "both"), measured),
    }
    text = bench.page(record, of)
    assert f"below **{below:.3f} nats**" in text
    assert bench.cell(measured["precision"]) in text
