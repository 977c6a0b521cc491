"""AMBER against the released script's figures, and each of its rules by itself."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halludecode.core.errors import InvalidData, MissingExtra
from halludecode.evals.benchmarks.amber import description_words as amber_words
from halludecode.evals.benchmarks.amber import scoring as amber
from halludecode.evals.runner.score_file import score_predictions
from halludecode.evals.statistics import intervals as stats
from tests.support.published import REPO, VECTORS, public, use_nltk_data

AMBER = VECTORS["amber"]
DATA = REPO / "tests" / "data" / "amber"
ITEMS = amber.load_items(DATA)
LEXICON = amber.Lexicon(
    {"sky": [], "person": ["people", "man"], "dog": ["puppy"], "bird": ["duck"], "sign": []},
    {"sign"},
)


def use_nouns():
    """Lets NLTK find its data; skips the test where it finds none, or not WordNet."""
    use_nltk_data()
    try:
        amber_words.nltk_nouns()
    except MissingExtra as lack:
        pytest.skip(str(lack))


def responses(kind):
    return {row["id"]: row["response"] for row in AMBER[kind]["responses"]}


def words(text):
    """Nouns of made-up texts, without NLTK."""
    return text.split()


def texts(*rows):
    """Items and responses of descriptions: (truth, hallu, words)."""
    items = [
        amber.AmberItem(i, "generative", None, tuple(truth.split()), tuple(hallu.split()), f"{i}")
        for i, (truth, hallu, _) in enumerate(rows, start=1)
    ]
    return items, {i: said for i, (_, _, said) in enumerate(rows, start=1)}


def describe(*rows, **given):
    items, said = texts(*rows)
    return amber.score(items, said, LEXICON, nouns=words, **given)


def asked(*rows):
    """Items and responses of questions: (type, label, answer)."""
    items = [amber.AmberItem(i, kind, label) for i, (kind, label, _) in enumerate(rows, start=1)]
    return items, {i: answer for i, (_, _, answer) in enumerate(rows, start=1)}


# ---------------------------------------------------------------- the released script's figures


def test_released_figures_of_descriptions():
    use_nouns()
    items = [item for item in ITEMS if item.label is None]
    made = amber.score(items, responses("generative"), amber.load_lexicon(DATA))
    assert made.notes["printed"] == AMBER["generative"]["expected_no_similarity"]
    table = AMBER["generative"]["expected_no_similarity"]["Generative Task"]
    for name, value in table.items():
        assert made.metrics[name.lower()] == pytest.approx(value / 100, abs=1e-9)
    assert (made.notes["nouns"], made.notes["similarity"]) == ("nltk", "none")


def test_released_figures_of_questions():
    items = [item for item in ITEMS if item.label is not None]
    made = amber.score(items, responses("discriminative"))
    expected = AMBER["discriminative"]["expected"]
    assert made.notes["printed"] == expected
    assert made.metrics["f1"] == pytest.approx(expected["Descriminative Task"]["F1"] / 100, 1e-9)
    assert made.metrics["existence.f1"] == pytest.approx(expected["Exsitence"]["F1"] / 100, 1e-9)
    assert (made.unread, made.unparsed) == (25, 5)  # not "Yes" or "No" alone; neither word at all
    assert "chair" not in made.metrics


def test_vectors_against_all_annotations():
    use_nouns()
    folder = public("amber")
    items, lexicon = amber.load_items(folder), amber.load_lexicon(folder)
    said = responses("generative") | responses("discriminative")
    made = amber.score(items, said, lexicon, allow_missing=True)
    wanted = AMBER["generative"]["expected_no_similarity"] | AMBER["discriminative"]["expected"]
    assert made.notes["printed"] == wanted
    assert made.notes["missing"] == 15220 - len(said)
    table = made.notes["printed"]
    both = 100 - table["Generative Task"]["CHAIR"] + table["Descriminative Task"]["F1"]
    assert made.metrics["amber"] == pytest.approx(both / 200, abs=1e-9)


def test_counts_of_the_release():
    items = amber.load_items(public("amber"))
    assert [item.id for item in items] == list(range(1, 15221))
    assert Counter(item.type for item in items) == {
        "generative": 1004,
        "discriminative-hallucination": 4924,
        "discriminative-attribute-state": 4764,
        "discriminative-attribute-number": 2072,
        "discriminative-attribute-action": 792,
        "discriminative-relation": 975,
        "relation": 689,
    }
    assert len({item.image for item in items}) == 1004
    answers = {item.id: str(item.label).capitalize() for item in items if item.label}
    made = amber.score(items, answers)
    assert len(made.clusters) == 1004
    assert made.notes["clusters"] == "pictures"
    # 2PR / (P + R + 0.0001) of a faultless model still rounds to 100; existence adds 0.001.
    assert made.notes["printed"]["Descriminative Task"]["F1"] == 100.0
    assert made.notes["printed"]["Exsitence"]["F1"] == 100.0


# ---------------------------------------------------------------- descriptions


@pytest.mark.parametrize(
    ("said", "hallucinated", "covered", "thought_of"),
    [
        ("sky", [], {0}, set()),
        ("people man", [], {1}, set()),  # both stand for the person
        ("dog", ["dog"], set(), set()),
        ("duck", ["duck"], set(), {0}),  # stands for the bird people think of
        ("sign puppy", ["puppy"], set(), set()),  # a safe word is no hallucination
        ("Sky tree", [], set(), set()),  # neither is one of the words that count
        ("", [], set(), set()),
    ],
)
def test_words_are_matched(said, hallucinated, covered, thought_of):
    naming = amber.read_description(words(said), ("sky", "person"), ("bird",), LEXICON)
    assert list(naming.hallucinated) == hallucinated
    assert (naming.covered, naming.thought_of) == (covered, thought_of)
    assert list(naming.nouns) == [word for word in words(said) if word in LEXICON.words]


def test_first_of_repeated_objects_is_covered():
    naming = amber.read_description(["dog", "dog"], ("sky", "dog", "dog"), (), LEXICON)
    assert naming.covered == {1}


def test_other_words_come_before_objects_own():
    lexicon = amber.Lexicon({"ground": ["grass"], "grass": []}, ())
    assert amber.read_description(["grass"], ("grass", "ground"), (), lexicon).covered == {1}


def test_safe_words_count_in_the_denominator():
    made = describe(("sky", "bird", "sign sign sign dog"))
    assert made.metrics["chair"] == 0.25
    assert made.outcomes[1]["nouns"] == ["sign", "sign", "sign", "dog"]


def test_similar_words():
    def alike(a, b):
        return {("dog", "puppy"): 0.9, ("duck", "person"): 0.9, ("duck", "dog"): 0.85}.get(
            (a, b), 0
        )

    read = amber.read_description
    saved = read(["dog"], ("sky",), ("dog", "bird"), LEXICON, alike)
    assert (saved.hallucinated, saved.thought_of) == (("dog",), {0})
    # In the list of absent objects both an equal and a similar word are marked ...
    both = read(["duck"], ("sky",), ("bird", "dog"), LEXICON, alike)
    assert (both.hallucinated, both.thought_of) == (("duck",), {0, 1})
    # ... and a word like one in the picture is covered and no hallucination.
    near = read(["duck"], ("sky", "person"), ("bird",), LEXICON, alike)
    assert (near.hallucinated, near.covered, near.thought_of) == ((), {1}, {0})
    just = read(["duck"], ("person",), (), LEXICON, lambda a, b: 0.8)
    assert just.hallucinated == ("duck",)


def test_similarity_is_recorded():
    def always(a, b):
        return 1.0

    made = describe(("sky", "bird", "dog"), similarity=always)
    assert made.metrics["chair"] == 0.0
    assert (made.notes["similarity"], made.notes["nouns"]) == ("always", "words")


def test_rates_of_descriptions():
    made = describe(
        ("sky person", "bird dog", "sky people dog"),
        ("sky dog", "bird person", "dog"),
        ("sky", "", ""),
    )
    # Two clean of three, the script's way: 100 - 200 / 3.001 is 33.4.
    assert made.metrics == {"chair": 0.25, "cover": 0.6, "hal": 0.334, "cog": 0.25}
    assert made.shares["hal"] == {1: 1, 2: 0, 3: 0}
    assert made.outcomes[1]["covered"] == ["sky", "person"]
    assert made.outcomes[1]["thought_of"] == ["dog"]


def test_one_clean_description_has_the_scripts_hal():
    # 100 - 100 x 1 / 1.001 is 0.1: the released script's denominators start above 0.
    assert describe(("sky", "bird", "sky")).metrics["hal"] == 0.001


def test_nothing_named_is_marked():
    made = describe(("sky", "bird", "tree"))
    assert made.metrics["chair"] == 0.0
    assert made.degenerate == ("chair",)


# ---------------------------------------------------------------- questions


@pytest.mark.parametrize(
    ("answer", "official", "lmms_eval", "vlmevalkit"),
    [
        ("Yes", "yes", "yes", "yes"),
        ("No", "no", "no", "no"),
        ("yes", "other", "yes", "yes"),
        ("No.", "other", "no", "no"),
        (" No", "other", "no", "no"),
        ("No, not yes", "other", "yes", "other"),
        ("I know", "other", "no", "other"),
        ("", "other", "other", "other"),
    ],
)
def test_rules_read_answers(answer, official, lmms_eval, vlmevalkit):
    read = amber.parse_amber_answer
    assert read(answer) == read(answer, "official") == official
    assert read(answer, "lmms_eval") == lmms_eval
    assert read(answer, "vlmevalkit") == vlmevalkit


def test_unknown_rule_is_named():
    with pytest.raises(InvalidData, match="'opera' is unknown for AMBER; the known ones are off"):
        amber.parse_amber_answer("Yes", "opera")


def test_only_answered_dimensions_are_scored():
    kinds = ("discriminative-hallucination", "relation", "discriminative-attribute-state")
    items, said = asked(*((kind, "no", "No") for kind in kinds))
    part = amber.score(items, {1: "No"})
    assert set(part.metrics) == {
        f"existence.{m}" for m in ("accuracy", "precision", "recall", "f1")
    }
    assert part.notes["dimensions"] == ("existence",)
    assert set(amber.score(items, said).metrics) > {"accuracy", "relation.f1", "attribute.recall"}
    assert "accuracy" not in amber.score(items, {1: "No", 2: "No"}).metrics


def test_unanswered_no_is_marked():
    items, said = asked(("relation", "yes", "Yes"), ("discriminative-relation", "no", "Perhaps"))
    made = amber.score(items, said)
    assert made.metrics["relation.precision"] == made.metrics["relation.f1"] == 0.0
    assert made.degenerate == ("relation.precision", "relation.f1")


def tenth(k, n, start):
    return round(k / (n + start) * 100, 1) if n else 0.0


PART_TYPES = [kind for kind in amber.TYPES if kind != "generative"]
ROWS = st.lists(
    st.tuples(
        st.sampled_from(PART_TYPES),
        st.sampled_from(["yes", "no"]),
        st.sampled_from(["Yes", "No", "no"]),
    ),
    min_size=1,
    max_size=60,
)


@given(ROWS)
def test_questions_are_counted_as_by_hand(rows):
    made = amber.score(*asked(*rows)).metrics
    groups = {"existence": ("hallucination",), "state": ("state",), "relation": ("relation",)}
    groups |= {"attribute": ("state", "number", "action")}
    for group, ends in groups.items():
        mine = [row for row in rows if row[0].endswith(ends)]
        if f"{group}.f1" not in made:
            assert not mine
            continue
        start = 0.001 * len(ends)
        hit = sum(row[1:] == ("no", "No") for row in mine)
        precision = tenth(hit, sum(row[2] == "No" for row in mine), start)
        recall = tenth(hit, sum(row[1] == "no" for row in mine), start)
        p, r = precision / 100, recall / 100
        f1 = round(2 * p * r / (p + r + (0.001 if group == "existence" else 0.0001)) * 100, 1)
        right = sum(row[2] == row[1].capitalize() for row in mine)
        for name, value in (
            ("accuracy", tenth(right, len(mine), start)),
            ("precision", precision),
            ("recall", recall),
            ("f1", f1),
        ):
            assert made[f"{group}.{name}"] == pytest.approx(value / 100, abs=1e-9), (group, name)


@given(ROWS, st.randoms(use_true_random=False))
def test_order_does_not_matter(rows, random):
    items, said = asked(*rows)
    shuffled = random.sample(items, len(items))
    again = amber.score(shuffled, dict(random.sample(list(said.items()), len(said))))
    assert again.metrics == amber.score(items, said).metrics


# ---------------------------------------------------------------- ids


def test_ids_must_match():
    items, said = asked(*(("relation", "no", "No") for _ in range(3)))
    with pytest.raises(InvalidData, match="1 of 3 predictions are missing: id 2"):
        amber.score(items, {1: "No", 3: "No"})
    assert amber.score(items, {1: "No"}, allow_missing=True).notes["missing"] == 2
    for lenient in (True, False):
        with pytest.raises(InvalidData, match="1 predictions belong to no item: id 9"):
            amber.score(items, said | {9: "No"}, allow_missing=lenient)
        with pytest.raises(InvalidData, match="no responses to score"):
            amber.score(items, {}, allow_missing=lenient)


def test_descriptions_need_the_word_lists():
    items, said = texts(("sky", "bird", "sky"))
    with pytest.raises(InvalidData, match=r"need AMBER's relation\.json and safe_words\.txt"):
        amber.score(items, said)
    items, said = texts(("sky", "ghost", "sky"))
    with pytest.raises(InvalidData, match=r"id 1: 'ghost' is not a key of relation\.json"):
        amber.score(items, said, LEXICON, nouns=words)


def test_pictures_are_resampled_together():
    rows = [("relation", "no", answer) for answer in ("No", "No", "Yes", "Yes")]
    items, said = asked(*rows)
    places = ("a.jpg", "a.jpg", "b.jpg", "b.jpg")
    items = [
        amber.AmberItem(item.id, item.type, item.label, image=image)
        for item, image in zip(items, places, strict=True)
    ]
    made = amber.score(items, said)
    assert made.clusters == ("a.jpg", "b.jpg")
    interval = stats.intervals(made, resamples=400)["relation.accuracy"]
    assert (interval.low, interval.value, interval.high) == (
        0.0,
        0.5,
        pytest.approx(0.999, abs=0.002),
    )
    other = amber.score(items, dict.fromkeys(said, "No"))
    gap = stats.compare(made, other, resamples=50)["relation.accuracy"]
    assert (gap.test, gap.discordant) == ("mcnemar", (0, 2))


# ---------------------------------------------------------------- libraries


@pytest.fixture
def fresh_nouns():
    amber_words.nltk_nouns.cache_clear()
    yield
    amber_words.nltk_nouns.cache_clear()


def test_nouns_keep_their_case(fresh_nouns):
    use_nouns()
    nouns = amber_words.nltk_nouns()
    assert nouns("People and women walk two dogs under skies.")[:2] == ("People", "woman")
    assert "dog" in nouns("There are two dogs.")
    assert not nouns("")


def test_nltk_is_asked_for(monkeypatch, fresh_nouns):
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(MissingExtra, match=r'pip install "halludecode\[eval\]"'):
        amber_words.nltk_nouns()


def test_nltk_data_are_asked_for(monkeypatch, fresh_nouns):
    nltk = pytest.importorskip("nltk", reason="NLTK is not installed")

    def word_tokenize(text):
        raise LookupError("\n\n****\n  Resource punkt_tab not found.\n")

    monkeypatch.setattr(nltk, "word_tokenize", word_tokenize)
    items, said = texts(("sky", "bird", "sky"))
    with pytest.raises(MissingExtra, match=r"nltk\.downloader punkt_tab aver") as caught:
        amber.score(items, said, LEXICON)
    assert "\n" not in str(caught.value)


class Document:
    def __init__(self, text):
        self.text = text

    def similarity(self, other):
        return 0.9 if {self.text, other.text} == {"dog", "person"} else 0.1


def fake_spacy(monkeypatch):
    loaded = []

    def load(model):
        if model != "en_core_web_lg":
            raise OSError("[E050] Can't find model")
        loaded.append(model)
        return Document

    module = ModuleType("spacy")
    module.load = load
    monkeypatch.setitem(sys.modules, "spacy", module)
    return loaded


def test_spacy_similarity(monkeypatch):
    loaded = fake_spacy(monkeypatch)
    made = describe(("person", "bird", "dog bird"), similarity="spacy:en_core_web_lg")
    assert loaded == ["en_core_web_lg"]
    assert made.outcomes[1]["covered"] == ["person"]
    assert made.outcomes[1]["hallucinated"] == ["bird"]
    assert made.notes["similarity"] == "spacy:en_core_web_lg"


def test_spacy_is_asked_for(monkeypatch):
    fake_spacy(monkeypatch)
    with pytest.raises(MissingExtra, match="python -m spacy download en_core_web_md"):
        amber_words.named_similarity("spacy:en_core_web_md")
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(MissingExtra, match="pip install spacy, then python -m spacy download"):
        describe(("sky", "bird", "sky"), similarity="spacy:en_core_web_lg")
    for name in ("glove", "spacy:"):
        with pytest.raises(InvalidData, match=f"similarity {name!r} is unknown; give spacy:MODEL"):
            amber_words.named_similarity(name)


# ---------------------------------------------------------------- files


def write(folder: Path, **contents):
    for name, content in contents.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text)


def test_folder_and_file_give_the_same(tmp_path):
    items = [{"id": 1, "type": "generative", "truth": ["sky"], "hallu": []}]
    items += [{"id": 2, "type": "relation", "truth": "no"}]
    write(
        tmp_path, annotations__json=items, relation__json={"sky": ["sun"]}, safe_words__txt="a\nb"
    )
    found = amber.load_items(tmp_path)
    assert found == amber.load_items(tmp_path / "annotations.json")
    assert [item.image for item in found] == [None, None]
    lexicon = amber.load_lexicon(tmp_path / "annotations.json")
    assert (lexicon.words, lexicon.safe) == ({"sky", "sun"}, {"a", "b"})
    (tmp_path / "query").mkdir()
    write(tmp_path / "query", query_all__json=[{"id": 2, "image": "A.jpg", "query": "Is it?"}])
    assert [item.image for item in amber.load_items(tmp_path)] == [None, "A.jpg"]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"type": "relation", "truth": "no"}, r'annotations\.json:1: key "id" is missing'),
        (
            {"id": 1, "type": "taste", "truth": "no"},
            r"json:1: type 'taste' of id 1 is none of gene",
        ),
        ({"id": 1, "type": "relation", "truth": "maybe"}, r"json:1: truth of id 1 is 'maybe'"),
        (
            {"id": 1, "type": "relation", "truth": ["sky"]},
            r'json:1: "truth" is \[\'sky\'\]; it mus',
        ),
        ({"id": 1, "type": "generative", "truth": ["sky"]}, r'json:1: key "hallu" is missing'),
        (
            {"id": 1, "type": "generative", "truth": [1], "hallu": []},
            r"json:1: truth and hallu of id 1 must list words",
        ),
    ],
)
def test_bad_annotations_are_named(tmp_path, item, message):
    write(tmp_path, annotations__json=[item])
    with pytest.raises(InvalidData, match=message):
        amber.load_items(tmp_path)


def test_repeated_ids_are_named(tmp_path):
    line = '{"id": 1, "type": "relation", "truth": "no"}'
    write(tmp_path, annotations__json=f"[{line},\n{line}]")
    with pytest.raises(InvalidData, match=r"annotations\.json:2: id 1 occurs a second time"):
        amber.load_items(tmp_path)


@pytest.mark.parametrize(
    ("relation", "message"),
    [
        (None, r"relation\.json does not exist; check the path"),
        ("{\n,", r"relation\.json:2: not JSON"),
        ('["sky"]', r"relation\.json: expected an object that maps every word to a list"),
        ('{"sky": "sun"}', r"relation\.json: expected an object that maps every word to a list"),
        ('{"sky": []}', r"safe_words\.txt does not exist; check the path"),
    ],
)
def test_bad_word_lists_are_named(tmp_path, relation, message):
    if relation is not None:
        write(tmp_path, relation__json=relation)
    with pytest.raises(InvalidData, match=message):
        amber.load_lexicon(tmp_path)


# ---------------------------------------------------------------- score


def predictions(tmp_path, rows, name="p.json"):
    path = tmp_path / name
    path.write_text(json.dumps(rows))
    return path


def test_document_of_questions(tmp_path):
    path = predictions(tmp_path, AMBER["discriminative"]["responses"])
    made = score_predictions("amber", path, DATA)
    assert json.loads(json.dumps(made)) == made
    assert (made["task"], made["n"], made["parser"]) == ("amber", 63, "official")
    assert (made["unread"], made["unparsed"]) == (25, 5)
    assert made["metrics"]["relation.accuracy"] == {"value": 0.357}
    assert made["dimensions"] == ["existence", "attribute", "relation"]
    assert set(made["files"]) == {"predictions", "annotations", "relation", "safe_words"}
    assert (
        made["files"]["annotations"]
        == score_predictions("amber", path, DATA / "annotations.json")["files"]["annotations"]
    )


def test_answers_as_json_lines(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = AMBER["discriminative"]["responses"][:2]
    path.write_text("".join(f'{{"id": {r["id"]}, "answer": "{r["response"]}"}}\n' for r in rows))
    made = score_predictions("amber", path, DATA, allow_missing=True)
    assert made["n"] == 2
    assert made["missing"] > 0
    wide = score_predictions("amber", path, DATA, parser="lmms_eval", allow_missing=True)
    assert wide["parser"] == "lmms_eval"


def test_descriptions_through_score(tmp_path):
    use_nouns()
    path = predictions(tmp_path, AMBER["generative"]["responses"])
    made = score_predictions("amber", path, DATA, resamples=50)
    assert made["printed"] == AMBER["generative"]["expected_no_similarity"]
    assert made["metrics"]["chair"]["low"] <= 0.267 <= made["metrics"]["chair"]["high"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"id": 1018, "response": "Yes"}] * 2,
            r"p\.json:1: id 1018 was already answered on line 1",
        ),
        ([{"id": 1018}], r'p\.json:1: key "answer" or "prediction" or "response" is m'),
        ([{"id": 1018, "response": 1}], r'p\.json:1: "response" is 1; it must be the answer'),
        ([{"response": "Yes"}], r'p\.json:1: key "question_id" is missing'),
        ([{"id": 1018, "response": "Yes"}], r"p\.json: \d+ of \d+ predictions are missing: id "),
        ([{"id": 7, "response": "Yes"}], r"p\.json:1: id 7 is no question \(1 such answers\)"),
    ],
)
def test_bad_predictions_are_named(tmp_path, rows, message):
    with pytest.raises(InvalidData, match=message) as caught:
        score_predictions("amber", predictions(tmp_path, rows), DATA)
    assert "\n" not in str(caught.value)


def test_options_of_other_tasks(tmp_path):
    path = predictions(tmp_path, [])
    with pytest.raises(InvalidData, match="AMBER needs its data folder"):
        score_predictions("amber", path)
    with pytest.raises(InvalidData, match="similarity is for task amber, not pope"):
        score_predictions("pope", path, similarity="spacy:en_core_web_lg")
    with pytest.raises(InvalidData, match=r"allow-missing is for amber and .*, not chair"):
        score_predictions("chair", path, allow_missing=True)
