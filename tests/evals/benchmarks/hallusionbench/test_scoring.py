"""HallusionBench against the official script's figures, and each of its rules by itself."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.hallusionbench import scoring as hallusion
from halludecode.evals.runner.score_file import score_predictions
from halludecode.evals.statistics import intervals as stats
from tests.support.published import REPO, VECTORS, public

RULES = VECTORS["hallusionbench"]["rules"]
FIELDS = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id")


def released():
    """Ids and truths of the released questions, without their words."""
    text = (REPO / "tests" / "data" / "hallusion_keys.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    return [make(*row) for row in rows]


def make(category, subcategory, visual, set_id, figure, question, truth):
    label = {"0": "no", "1": "yes"}[truth]
    return hallusion.HallusionQuestion(
        category, subcategory, visual, set_id, figure, question, "Is it?", label
    )


QUESTIONS = released()


def answer(question, rule):
    if rule == "always_yes":
        return "1"
    numbers = (question.set_id, question.figure_id, question.question_id)
    return str(sum(map(int, numbers)) % 2)


def vd(figure, question=0, truth="1", *, set_id=0):
    return make("VD", "map", "2" if figure else "1", str(set_id), str(figure), str(question), truth)


def vs(visual, question=0, truth="1"):
    return make("VS", "map", str(visual), "0", str(visual), str(question), truth)


def scored(*pairs, rule="official", **given):
    questions = [question for question, _ in pairs]
    return hallusion.score(questions, {q.id: said for q, said in pairs}, rule, **given)


# ---------------------------------------------------------------- the official script's figures


@pytest.mark.parametrize("rule", RULES)
def test_official_figures(rule):
    made = hallusion.score(QUESTIONS, {q.id: answer(q, rule) for q in QUESTIONS})
    wanted, printed = RULES[rule], made.notes["printed"]
    names = {
        **{name: name for name in ("aAcc", "qAcc", "fAcc", "fig_inconsistent", "fig_wrong")},
        **{"fig_score": "fig_score", "easy": "easy_pair_acc", "hard": "hard_pair_acc"},
    }
    for name, theirs in names.items():
        assert printed[name] == pytest.approx(wanted[theirs], abs=1e-9), name
        scale = 1 if name == "fig_score" else 100
        assert scale * made.metrics[name] == pytest.approx(wanted[theirs], abs=5.1e-5), name
    for name, theirs in (("yes_diff", "diff"), ("fp_ratio", "fp")):
        assert made.metrics[name] == pytest.approx(wanted["yes_no_bias"][theirs], abs=1e-9)
    assert made.notes["counts"] == {
        name: wanted[f"n_{name}"] for name in ("questions", "pairs", "figures")
    }
    assert made.notes["attribution"] == {k: wanted[f"{k}_cg"] for k in ("LH", "VI", "Mix")}
    assert made.degenerate == ()


def test_counts_of_the_release():
    asked = hallusion.load_questions(public("hallusionbench/HallusionBench.json"))
    assert [replace(q, text="Is it?", image=None) for q in asked] == QUESTIONS
    assert Counter((q.category, q.visual_input) for q in asked) == {
        ("VD", "1"): 277,
        ("VD", "2"): 314,
        ("VS", "0"): 178,
        ("VS", "1"): 170,
        ("VS", "2"): 190,
    }
    assert Counter(q.label for q in asked) == {"no": 645, "yes": 484}
    assert sum(q.blind for q in asked) == 178
    made = hallusion.score(asked, {q.id: q.label for q in asked})
    assert made.notes["counts"] == {"questions": 1129, "pairs": 455, "figures": 346}
    right = ("aAcc", "qAcc", "fAcc", "easy", "hard", "fig_score")
    assert all(made.metrics[name] == 1.0 for name in right)
    assert made.degenerate == ("fp_ratio",)


def test_released_sample_of_results():
    asked = hallusion.load_questions(public("hallusionbench/HallusionBench.json"))
    answers = hallusion.load_answers(public("hallusionbench/HallusionBench_result_sample.json"))
    assert len(answers) == 254
    made = hallusion.score(asked, answers, allow_missing=True)
    assert (made.n, made.notes["missing"]) == (254, 875)
    assert made.notes["counts"] == {"questions": 254, "pairs": 117, "figures": 69}
    assert (made.unread, made.unparsed) == (49, 47)
    with pytest.raises(InvalidData, match="875 of 1129 predictions are missing: question VS_chart"):
        hallusion.score(asked, answers)


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("said", "official", "vlmevalkit", "lmms_eval"),
    [
        ("Yes, it is.", "yes", "yes", "yes"),
        ("NO!", "no", "no", "no"),
        ("1", "yes", "other", "no"),
        ("0", "no", "other", "no"),
        ("2", "other", "other", "no"),
        ("10", "other", "other", "no"),
        ("Yes and no", "other", "other", "yes"),
        ("I do not know.", "other", "other", "no"),
        ("Eyes", "other", "other", "yes"),
        ("", "other", "other", "no"),
    ],
)
def test_rules_read_answers(said, official, vlmevalkit, lmms_eval):
    read = hallusion.parse_hallusion_answer
    assert read(said) == read(said, "official") == official
    assert read(said, "vlmevalkit") == vlmevalkit
    assert read(said, "lmms_eval") == lmms_eval


def test_unknown_rule_is_named():
    with pytest.raises(InvalidData, match=r"'gpt-4' is unknown for HallusionBench; the known ones"):
        hallusion.parse_hallusion_answer("Yes", "gpt-4")


def test_not_knowing_is_right_only_without_a_figure():
    pairs = ((vs(0), "Unclear"), (vs(1), "Unclear"), (vd(0), "Unclear"))
    made = scored(*pairs)
    assert [o["correct"] for o in made.outcomes.values()] == [1, 0, 0]
    assert made.unparsed == 3
    assert scored(*pairs, rule="vlmevalkit").metrics["aAcc"] == 0.0
    # lmms-eval reads anything without "yes" as no.
    assert scored((vs(0, truth="0"), "Unclear"), rule="lmms_eval").metrics["aAcc"] == 1.0


# ---------------------------------------------------------------- counting


def test_pairs_and_figures():
    made = scored((vd(0, 0), "Yes"), (vd(1, 0), "No"), (vd(0, 1), "Yes"), (vd(1, 1), "Yes"))
    assert made.metrics["aAcc"] == 0.75
    assert made.metrics["qAcc"] == 0.5  # question 1 is right on both figures
    assert made.metrics["fAcc"] == 0.5  # figure 0 is right on both questions
    assert (made.metrics["easy"], made.metrics["hard"]) == (1.0, 0.5)
    assert (made.metrics["fig_inconsistent"], made.metrics["fig_wrong"]) == (0.5, 0.0)
    assert made.metrics["fig_score"] == 0.75
    assert made.shares == {}  # pairs of a set share figures: tests resample sets
    assert made.clusters == ("VD_map_0",)


def test_questions_without_a_figure_are_no_figure():
    pairs = ((vs(0), "No"), (vs(2), "Yes"))
    assert scored(*pairs).metrics["fAcc"] == 1.0
    made = scored(*pairs, rule="lmms_eval")
    assert made.metrics == {"aAcc": 0.5, "qAcc": 0.0, "fAcc": 0.5}
    assert made.notes["attribution"] is None
    made = scored(*pairs, rule="vlmevalkit")  # whose set has no question without a figure
    assert made.metrics == {"aAcc": 1.0, "qAcc": 1.0, "fAcc": 1.0, "mean": 1.0}
    assert (made.n, made.notes["left_out"]) == (1, 1)
    with pytest.raises(InvalidData, match="VLMEvalKit asks no question without a figure"):
        scored(pairs[0], rule="vlmevalkit")


def test_vlmevalkit_keeps_visual_dependent_and_supplement_apart():
    pairs = ((vs(1), "Yes"), (vd(1), "No"), (vd(0), "No"))
    made = scored(*pairs, rule="vlmevalkit")
    assert made.metrics["qAcc"] == 0.5  # one of two pairs, not one pair of which half is right
    assert made.metrics["mean"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 3) / 3)
    assert made.clusters == ("VS_map_0", "VD_map_0")
    all_yes = dict.fromkeys((q.id for q in QUESTIONS), "Yes")
    counts = hallusion.score(QUESTIONS, all_yes, "vlmevalkit").notes["counts"]
    # Those that make whole numbers of four scores that the kit's authors published.
    assert counts == {"questions": 951, "pairs": 455, "figures": 346}


@pytest.mark.parametrize(
    ("original", "edited", "blamed"),
    [
        (vd(0), "yn", {"Mix": 1}),
        (vd(0), "y?", {"VI": 1}),
        (vd(0), "nn", {"VI": 2}),
        (vd(0), "?n", {"VI": 2}),
        (vs(0), "nn", {"LH": 2}),
        (vs(0), "n?", {"LH": 1, "Mix": 1}),
        (vs(0), "??", {"VI": 1}),
        (vs(0), "?n", {"VI": 1}),
        (vs(0), "yn", {"LH": 1}),
        (vs(0), "y?", {"VI": 1}),
        (vs(0), "yy", {}),
    ],
)
def test_errors_are_put_down_to_language_or_vision(original, edited, blamed):
    words = {"y": "Yes", "n": "No", "?": "Who knows"}
    second = vd(1) if original.category == "VD" else vs(2)
    made = scored((original, words[edited[0]]), (second, words[edited[1]]))
    assert made.notes["attribution"] == {"LH": 0, "VI": 0, "Mix": 0} | blamed


def test_common_sense_missed_with_its_figure_is_vision():
    made = scored((vs(0), "Yes"), (vs(1), "No"))
    assert made.notes["attribution"] == {"LH": 0, "VI": 1, "Mix": 0}


def test_errors_need_their_original():
    assert scored((vd(1), "Yes")).notes["attribution"] is None


def test_faultless_answers_have_no_false_positives():
    made = scored((vd(0), "Yes"))
    assert (made.metrics["fp_ratio"], made.degenerate) == (0.0, ("hard", "fp_ratio"))
    assert made.notes["printed"]["fp_ratio"] == made.notes["printed"]["hard"] == 0.0


@given(
    st.lists(st.sampled_from(["Yes", "No", "2"]), min_size=8, max_size=8),
    st.sampled_from(hallusion.RULES),
    st.randoms(use_true_random=False),
)
def test_order_and_repetition_of_sets(said, rule, random):
    asked = [vd(f, q, set_id=s) for s in range(2) for f in range(2) for q in range(2)]
    pairs = list(zip(asked, said, strict=True))
    once = scored(*pairs, rule=rule).metrics
    assert scored(*random.sample(pairs, len(pairs)), rule=rule).metrics == once
    again = [(replace(q, set_id=f"1{q.set_id}"), a) for q, a in pairs]
    twice = scored(*pairs, *again, rule=rule).metrics
    assert twice == pytest.approx(once, abs=1e-12)
    assert once["qAcc"] <= once["aAcc"]


def test_sets_are_resampled_together():
    right = [(vd(f, set_id=0), "Yes") for f in range(3)]
    wrong = [(vd(f, set_id=1), "No") for f in range(3)]
    made = scored(*right, *wrong)
    whole = stats.intervals(made, resamples=300)
    assert (whole["aAcc"].low, whole["aAcc"].value, whole["aAcc"].high) == (0.0, 0.5, 1.0)


# ---------------------------------------------------------------- files


def record(**changes):
    fields = dict(zip(FIELDS, ("VD", "map", "1", "0", "0", "0"), strict=True))
    return fields | {"question": "Is it?", "gt_answer": "1"} | changes


def save(path, records):
    path.write_text("[" + ",\n".join(map(json.dumps, records)) + "]")
    return path


def test_whole_numbers_are_read_like_strings(tmp_path):
    numbers = dict.fromkeys(FIELDS[3:], 0)
    plain = hallusion.load_questions(save(tmp_path / "a.json", [record()]))
    assert hallusion.load_questions(save(tmp_path / "b.json", [record(**numbers)])) == plain
    rows = [{**record(**numbers), "model_prediction": 1}]
    assert hallusion.load_answers(save(tmp_path / "c.json", rows)) == {"VD_map_0_0_0": "1"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gt_answer": "yes"}, r"q\.json:2: gt_answer is 'yes'; it must be one of 0, 1"),
        ({"visual_input": "3"}, r"q\.json:2: visual_input is '3'; it must be one of 0, 1, 2"),
        ({"category": "VX"}, r"q\.json:2: category is 'VX'; it must be one of VD, VS"),
        ({"question": None}, r'q\.json:2: "question" is None; it must be the question'),
        ({"set_id": 0.5}, r'q\.json:2: "set_id" is 0\.5; it must be a string or a whole number'),
        ({}, r"q\.json:2: question VD_map_0_0_0 occurs a second time"),
    ],
)
def test_bad_questions_are_named(tmp_path, changes, message):
    path = save(tmp_path / "q.json", [record(), record(**changes)])
    with pytest.raises(InvalidData, match=message):
        hallusion.load_questions(path)


def test_missing_keys_are_named(tmp_path):
    path = save(tmp_path / "q.json", [{"question": "Is it?", "gt_answer": "1"}])
    with pytest.raises(InvalidData, match=r'q\.json:1: key "category" is missing; the keys fou'):
        hallusion.load_questions(path)


# ---------------------------------------------------------------- score


@pytest.fixture
def asked(tmp_path):
    return save(tmp_path / "q.json", [record(), record(question_id="1", gt_answer="0")])


def test_document(tmp_path, asked):
    rows = [record(), record(question_id="1")]
    own = save(tmp_path / "own.json", [{**row, "model_prediction": "Yes."} for row in rows])
    made = score_predictions("hallusionbench", own, asked)
    assert json.loads(json.dumps(made)) == made
    assert (made["task"], made["n"], made["parser"]) == ("hallusionbench", 2, "official")
    assert made["metrics"]["aAcc"] == {"value": 0.5}
    assert made["printed"]["fAcc"] == 0.0
    assert (made["unparsed"], made["missing"]) == (0, 0)
    lines = tmp_path / "lines.jsonl"
    lines.write_text(
        '{"id": "VD_map_0_0_1", "answer": "Yes."}\n{"id": "VD_map_0_0_0", "answer": "Yes."}\n'
    )
    assert score_predictions("hallusionbench", lines, asked)["metrics"] == made["metrics"]
    short = score_predictions("hallusionbench", lines, asked, parser="lmms_eval", resamples=20)
    assert set(short["metrics"]) == {"aAcc", "qAcc", "fAcc"}
    assert set(short["metrics"]["qAcc"]) == {"value", "low", "high"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "VD_map_0_0_0", "answer": "No"}], r"p\.json: 1 of 2 predictions are missing: que"),
        (
            [{"id": "VD_map_0_0_0", "answer": "No"}] * 2,
            r"p\.json:2: id VD_map_0_0_0 was already answered on line 1",
        ),
        ([{"id": 3, "answer": "No"}], r"p\.json:1: id 3 is no question \(1 such answers\)"),
        ([record()], r'p\.json:1: key "answer" or "prediction" or "response" is missing'),
        ([{"answer": "No"}], r'p\.json:1: key "question_id" is missing'),
        (
            [{"id": f"VD_map_0_0_{i}", "answer": "No"} for i in range(3)],
            r"p\.json:3: id 'VD_map_0_0_2' is no question",
        ),
    ],
)
def test_bad_predictions_are_named(tmp_path, asked, rows, message):
    with pytest.raises(InvalidData, match=message) as caught:
        score_predictions("hallusionbench", save(tmp_path / "p.json", rows), asked)
    assert "\n" not in str(caught.value)


def test_questions_are_needed(tmp_path, asked):
    rows = save(tmp_path / "p.json", [{"id": "VD_map_9_0_0", "answer": "No"}])
    with pytest.raises(InvalidData, match=r"HallusionBench needs HallusionBench\.json"):
        score_predictions("hallusionbench", rows)
    with pytest.raises(InvalidData, match=r"p\.json:1: id 'VD_map_9_0_0' is no question"):
        score_predictions("hallusionbench", rows, asked, allow_missing=True)
    for lenient in (True, False):
        with pytest.raises(InvalidData, match="there are no answers to score"):
            hallusion.score([], {}, allow_missing=lenient)
