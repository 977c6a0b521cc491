"""CHAIR at equal length: by hand, as published, and on captions that are merely shorter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halludecode.evals.benchmarks.chair import CHAIR, shortening
from halludecode.evals.benchmarks.chair import scoring as chair
from halludecode.evals.results import length_control as lengths
from halludecode.evals.statistics import intervals as stats
from tests.support.published import published_captions, published_score, truth

TRUTH = {1: frozenset({"dog", "car"}), 2: frozenset({"cat"}), 3: frozenset({"bus"})}
# Words of the scorer (a period is one): 9 and 4; 4 and 4; 5 and 10.
OURS = {1: "A dog and a car near a cup .", 2: "A cat sits .", 3: "A bus and a dog"}
THEIRS = {1: "A dog stands .", 2: "A cup stands .", 3: "A red bus and a cat and a cup ."}


def scored(captions, truth=TRUTH):
    return chair.score(captions, truth, path="tables")


def control(a, b, **more):
    plain = {name: gap.to_dict() for name, gap in stats.compare(a, b, resamples=200).items()}
    return lengths.length_control(CHAIR, a, b, plain, **more)


def values(block, side=None):
    found = block["metrics"].items()
    return {name: d["value"] if side is None else d[side]["value"] for name, d in found}


# ---------------------------------------------------------------- by hand


def test_both_captions_are_cut_to_the_shorter():
    block = control(scored(OURS), scored(THEIRS))["matched"]
    # Cut to 4, 4 and 5 words. Ours: dog | cat | bus, dog. Theirs: dog | cup | bus.
    assert block["n"] == 3
    assert values(block, "strategy") == pytest.approx(
        {"chair_s": 1 / 3, "chair_i": 1 / 4, "recall": 3 / 4, "length": 13 / 3}
    )
    assert values(block, "baseline") == pytest.approx(
        {"chair_s": 1 / 3, "chair_i": 1 / 3, "recall": 2 / 4, "length": 13 / 3}
    )
    assert block["metrics"]["chair_s"]["discordant"] == [1, 1]
    assert block["metrics"]["chair_s"]["test"] == "mcnemar"


def test_only_captions_of_like_length_are_paired():
    block = control(scored(OURS), scored(THEIRS))["alike"]
    assert block["n"] == 1  # the second picture: 4 and 4 words
    assert values(block) == {"chair_s": -1.0, "chair_i": -1.0, "recall": 1.0, "length": 0.0}


def test_ten_percent_is_of_the_longer_and_included():
    words = {n: "A dog " + "and " * (n - 2) for n in (18, 20, 22, 23)}
    for n, kept in ((18, 1), (20, 1), (22, 1), (23, 0)):
        a, b = scored({1: words[n]}), scored({1: words[20]})
        assert control(a, b)["alike"]["n"] == kept
    assert (
        "no two captions"
        in control(scored({1: words[23]}), scored({1: words[20]}))["alike"]["reason"]
    )


def test_mentions_per_hundred_words_and_f1():
    block = control(scored(OURS), scored(THEIRS))["rates"]
    # Ours: cup and one dog of 18 words; theirs: cup, cat and cup of 18.
    assert values(block, "strategy")["per_100_words"] == pytest.approx(100 * 2 / 18)
    assert values(block, "baseline")["per_100_words"] == pytest.approx(100 * 3 / 18)
    # Types: ours 4 right of 6, theirs 2 right of 5; 4 objects are there.
    assert values(block, "strategy")["precision"] == pytest.approx(4 / 6)
    assert values(block, "baseline")["f1"] == pytest.approx(2 * (2 / 5) * (2 / 4) / (2 / 5 + 2 / 4))


def test_budgets_count_the_captions_that_reach_them():
    def rescore(words):
        return tuple(
            chair.score(side, TRUTH, path="tables", max_words=words) for side in (OURS, THEIRS)
        )

    texts = [(OURS[i], THEIRS[i]) for i in OURS]
    curve = lengths.budget_curve(rescore, texts, budgets=(2, 5, 9))
    assert [point["words"] for point in curve] == [2, 5, 9]
    assert [point["reach"] for point in curve] == [
        {"strategy": 3, "baseline": 3},
        {"strategy": 2, "baseline": 1},
        {"strategy": 1, "baseline": 1},
    ]
    assert [values(point, "strategy")["chair_s"] for point in curve] == pytest.approx(
        [0, 1 / 3, 2 / 3]
    )
    assert [values(point, "baseline")["chair_s"] for point in curve] == pytest.approx(
        [1 / 3, 1 / 3, 2 / 3]
    )


# ---------------------------------------------------------------- known effects


def stories(words, n=60):
    """Captions that name a true object first and an absent one late, cut at some length."""
    text = "A dog on the road near a tree and a house with a big old red cup beside it ."
    return {i: " ".join(text.split()[: words + i % 3]) for i in range(n)}


def test_shorter_captions_alone_are_labelled_so():
    present = dict.fromkeys(range(60), frozenset({"dog"}))
    block = control(scored(stories(8), present), scored(stories(17), present))["matched"]
    assert block["verdict"]["chair_s"] == block["verdict"]["chair_i"] == "only a matter of length"
    assert values(block) == {"chair_s": 0.0, "chair_i": 0.0, "recall": 0.0, "length": 0.0}


def test_fewer_absent_objects_at_equal_length_are_not():
    present = dict.fromkeys(range(60), frozenset({"dog"}))
    clean = {i: text.replace("cup", "mat") for i, text in stories(17).items()}
    block = control(scored(clean, present), scored(stories(17), present))["matched"]
    assert block["verdict"]["chair_s"] == "holds at equal length"
    assert block["verdict"]["recall"] == "no clear difference"


# ---------------------------------------------------------------- properties

WORDS = st.lists(
    st.sampled_from(
        ["dog", "cat", "car", "cup", "and", "the", ".", "toilet", "seat", "teddy bear"]
    ),
    min_size=1,
    max_size=14,
)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_cut_captions_are_equally_long_and_whole_ones_unchanged(texts):
    present = dict.fromkeys(range(len(texts)), frozenset({"dog", "cat"}))
    a, b = (
        scored({i: " ".join(pair[side]) for i, pair in enumerate(texts)}, present)
        for side in (0, 1)
    )
    whole = {i: len(o["words"]) for i, o in a.outcomes.items()}
    assert shortening.shortened(a, whole).metrics == pytest.approx(a.metrics)
    block = control(a, b)
    matched = block["matched"]["metrics"]
    assert matched["length"]["strategy"] == matched["length"]["baseline"]
    same = control(a, a)["matched"]["metrics"]
    assert all(d["value"] == d["low"] == d["high"] == 0 for d in same.values())
    for name in ("chair_s", "chair_i", "recall"):
        assert 0 <= matched[name]["strategy"]["value"] <= 1


# ---------------------------------------------------------------- published captions


@pytest.mark.parametrize(
    ("model", "curve"),
    [("shikra", {20: (5.4, 6.0), 40: (14.4, 13.8), 60: (38.6, 27.4)})],
)
def test_published_captions_cut_at_budgets(model, curve):
    # evaluation study of OPERA's released captions: (greedy, OPERA) CHAIR_s at N words
    greedy, opera = (published_score(f"{model}_{name}") for name in ("greedy", "opera"))
    texts = [(opera.outcomes[i]["caption"], greedy.outcomes[i]["caption"]) for i in greedy.outcomes]

    def rescore(words):
        return tuple(
            chair.score(
                published_captions(f"{model}_{name}"),
                truth("wordnet"),
                path="nltk",
                max_words=words,
            )
            for name in ("opera", "greedy")
        )

    found = lengths.budget_curve(rescore, texts, budgets=list(curve))
    for point in found:
        baseline, strategy = curve[point["words"]]
        d = point["metrics"]["chair_s"]
        assert 100 * d["strategy"]["value"] == pytest.approx(strategy, abs=1e-6)
        assert 100 * d["baseline"]["value"] == pytest.approx(baseline, abs=1e-6)
    block = control(opera, greedy)["matched"]
    # 19.8 points of CHAIR_s, p < 1e-11 uncut: nothing of it is left at equal length.
    assert block["verdict"]["chair_s"] == "only a matter of length"
