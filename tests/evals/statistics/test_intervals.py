"""Intervals and paired tests against published outputs and against first principles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.evals.benchmarks.mme import scoring as mme
from halludecode.evals.benchmarks.pope import scoring as pope
from halludecode.evals.data.answers import load_answers
from halludecode.evals.statistics import intervals as stats
from halludecode.evals.statistics import resampling
from halludecode.evals.statistics.score import Score, gather, ratio
from tests.support.published import VECTORS, public, published_score


def answered(flags, images=None, rule="official"):
    """POPE scores with one yes question per flag, right where the flag is set."""
    images = images or [str(i) for i in range(len(flags))]
    questions = [pope.PopeQuestion(i, image, "?", "yes") for i, image in enumerate(images)]
    answers = {i: "Yes" if flag else "No" for i, flag in enumerate(flags)}
    return pope.score(questions, answers, rule)


# ---------------------------------------------------------------- published outputs


@pytest.mark.parametrize("split", ["random", "popular"])
def test_pope_intervals_and_tests(split):
    wanted = VECTORS["pope_stats"][split]
    questions = pope.load_questions(public(f"pope/coco/coco_pope_{split}.jsonl"))
    greedy, sample = (
        pope.score(
            questions,
            load_answers(public(f"pope/predictions/llava-1.5-7b_coco_{split}_{name}.jsonl")),
        )
        for name in ("greedy", "sample")
    )
    clustered = wanted["image_cluster_bootstrap_95"]
    for name, result in (("greedy", greedy), ("sample", sample)):
        found = stats.intervals(result)
        assert found["accuracy"][1:] == pytest.approx(wanted["wilson_95_accuracy"][name], abs=1e-9)
        assert found["f1"][1:] == pytest.approx(clustered[f"f1_{name}"], abs=0.003)
    gap = stats.compare(greedy, sample)
    for name in ("f1", "accuracy"):
        assert gap[name][1:3] == pytest.approx(clustered[f"{name}_difference"], abs=0.003)
    table = wanted["mcnemar"]
    both = (table["a_right_b_wrong"], table["a_wrong_b_right"])
    assert gap["accuracy"].test == "mcnemar"
    assert gap["accuracy"].discordant == both
    assert gap["accuracy"].p == pytest.approx(table["exact_p_two_sided"], rel=1e-9)
    assert stats.mcnemar(*both, exact=False) == pytest.approx(table["chi2_p"], rel=1e-9)
    assert gap["f1"].p < 0.001


@pytest.mark.parametrize("pair", VECTORS["chair_paired_stats"]["expected"])
def test_chair_intervals_and_tests(pair):
    wanted = VECTORS["chair_paired_stats"]["expected"][pair]
    a, b = (published_score(name) for name in pair.split("__vs__"))
    found, gap = stats.intervals(a), stats.compare(a, b)
    for ours, theirs in (("chair_s", "CHAIRs"), ("chair_i", "CHAIRi")):
        assert [100 * x for x in found[ours][1:]] == pytest.approx(
            wanted[f"{theirs}_A_ci"], abs=0.3
        )
        assert [100 * x for x in gap[ours][1:3]] == pytest.approx(wanted[f"d{theirs}_ci"], abs=0.3)
        assert 100 * gap[ours].value == pytest.approx(wanted[f"d{theirs}"], abs=0.005)
    assert gap["chair_s"].discordant == (wanted["mcnemar_b"], wanted["mcnemar_c"])
    assert gap["chair_s"].p == pytest.approx(wanted["mcnemar_exact_p"], rel=1e-9)
    assert gap["chair_i"].test == "bootstrap"


# ---------------------------------------------------------------- Wilson, McNemar, Holm


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipy(case):
    scipy_stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    hits, n = case
    theirs = scipy_stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert stats.wilson_interval(hits, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(st.integers(0, 900), st.integers(0, 900))
def test_mcnemar_equals_the_binomial_test(b, c):
    scipy_stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    wanted = scipy_stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert stats.mcnemar(b, c) == pytest.approx(wanted, rel=1e-7, abs=1e-290)


def test_wilson_of_nothing_is_everything():
    assert stats.wilson_interval(0, 0) == (0.0, 1.0)


def test_mcnemar_by_hand():
    assert stats.mcnemar(0, 0) == 1.0
    assert stats.mcnemar(5, 5) == 1.0
    assert stats.mcnemar(0, 5) == 2 / 32
    assert stats.mcnemar(1, 4) == 2 * (1 + 5) / 32


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert stats.holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12), st.randoms(use_true_random=False))
def test_holm_follows_its_inputs(p_values, rng):
    adjusted = stats.holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    order = list(range(len(p_values)))
    rng.shuffle(order)
    shuffled = stats.holm([p_values[i] for i in order])
    assert shuffled == [adjusted[i] for i in order]


# ---------------------------------------------------------------- bootstrap


def test_metrics_with_every_picture_drawn_once_are_the_metrics():
    result = answered([1, 0, 1, 1], images=["a", "a", "b", "c"])
    once = result.resampled(np.ones((1, 3)))
    assert {name: float(v[0]) for name, v in once.items()} == pytest.approx(result.metrics)


def test_resampling_equals_scoring_the_drawn_pictures_again():
    flags, images = [1, 0, 1, 1, 0, 1], ["a", "a", "b", "b", "c", "c"]
    result = answered(flags, images)
    drawn = result.resampled(np.array([[2.0, 0.0, 1.0]]))
    again = answered([1, 0, 1, 0, 0, 1])
    assert float(drawn["accuracy"][0]) == pytest.approx(again.metrics["accuracy"])
    assert float(drawn["f1"][0]) == pytest.approx(again.metrics["f1"])


def test_pictures_are_resampled_not_questions():
    # All six questions of a picture stand or fall together: far wider than six times the items.
    flags = [i // 6 % 2 for i in range(240)]
    clustered = answered(flags, images=[str(i // 6) for i in range(240)])
    single = answered(flags)
    wide = stats.intervals(clustered, wilson=False, resamples=2000)["accuracy"]
    narrow = stats.intervals(single, wilson=False, resamples=2000)["accuracy"]
    ratio = (wide.high - wide.low) / (narrow.high - narrow.low)
    assert ratio == pytest.approx(6**0.5, rel=0.15)


def test_bootstrap_of_a_mean_has_the_right_width():
    rng = np.random.default_rng(0)
    flags = (rng.random(400) < 0.7).astype(int).tolist()
    found = stats.intervals(answered(flags), wilson=False)["accuracy"]
    share = sum(flags) / 400
    half = 1.96 * (share * (1 - share) / 400) ** 0.5
    assert found.value == share
    assert (found.low, found.high) == pytest.approx((share - half, share + half), abs=0.006)


def test_same_seed_same_interval():
    result = answered([1, 0, 1, 1, 0] * 20)
    assert stats.intervals(result, resamples=300) == stats.intervals(result, resamples=300)
    one = stats.intervals(result, resamples=300, wilson=False)["accuracy"]
    two = stats.intervals(result, resamples=300, wilson=False, seed=1)["accuracy"]
    assert one != two
    assert one.value == two.value


def test_strata_keep_their_size():
    asked = [
        mme.MmeQuestion(
            f"{task}/{i // 2}#{i % 2 + 1}", task, str(i // 2), "?", ("yes", "no")[i % 2]
        )
        for task, size in (("existence", 20), ("count", 2))
        for i in range(size)
    ]
    result = mme.score(asked, {q.id: q.label for q in asked})
    for weights in resampling.draws(result.strata, 700, seed=0):
        assert (weights[:, :10].sum(axis=1) == 10).all()
        assert (weights[:, 10:].sum(axis=1) == 1).all()
    found = stats.intervals(result, resamples=100)
    assert found["total"] == (400.0, 400.0, 400.0)
    assert found["count.acc_plus"].low < 1.0  # Wilson: one pair proves little
    assert found["count.acc"].low == 1.0  # its two questions are one draw: no Wilson of two


# ---------------------------------------------------------------- comparison


def test_a_score_against_itself_differs_nowhere():
    result = answered([1, 0, 1, 1, 0] * 4)
    for gap in stats.compare(result, result, resamples=200).values():
        assert gap[:4] == (0.0, 0.0, 0.0, 1.0)


def test_swapping_sides_mirrors_the_difference():
    a, b = answered([1, 1, 0, 1, 0, 1] * 10), answered([1, 0, 0, 1, 1, 0] * 10)
    there, back = stats.compare(a, b, resamples=500), stats.compare(b, a, resamples=500)
    for name, gap in there.items():
        assert (gap.value, gap.low, gap.high) == pytest.approx(
            (-back[name].value, -back[name].high, -back[name].low)
        )
        assert gap.p == pytest.approx(back[name].p)


def test_items_are_matched_by_id_not_by_place():
    flags = [1, 0, 1, 1, 0, 1, 0, 0]
    questions = [pope.PopeQuestion(i, f"{i // 2}.jpg", "?", "yes") for i in range(8)]
    answers = {i: "Yes" if flag else "No" for i, flag in enumerate(flags)}
    a = pope.score(questions, answers)
    b = pope.score(questions[::-1], answers)
    for gap in stats.compare(a, b, resamples=200).values():
        assert gap[:4] == pytest.approx((0.0, 0.0, 0.0, 1.0))


def test_what_cannot_be_paired_is_refused():
    a = answered([1, 0, 1])
    with pytest.raises(InvalidData, match="1 items were scored on one side only"):
        stats.compare(a, answered([1, 0, 1, 1]))
    with pytest.raises(InvalidData, match="score both with one rule"):
        stats.compare(a, answered([1, 0, 1], rule="vcd"))
    with pytest.raises(InvalidData, match="other pictures"):
        stats.compare(a, answered([1, 0, 1], images=["0", "1", "x"]))


def test_bounds_are_named():
    with pytest.raises(InvalidParameter, match="resamples is 0"):
        stats.intervals(answered([1]), resamples=0)
    with pytest.raises(InvalidParameter, match="level is 95"):
        stats.intervals(answered([1]), level=95)


# ---------------------------------------------------------------- seeds


def test_seeds_give_mean_deviation_and_interval():
    runs = [answered(f) for f in ([1, 1, 0, 0] * 10, [1, 1, 1, 0] * 10, [1, 0, 0, 0] * 10)]
    found = stats.over_seeds(runs, resamples=2000)["accuracy"]
    assert found.mean == pytest.approx(0.5)
    assert found.sd == pytest.approx(0.25)
    assert found.low < 0.35 < 0.65 < found.high
    with pytest.raises(InvalidData, match="at least 3"):
        stats.over_seeds(runs[:2])


def test_a_picture_drawn_more_often_than_a_byte_holds_is_counted(monkeypatch):
    monkeypatch.setattr(resampling, "_counted", lambda rng, rows, size: np.full((rows, size), 300))
    resampling._drawn_once.cache_clear()
    assert {float(w.max()) for w in resampling.draws([""] * 3, 7)} == {300.0}
    resampling._drawn_once.cache_clear()


def test_draws_are_those_of_one_call_whatever_is_counted_at_a_time(monkeypatch):
    strata = ["a"] * 40 + ["b"] * 9

    def drawn():
        resampling._drawn_once.cache_clear()
        return np.concatenate(list(resampling.draws(strata, 1100, 3)))

    whole = drawn()
    assert whole.shape == (1100, 49)
    assert (whole[:, :40].sum(axis=1) == 40).all()
    for name, value in (("_CACHED", 50), ("_CACHED", 10**9), ("_PRODUCT", 100), ("_KEPT", 0)):
        monkeypatch.setattr(resampling, name, value)
        assert (drawn() == whole).all()


@pytest.mark.parametrize("scale", [1.0, 0.1, 2.0**22], ids=["whole", "fractions", "large"])
def test_resampled_sums_are_those_of_double_precision_to_the_bit(scale):
    rng = np.random.default_rng(0)
    columns = {"right": rng.integers(0, 7, 30) * scale, "n": rng.integers(7, 9, 30) * scale}
    names = tuple(f"{i}" for i in range(30))
    first = share(names, columns)
    turned = share(names[::-1], {name: column[::-1] for name, column in columns.items()})
    (one, other) = stats._bootstrap([first, turned], 300, seed=1)
    drawn = list(resampling.draws([""] * 30, 300, 1))
    wanted = np.concatenate([first.resampled(weights)["share"] for weights in drawn])
    assert (one["share"] == wanted).all() and (other["share"] == wanted).all()


def share(names, columns):
    formula = lambda s: {"share": ratio(s["right"], s["n"])}  # noqa: E731
    return Score("t", 30, "", {}, names, columns, formula)


COUNTED = st.dictionaries(st.sampled_from("abc"), st.sampled_from([0, 1, 2.0, 0.3]))


@given(st.lists(st.tuples(st.sampled_from("xyz"), COUNTED)))
def test_gathered_counts_are_sums_in_the_order_of_the_rows(rows):
    clusters, columns = gather(rows)
    assert list(clusters) == list(dict.fromkeys(name for name, _ in rows))
    assert list(columns) == list(dict.fromkeys(name for _, counts in rows for name in counts))
    for name, column in columns.items():
        sums = dict.fromkeys(clusters, 0.0)
        for cluster, counts in rows:
            sums[cluster] += counts.get(name, 0)
        assert column.tolist() == list(sums.values())
