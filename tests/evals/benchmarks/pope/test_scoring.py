"""POPE: files, construction, answer rules and metrics against the published scorers."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.pope import scoring as pope
from halludecode.evals.data.answers import load_answers
from tests.support.published import VECTORS, public

POPE = VECTORS["pope"]
KEYS = ("accuracy", "precision", "recall", "f1", "yes_ratio")
SHORT = {"accuracy": "acc"}
WORDS = {"Yes": "yes", "No": "no", "Unknown": "other"}


def scored(items, rule="official", per_image=6):
    questions = [
        pope.PopeQuestion(i, f"{i // per_image}.jpg", "Is there a dog in the image?", item["label"])
        for i, item in enumerate(items)
    ]
    return pope.score(questions, {i: item["answer"] for i, item in enumerate(items)}, rule)


def expected(metrics):
    """The published numbers under our names, without lmms-eval's yes ratio of the labels."""
    out = {}
    for key in KEYS:
        if key in metrics:
            out[key] = metrics[key]
        elif (short := SHORT.get(key, key) + "_x100") in metrics:
            out[key] = metrics[short] / 100
    return out


# ---------------------------------------------------------------- answer rules


@pytest.mark.parametrize("rule", ["official", "opera", "lmms_eval", "vlmevalkit"])
@pytest.mark.parametrize("item", POPE["items"], ids=lambda item: item["answer"][:20] or "empty")
def test_rule_reads_an_answer_as_its_scorer_does(item, rule):
    wanted = item[rule]
    assert pope.parse_answer(item["answer"], rule, item["label"]) == WORDS.get(wanted, wanted)


@pytest.mark.parametrize("item", POPE["items"], ids=lambda item: item["answer"][:20] or "empty")
def test_vcd_rule_fills_the_cell_its_scorer_fills(item):
    cells = {("yes", "yes"): "TP", ("no", "yes"): "FN", ("no", "no"): "TN", ("yes", "no"): "FP"}
    parsed = pope.parse_answer(item["answer"], "vcd", item["label"])
    assert cells[parsed, item["label"]] == item["vcd"]


@pytest.mark.parametrize(
    ("answer", "parsed"),
    [
        ("Yes, no doubt", "yes"),
        ("I do not see one", "no"),
        ("NO", "no"),
        ("Hardly", "other"),
        ("", "other"),
        ("A snowboard", "no"),
    ],
)
def test_repope_rule_takes_yes_first_then_no_or_not(answer, parsed):
    assert pope.parse_answer(answer, "repope") == parsed


def test_repope_leaves_unanswered_questions_out_of_every_count():
    items = [
        {"answer": "Yes", "label": "yes"},
        {"answer": "Perhaps", "label": "yes"},
        {"answer": "No", "label": "no"},
        {"answer": "Perhaps", "label": "no"},
    ]
    result = scored(items, "repope")
    assert result.metrics["accuracy"] == 1.0
    assert result.metrics["recall"] == 1.0
    assert result.metrics["yes_ratio"] == 0.5
    assert result.n == 4
    assert result.unparsed == 2


def test_unknown_rule_names_the_known_ones():
    with pytest.raises(
        InvalidData, match=r"parser 'judge' is unknown; the known ones are official"
    ):
        pope.parse_answer("Yes", "judge")


def test_vcd_rule_wants_a_label():
    with pytest.raises(InvalidData, match="label"):
        pope.parse_answer("Yes", "vcd")


# ---------------------------------------------------------------- metrics


@pytest.mark.parametrize("rule", POPE["metrics"])
def test_metrics_equal_the_published_scorer(rule):
    result = scored(POPE["items"], rule)
    for key, value in expected(POPE["metrics"][rule]).items():
        assert result.metrics[key] == pytest.approx(value, abs=1e-9), key
    assert result.degenerate == ()


@pytest.mark.parametrize("case", POPE["degenerate"])
def test_zero_denominators_give_zero_and_a_flag(case):
    for rule, wanted in POPE["degenerate"][case]["metrics"].items():
        result = scored(POPE["degenerate"][case]["items"], rule)
        for key, value in expected(wanted).items():
            assert result.metrics[key] == pytest.approx(value, abs=1e-9), (rule, key)
        if wanted.get("error") == "ZeroDivisionError":
            assert result.degenerate
            assert all(result.metrics[name] == 0.0 for name in result.degenerate)


@pytest.mark.parametrize("name", POPE["real_predictions"])
def test_real_predictions_give_the_published_numbers(name):
    split = name.split("_")[2]
    questions = pope.load_questions(public(f"pope/coco/coco_pope_{split}.jsonl"))
    answers = load_answers(public(f"pope/predictions/{name}.jsonl"))
    for rule, wanted in POPE["real_predictions"][name].items():
        result = pope.score(questions, answers, rule)
        for key, value in expected(wanted).items():
            assert result.metrics[key] == pytest.approx(value, abs=1e-9), (rule, key)


def test_unparsed_counts_answers_without_yes_and_no_under_every_rule():
    items = [
        {"answer": answer, "label": "yes"}
        for answer in ("Yes.", "NO!", "Certainly", "", "A snowboard", "yesterday", "'no'")
    ]
    for rule in pope.RULES:
        assert scored(items, rule).metrics["unparsed"] == 4


def test_mean_of_splits_is_unweighted_and_pictures_are_shared():
    first = scored(POPE["items"][:10])
    second = scored(POPE["items"][10:])
    both = pope.mean({"random": first, "popular": second})
    for key in KEYS:
        assert both.metrics[key] == pytest.approx((first.metrics[key] + second.metrics[key]) / 2)
    assert both.metrics["unparsed"] == first.unparsed + second.unparsed
    assert set(both.clusters) == set(first.clusters) | set(second.clusters)
    assert both.n == len(POPE["items"])


def test_mean_over_two_rules_is_refused():
    with pytest.raises(InvalidData, match="one rule"):
        pope.mean({"random": scored(POPE["items"]), "popular": scored(POPE["items"], "vcd")})


ITEMS = st.lists(
    st.fixed_dictionaries(
        {
            "answer": st.sampled_from(["Yes", "No", "no.", "Not at all", "NO", "", "yes and no"]),
            "label": st.sampled_from(["yes", "no"]),
        }
    ),
    min_size=1,
    max_size=30,
)


@given(ITEMS, st.sampled_from(sorted(pope.RULES)), st.randoms(use_true_random=False))
def test_order_of_records_changes_nothing(items, rule, rng):
    questions = [pope.PopeQuestion(i, str(i % 5), "?", x["label"]) for i, x in enumerate(items)]
    answers = {i: x["answer"] for i, x in enumerate(items)}
    shuffled = questions.copy()
    rng.shuffle(shuffled)
    backwards = dict(reversed(answers.items()))
    assert pope.score(questions, answers, rule).metrics == pytest.approx(
        pope.score(shuffled, backwards, rule).metrics
    )


@given(ITEMS, st.sampled_from(sorted(pope.RULES)))
def test_doubling_every_record_keeps_ratios(items, rule):
    once, twice = scored(items, rule), scored(items + items, rule)
    for key in KEYS:
        assert twice.metrics[key] == pytest.approx(once.metrics[key])


@given(st.text(max_size=40), st.sampled_from(sorted(pope.RULES)), st.sampled_from(["yes", "no"]))
def test_every_rule_reads_every_text(answer, rule, label):
    assert pope.parse_answer(answer, rule, label) in ("yes", "no", "other")


def test_answers_must_be_those_of_the_questions():
    questions = [pope.PopeQuestion(i, "a.jpg", "?", "yes") for i in (1, 2)]
    with pytest.raises(InvalidData, match=r"1 of 2 predictions are missing: question_id 2;"):
        pope.score(questions, {1: "Yes"})
    with pytest.raises(InvalidData, match=r"1 predictions belong to no item: question_id 9;"):
        pope.score(questions, {1: "Yes", 2: "No", 9: "No"})
    with pytest.raises(InvalidData, match="no questions"):
        pope.score([], {})


# ---------------------------------------------------------------- files


RECORDS = [
    {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"},
    {"question_id": 2, "image": "a.jpg", "text": "Is there a cat in the image?", "label": "no"},
]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(map(json.dumps, RECORDS)) + "\n",
        "\r\n".join(map(json.dumps, RECORDS)),
        json.dumps(RECORDS, indent=4),
        json.dumps(RECORDS, indent=4).replace("\n", "\r\n"),
        "\ufeff" + json.dumps(RECORDS),
    ],
    ids=["lines", "crlf", "array", "crlf array", "byte-order mark"],
)
def test_all_published_layouts_are_read(tmp_path, text):
    path = tmp_path / "pope.json"
    path.write_bytes(text.encode())
    questions = pope.load_questions(path)
    assert [(q.question_id, q.image, q.text, q.label) for q in questions] == [
        tuple(record.values()) for record in RECORDS
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"question_id": 1,'], r"q\.jsonl:2: not JSON"),
        (["3"], r"q\.jsonl:2: expected a JSON object, found int"),
        ([json.dumps(RECORDS[0])], r"q\.jsonl:2: question_id 1 was already used on line 1"),
        (['{"question_id": 2}'], r'q\.jsonl:2: key "label" is missing; the keys found are'),
        (
            ['{"question_id": 2, "image": "a", "text": "?", "label": "maybe"}'],
            r"q\.jsonl:2: label is 'maybe'; it must be",
        ),
        (
            ['{"question_id": 2.5, "image": "a", "text": "?", "label": "no"}'],
            r'q\.jsonl:2: "question_id" is 2.5; it must be an integer',
        ),
    ],
)
def test_bad_line_is_named(tmp_path, lines, message):
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join([json.dumps(RECORDS[0]), *lines]))
    with pytest.raises(InvalidData, match=message):
        pope.load_questions(path)


def test_bad_place_in_an_array_is_named(tmp_path):
    path = tmp_path / "q.json"
    path.write_text('[\n {"question_id": 1},\n {"question_id": }\n]')
    with pytest.raises(InvalidData, match=r"q\.json:3: not JSON"):
        pope.load_questions(path)
    path.write_text('[\n {"question_id": 1}\n {"question_id": 2}\n]')
    with pytest.raises(InvalidData, match=r"q\.json:3: not JSON \(expected ','"):
        pope.load_questions(path)
    path.write_text('[\n {"question_id": 1}\n')
    with pytest.raises(InvalidData, match=r"q\.json:3: not JSON"):
        pope.load_questions(path)


def test_absent_empty_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(InvalidData, match=r"none\.jsonl does not exist"):
        pope.load_questions(tmp_path / "none.jsonl")
    with pytest.raises(InvalidData, match="is a folder"):
        pope.load_questions(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InvalidData, match=r"empty\.jsonl holds no records"):
        pope.load_questions(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"a": 1}\n{"b": "\xe9"}')
    with pytest.raises(InvalidData, match=r"latin\.jsonl:2: not UTF-8"):
        pope.load_questions(tmp_path / "latin.jsonl")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("coco/coco_pope_random", 3000),
        ("coco_legacy_2910/coco_pope_random", 2910),
        ("gqa/gqa_pope_adversarial", 3000),
        ("aokvqa/aokvqa_pope_popular", 3000),
        ("repope_coco/coco_repope_random", 2774),
        ("repope_coco/coco_repope_popular", 2727),
        ("repope_coco/coco_repope_adversarial", 2684),
    ],
)
def test_published_files_have_their_counts(name, count):
    assert len(pope.load_questions(public(f"pope/{name}.jsonl"))) == count


def test_repope_flips_the_labels_its_paper_counts():
    positives, negatives = set(), {}
    for split in pope.SETTINGS:
        old = {
            (q.image, q.text): q.label
            for q in pope.load_questions(public(f"pope/coco/coco_pope_{split}.jsonl"))
        }
        new = pope.load_questions(public(f"pope/repope_coco/coco_repope_{split}.jsonl"))
        changed = [q for q in new if old[q.image, q.text] != q.label]
        positives |= {(q.image, q.text) for q in changed if q.label == "no"}
        negatives[split] = sum(q.label == "yes" for q in changed)
    assert len(positives) == 139
    assert negatives == {"random": 5, "popular": 39, "adversarial": 33}


# ---------------------------------------------------------------- construction


OBJECTS = {
    "1.jpg": ["dog", "apple", "car"],
    "2.jpg": ["dog", "car", "cat"],
    "3.jpg": ["cat", "orange", "dog", "bus"],
    "4.jpg": ["dog", "kite"],
    "5.jpg": ["vase", "clock", "kite"],
}


def names(questions, label):
    return [
        q["text"].removeprefix("Is there ").split(" ", 1)[1].removesuffix(" in the image?")
        for q in questions
        if q["label"] == label
    ]


def test_questions_alternate_and_number_from_one():
    made = pope.build_questions(OBJECTS, "popular", seed=0)
    assert [q["question_id"] for q in made] == list(range(1, 25))
    assert [q["label"] for q in made] == ["yes", "no"] * 12
    assert {q["image"] for q in made} == {
        "1.jpg",
        "2.jpg",
        "3.jpg",
        "5.jpg",
    }  # 4.jpg shows too little
    assert made[0]["text"] == "Is there a dog in the image?"
    assert made[2]["text"] == "Is there an apple in the image?"


def test_popular_takes_the_most_frequent_absent_object():
    # Kept pictures hold dog 3, car 2, cat 2, then apple, orange, bus ... 1; ties as first seen.
    made = pope.build_questions(OBJECTS, "popular", seed=0)
    assert names(made, "no")[:3] == ["cat", "orange", "bus"]


def test_adversarial_takes_the_closest_companion():
    made = pope.build_questions(OBJECTS, "adversarial", seed=0, per_image=1)
    # With dog: car 2, cat 2, apple 1 ...; with cat: dog 2, car 1 ...; 4.jpg shows enough for one.
    assert names(made, "no")[:4] == ["cat", "apple", "car", "car"]


def test_adversarial_draws_where_no_companion_is_absent():
    made = pope.build_questions(OBJECTS, "adversarial", seed=0, per_image=1)
    assert names(made, "yes")[4] == "vase"  # seen with clock and kite only, and both are there
    assert names(made, "no")[4] in {"dog", "apple", "car", "cat", "orange", "bus"}


def test_prior_replaces_the_counts():
    prior = {"p": ["bus", "kite"], "q": ["kite", "dog"]}
    made = pope.build_questions({"1.jpg": ["dog"]}, "popular", seed=0, prior=prior, per_image=1)
    assert names(made, "no") == ["kite"]
    made = pope.build_questions({"1.jpg": ["dog"]}, "adversarial", seed=0, prior=prior, per_image=1)
    assert names(made, "no") == ["kite"]


@pytest.mark.parametrize("setting", pope.SETTINGS)
def test_negatives_are_absent_and_asked_once(setting):
    made = pope.build_questions(OBJECTS, setting, seed=3)
    for image, present in OBJECTS.items():
        no = names([q for q in made if q["image"] == image], "no")
        assert not set(no) & set(present)
        assert len(set(no)) == len(no)


def test_random_depends_on_the_seed_and_not_on_the_order_of_pictures():
    many = {f"{i}.jpg": [f"o{(i * k) % 37}" for k in (1, 5, 11)] for i in range(1, 30)}
    one = pope.build_questions(many, "random", seed=1)
    assert one == pope.build_questions(many, "random", seed=1)
    assert one != pope.build_questions(many, "random", seed=2)
    backwards = pope.build_questions(dict(reversed(many.items())), "random", seed=1)
    asked = {(q["image"], q["text"], q["label"]) for q in one}
    assert asked == {(q["image"], q["text"], q["label"]) for q in backwards}


def test_no_absent_object_is_an_error():
    with pytest.raises(InvalidData, match=r"image 1\.jpg: every known object is in it"):
        pope.build_questions({"1.jpg": ["a", "b", "c"]}, "random", seed=0)


def test_wrong_options_are_named():
    with pytest.raises(InvalidData, match="setting 'hard' is unknown; use one of random"):
        pope.build_questions(OBJECTS, "hard", seed=0)
    with pytest.raises(InvalidData, match="typos 'many' is unknown"):
        pope.build_questions(OBJECTS, "random", seed=0, typos="many")
    with pytest.raises(InvalidData, match="per_image is 0"):
        pope.build_questions(OBJECTS, "random", seed=0, per_image=0)


def test_old_template_bug_can_be_repeated():
    def texts(setting, typos):
        return [q["text"] for q in pope.build_questions(OBJECTS, setting, seed=0, typos=typos)]

    assert "Is there an apple in the imange?" in texts("popular", "generator")
    assert "Is there a dog in the image?" in texts("popular", "generator")
    assert not any("imange" in text for text in texts("popular", "vcd"))
    assert "Is there an apple in the imange?" in texts("adversarial", "vcd")
    assert not any("imange" in text for text in texts("adversarial", "official"))


@pytest.fixture(scope="module")
def coco():
    lines = public("pope/coco/coco_objects_500.jsonl").read_text().splitlines()
    objects = {r["image"]: r["objects"] for r in map(json.loads, lines)}
    prior = pope.Prior.load(
        public("pope/coco/coco_ground_truth_objects.json"), public("pope/coco/coco_co_occur.json")
    )
    return objects, prior


@pytest.mark.parametrize(("setting", "equal"), [("popular", 1500), ("adversarial", 1497)])
def test_released_negatives_are_reproduced(coco, setting, equal):
    objects, prior = coco
    made = pope.build_questions(objects, setting, seed=0, prior=prior)
    released = pope.load_questions(public(f"pope/coco/coco_pope_{setting}.jsonl"))
    same = [
        (m["image"], m["text"], m["label"]) == (q.image, q.text, q.label)
        for m, q in zip(made, released, strict=True)
    ]
    no = [flag for flag, q in zip(same, released, strict=True) if q.label == "no"]
    yes = [flag for flag, q in zip(same, released, strict=True) if q.label == "yes"]
    assert (sum(yes), sum(no)) == (1500, equal)


def test_released_random_negatives_are_ones_we_could_draw(coco):
    objects, prior = coco
    released = pope.load_questions(public("pope/coco/coco_pope_random.jsonl"))
    for q in random.Random(0).sample([q for q in released if q.label == "no"], 200):
        name = q.text.split(" ", 3)[3].removesuffix(" in the image?")
        assert name in prior.freq
        assert name not in objects[q.image]


def test_counts_over_the_pictures_equal_the_released_tables(coco):
    objects, prior = coco
    counted = pope.Prior.count(objects)
    assert counted.freq == prior.freq
    assert {k: set(v) for k, v in counted.cooc.items()} == {
        k: set(v) for k, v in prior.cooc.items()
    }
