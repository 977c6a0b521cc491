"""Accuracy at the baseline's yes-ratio: by hand, by brute force, and on known shifts."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halludecode.core.errors import InvalidData
from halludecode.evals.results.yes_ratio import (
    SAMPLED_SHIFT,
    SHIFT,
    VERDICTS,
    Ranked,
    judge,
    ordered,
    yes_ratio,
)

FAST = {"resamples": 400}


def line(i, label, margin, image=None, answer=None, task="pope"):
    parsed = answer or ("yes" if margin > 0 else "no")
    return {
        "id": i,
        "task": task,
        "image": str(i // 6) if image is None else image,
        "label": label,
        "parsed": parsed,
        "margin": margin,
    }


def paired(labels, ours, theirs):
    """Lines of both sides, answers following the sign of the margin."""
    return [
        (line(i, label, a), line(i, label, b))
        for i, (label, a, b) in enumerate(zip(labels, ours, theirs, strict=True))
    ]


def world(n=900, seed=0, signal=1.2, bias=-1.0):
    """Labels and margins of an under-confident model: it says yes too seldom."""
    rng = np.random.default_rng(seed)
    labels = ["yes" if i % 2 else "no" for i in range(n)]
    sign = np.array([1 if label == "yes" else -1 for label in labels])
    return labels, signal * sign + rng.normal(size=n) + bias, sign


# ---------------------------------------------------------------- known shifts


def test_a_constant_shift_is_labelled_as_one():
    labels, plain, _ = world()
    block = yes_ratio({None: paired(labels, plain + 0.7, plain)}, **FAST)[None]
    assert block["plain"]["low"] > 0
    assert (block["difference"]["value"], block["difference"]["low"]) == (0.0, 0.0)
    assert block["difference"]["high"] == 0.0
    assert block["verdict"] == SHIFT == "only a yes-ratio shift"
    assert block["accuracy"]["value"] == block["baseline"]["value"]
    assert block["own"]["low"] == block["own"]["high"] == 0.0
    assert block["threshold"] == pytest.approx(0.7, abs=0.02)


def test_any_increasing_change_of_the_margin_is_only_a_shift():
    labels, plain, _ = world(seed=3)
    block = yes_ratio({None: paired(labels, np.exp(plain + 0.5) - 1, plain)}, **FAST)[None]
    assert block["plain"]["low"] > 0
    assert block["difference"]["value"] == 0.0
    assert block["verdict"] == SHIFT


def test_a_rule_that_separates_better_is_not_a_shift():
    labels, plain, sign = world(bias=-0.4)
    block = yes_ratio({None: paired(labels, plain + 0.7 * sign, plain)}, **FAST)[None]
    assert block["plain"]["low"] > 0
    assert block["difference"]["low"] > 0
    assert block["verdict"] == VERDICTS["kept"]


def test_better_separation_of_a_biased_model_shows_at_its_own_yes_ratio():
    # At 29 % yes nearly every yes of either rule is right: nothing is left to gain there.
    labels, plain, sign = world(bias=-1.0)
    block = yes_ratio({None: paired(labels, plain + 0.7 * sign, plain)}, **FAST)[None]
    assert block["difference"]["low"] == 0.0
    assert block["own"]["low"] > 0
    assert block["verdict"] == VERDICTS["own"]


def test_shift_and_worse_separation_turn_round():
    labels, plain, sign = world(n=3000)
    block = yes_ratio({None: paired(labels, plain + 1.0 - 0.2 * sign, plain)}, **FAST)[None]
    assert block["plain"]["low"] > 0
    assert block["difference"]["high"] < 0
    assert block["verdict"] == VERDICTS["reversed"]


def test_a_harmful_shift_is_labelled_too():
    labels, plain, _ = world(bias=0.0)
    block = yes_ratio({None: paired(labels, plain + 1.5, plain)}, **FAST)[None]
    assert block["plain"]["high"] < 0
    assert block["verdict"] == SHIFT


def test_sampled_answers_are_cut_on_both_sides():
    labels, plain, _ = world()
    rng = np.random.default_rng(1)
    drawn = ["yes" if m + rng.logistic() > 0 else "no" for m in plain]
    pairs = [
        (line(i, label, m), line(i, label, m, answer=said))
        for i, (label, m, said) in enumerate(zip(labels, plain, drawn, strict=True))
    ]
    block = yes_ratio({None: pairs}, sampled=True, **FAST)[None]
    assert block["plain"]["low"] > 0  # only the drawing was undone
    assert block["difference"]["value"] == 0.0
    assert block["verdict"] == SAMPLED_SHIFT
    assert block["yes_ratio"] == drawn.count("yes") / len(drawn)


# ---------------------------------------------------------------- by hand


def test_four_questions_by_hand():
    # The baseline says yes once; the strategy's highest margin is the third question's.
    labels = ["yes", "yes", "no", "no"]
    pairs = paired(labels, [2.0, 1.0, 3.0, -1.0], [0.5, -0.5, -0.5, -0.5])
    block = yes_ratio({None: pairs}, **FAST)[None]
    assert block["yes_ratio"] == 0.25
    assert block["threshold"] == 2.5
    assert block["accuracy"]["value"] == 0.25  # only the last "no" is right
    assert block["baseline"]["value"] == 0.75
    assert block["difference"]["value"] == -0.5
    assert block["plain"]["value"] == 0.0  # 3 of 4 as answered, too
    assert block["n"] == 4
    # At three yes, the baseline's three tied answers share two: 1 + 2/3 + 2 * 1/3 are right.
    assert block["own"]["value"] == pytest.approx((3 - (1 + 2 / 3 + 2 * (1 / 3))) / 4)


def test_ties_at_the_cut_share_the_yes():
    # Three equal margins, one yes to give: a yes question gets it in one order of three.
    ranked = Ranked([1.0, 1.0, 1.0, 0.0], [True, False, False, False], range(4), 4)
    once = np.ones((1, 4))
    assert ranked.right(once, np.array([1.0])) == pytest.approx(3 * 2 / 3 - 2 / 3 + 1 + 1 / 3)
    assert ranked.threshold(1) == 1.0
    assert ranked.threshold(3) == 0.5
    assert ranked.threshold(0) is ranked.threshold(4) is None


def test_the_mean_is_over_splits():
    labels, plain, sign = world(n=120, bias=0.0)
    pairs = paired(labels, plain + 0.5 * sign, plain)
    splits = {"random": pairs, "popular": pairs[:60]}
    found = yes_ratio(splits, **FAST)
    assert list(found) == ["random", "popular", "mean"]
    for side in ("accuracy", "difference", "plain", "baseline"):
        parts = [found[split][side]["value"] for split in splits]
        assert found["mean"][side]["value"] == pytest.approx(sum(parts) / 2)
    assert found["mean"]["n"] == 180
    low, high = found["random"]["difference"]["low"], found["random"]["difference"]["high"]
    assert low < found["random"]["difference"]["value"] < high


def test_pictures_are_resampled_not_questions():
    # Every question six times about one picture against six pictures: sqrt(6) times as wide.
    labels, plain, sign = world(n=200, bias=0.0)
    ours = plain + 0.6 * sign
    many, one = [], []
    for k in range(6):
        for i, label in enumerate(labels):
            number = 6 * i + k
            for found, image in ((one, str(i)), (many, str(number))):
                found.append(
                    (line(number, label, ours[i], image), line(number, label, plain[i], image))
                )
    width = []
    for pairs in (one, many):
        gap = yes_ratio({None: pairs}, resamples=1500)[None]["difference"]
        width.append(gap["high"] - gap["low"])
    assert width[0] / width[1] == pytest.approx(6**0.5, rel=0.2)


def test_mme_resamples_pictures_within_their_subtask():
    pairs = []
    for subtask in ("color", "count"):
        for picture in range(4):
            for k, label in ((1, "yes"), (2, "no")):
                name = f"{subtask}/p{picture}.jpg#{k}"
                margin = 1.0 if label == "yes" or subtask == "count" else -1.0
                args = (name, label, margin, "p.jpg")
                pairs.append((line(*args, task="mme"), line(*args, task="mme")))
    gap = yes_ratio({None: pairs}, **FAST)[None]
    # Colours are all right and counts half right, whichever pictures are drawn.
    assert gap["baseline"] == {"value": 0.75, "low": 0.75, "high": 0.75}


# ---------------------------------------------------------------- against brute force


SMALL = st.lists(
    st.tuples(st.integers(-2, 2), st.booleans(), st.integers(0, 2)), min_size=1, max_size=5
).filter(lambda items: sum(weight for *_, weight in items) <= 5)


@given(SMALL, st.data())
def test_right_answers_equal_the_mean_over_all_orders_of_ties(items, data):
    margins, positive, weights = (list(part) for part in zip(*items, strict=True))
    copies = [(m, p) for m, p, w in items for _ in range(w)]
    yes = data.draw(st.integers(0, len(copies)))
    ranked = Ranked(margins, positive, range(len(items)), len(items))
    found = ranked.right(np.array([weights], float), np.array([float(yes)]))
    rights = []
    for order in permutations(copies):
        ranked = sorted(order, key=lambda item: -item[0])
        rights.append(
            sum(p for _, p in ranked[:yes]) + sum(not p for _, p in ranked[yes:]),
        )
    assert found[0] == pytest.approx(np.mean(rights))


@pytest.mark.parametrize("distinct", [5, 60, 100_000])
def test_many_answers_in_runs_equal_counting_one_by_one(distinct):
    rng = np.random.default_rng(distinct)
    n, count = 400, 70
    margins, pictures = rng.integers(distinct, size=n).astype(float), rng.integers(count, size=n)
    positive = rng.random(n) < 0.5
    weights = rng.integers(0, 4, size=(30, count)).astype(float)
    yes = np.array([rng.integers(row[pictures].sum() + 1) for row in weights], dtype=float)
    yes[:2] = 0, weights[1, pictures].sum()
    found = Ranked(margins, positive, pictures, count).right(weights, yes)
    for row, wanted, right in zip(weights, yes, found, strict=True):
        left, total = wanted, 0.0
        for margin in sorted(set(margins), reverse=True):
            here = margins == margin
            size = row[pictures][here].sum()
            good = row[pictures][here & positive].sum()
            share = min(1.0, left / size) if size else 0.0
            total += share * good + (1 - share) * (size - good)
            left -= share * size
        assert right == pytest.approx(total)


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.booleans(), st.booleans()), min_size=2, max_size=30),
    st.floats(-3, 3),
)
def test_order_of_lines_and_constant_shifts_do_not_matter(items, shift):
    def made(rows):
        return [
            (
                line(i, "yes" if p else "no", m, image=str(i)),
                line(i, "yes" if p else "no", m, image=str(i), answer="yes" if b else "no"),
            )
            for i, (m, p, b) in rows
        ]

    # Rounded, so that adding a constant can neither make nor break a tie.
    rows = [(i, (round(m, 3), p, b)) for i, (m, p, b) in enumerate(items)]
    moved = [(i, (round(m + round(shift, 3), 6), p, b)) for i, (m, p, b) in rows]
    there = yes_ratio({None: made(rows)}, resamples=20)[None]
    back = yes_ratio({None: made(rows[::-1])}, resamples=20)[None]
    other = yes_ratio({None: made(moved)}, resamples=20)[None]
    assert there["accuracy"]["value"] == pytest.approx(back["accuracy"]["value"])
    assert there["accuracy"] == pytest.approx(other["accuracy"])
    assert there["yes_ratio"] == back["yes_ratio"] == sum(b for _, _, b in items) / len(items)


def test_the_same_seed_gives_the_same_block():
    labels, plain, sign = world(n=60)
    pairs = paired(labels, plain + sign, plain)
    assert yes_ratio({None: pairs}, **FAST) == yes_ratio({None: pairs}, **FAST)
    again = yes_ratio({None: pairs}, seed=1, **FAST)[None]
    assert (
        again["difference"]["value"]
        == yes_ratio({None: pairs}, **FAST)[None]["difference"]["value"]
    )


# ---------------------------------------------------------------- what cannot be told


@pytest.mark.parametrize("margin", [None, float("inf"), float("-inf"), float("nan")])
def test_a_missing_margin_gives_a_reason_and_no_number(margin):
    pairs = paired(["yes", "no"], [1.0, -1.0], [1.0, -1.0])
    pairs[1] = ({**pairs[1][0], "margin": margin}, pairs[1][1])
    found = yes_ratio({"random": pairs, "popular": pairs[:1]}, **FAST)
    assert found["random"] == {
        "n": 2,
        "reason": "1 of 2 answers have no finite yes-minus-no margin",
    }
    assert found["popular"]["verdict"]
    assert found["mean"].keys() == {"n", "reason"}


def test_the_baseline_needs_margins_only_where_answers_are_sampled():
    pairs = paired(["yes", "no"], [1.0, -1.0], [1.0, -1.0])
    pairs = [(a, {k: v for k, v in b.items() if k != "margin"}) for a, b in pairs]
    block = yes_ratio({None: pairs}, **FAST)[None]
    assert block["own"] is None
    assert block["verdict"] == VERDICTS["none"]
    reason = yes_ratio({None: pairs}, sampled=True, **FAST)[None]["reason"]
    assert reason == "2 of 2 the baseline's answers have no finite yes-minus-no margin"


def test_other_questions_are_refused():
    with pytest.raises(InvalidData, match="not about one question"):
        yes_ratio({None: [(line(1, "yes", 1.0), line(2, "yes", 1.0))]})
    with pytest.raises(InvalidData, match="no shared yes/no answers"):
        yes_ratio({None: []})


@pytest.mark.parametrize(
    ("plain", "matched", "said"),
    [
        ((0.1, 0.3), (-0.1, 0.1), "only"),
        ((0.1, 0.3), (0.05, 0.2), "kept"),
        ((0.1, 0.3), (-0.2, -0.1), "reversed"),
        ((-0.3, -0.1), (-0.2, -0.1), "kept"),
        ((-0.1, 0.3), (0.1, 0.2), "hidden"),
        ((-0.1, 0.3), (-0.1, 0.2), "none"),
        ((0.0, 0.3), (0.1, 0.2), "hidden"),
    ],
)
def test_verdicts(plain, matched, said):
    made = [{"value": (low + high) / 2, "low": low, "high": high} for low, high in (plain, matched)]
    assert judge(*made) == said


def test_decided_answers_lie_beyond_all_others_on_their_side():
    lines = [
        {"margin": 3.0},
        {"margin": 0.5, "decided": True},
        {"margin": -4.0},
        {"margin": -0.1, "decided": True},
        {"margin": 2.0, "decided": True},
    ]
    ranks = ordered(lines)
    assert sorted(range(5), key=ranks.__getitem__) == [3, 2, 0, 1, 4]
    assert [math.copysign(1, x) for x in ranks] == [1, 1, -1, -1, 1]
    assert ordered(lines[:1]) == [3.0]
