"""Parts of speech: the reading rule is NLTK's, and the shipped weights are fitted to NLTK's."""

from __future__ import annotations

import gzip
import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halludecode.evals.benchmarks.chair import object_words as words
from halludecode.evals.benchmarks.chair import tagger as tags
from halludecode.evals.benchmarks.chair import tagger_correction as tags_correct
from halludecode.evals.benchmarks.chair import tagger_training as tags_train
from tests.support.published import CAPTION_FILES, caption_texts, use_nltk_data

# Words before which or after which NLTK's tagger decides in different ways, and odd ones.
_PIECES = (
    "a the two men man is are was has have seated seating parking meter ovens umbrellas skiing "
    "ties train bears bear kite flying colorful quickly and , . `` '' 's n't 3 1970 1970s 3.5 "
    "snow-covered -- - hot-dog \u00e9clair xylophone ? !"
)
TOKENS = st.lists(
    st.sampled_from(_PIECES.split(" "))
    | st.text(min_size=1, max_size=6).map(str.lower)
    | st.sampled_from(sorted(words.ambiguous())),
    max_size=14,
)
SAMPLE = 25  # every so many published captions


@cache
def nltk_tagger():
    use_nltk_data()
    from nltk.tag import PerceptronTagger

    return PerceptronTagger()


# ---------------------------------------------------------------- the reading rule


def test_nltks_weights_give_nltks_tags_on_any_tokens():
    theirs, ours = nltk_tagger(), tags.installed()

    @settings(deadline=None, max_examples=100)
    @given(TOKENS, st.data())
    def check(tokens, data):
        wanted = [name for _, name in theirs.tag(tokens)]
        found = ours.tag(tokens)
        assert [found[i] for i in range(len(tokens))] == wanted
        if tokens:  # some places alone, in any order: what lies before is read where needed
            places = data.draw(st.lists(st.integers(0, len(tokens) - 1), max_size=3))
            found = ours.tag(tokens, places)
            assert [found[i] for i in places] == [wanted[i] for i in places]

    check()


@pytest.mark.parametrize("name", CAPTION_FILES)
def test_nltks_weights_give_nltks_tags_on_published_captions(name):
    texts = caption_texts(name)[::SAMPLE]
    theirs, ours = nltk_tagger(), tags.installed()
    for caption in texts:
        tokens = [word for word, _, _ in words.tokenize(caption)]
        found = ours.tag(tokens)
        assert [found[i] for i in range(len(tokens))] == [tag for _, tag in theirs.tag(tokens)]


def test_shape_is_nltks_on_any_lower_cased_word():
    tagger = nltk_tagger()

    @given(st.text(min_size=1).map(str.lower) | st.from_regex(r"[0-9-]{1,5}s?", fullmatch=True))
    def check(word):
        assert tags.shape(word) == tagger.normalize(word)

    check()


@pytest.mark.parametrize(
    ("word", "shape"),
    [
        ("1970", "!YEAR"),
        ("1970s", "!DIGITS"),
        ("3", "!DIGITS"),
        ("3-d", "!HYPHEN"),
        ("well-lit", "!HYPHEN"),
        ("-", "-"),
        ("-lit", "-lit"),
        ("``", "``"),
        ("dog", "dog"),
    ],
)
def test_numbers_and_compounds_are_alike(word, shape):
    assert tags.shape(word) == shape


@pytest.mark.parametrize(
    ("name", "letter"),
    [("JJ", "a"), ("JJS", "a"), ("VBG", "v"), ("RB", "r"), ("NNS", "n"), ("IN", "n"), (".", "n")],
)
def test_part_of_a_penn_tag(name, letter):
    assert tags.part(name) == letter


def test_of_equal_sums_the_last_name_wins_as_in_nltk():
    tagger = tags.Tagger({"bias": {"NN": 1, "VB": 1, "JJ": 1}}, {}, ["NN", "VB", "JJ"])
    assert tagger.tag(["dog"])[0] == "VB"


def test_words_that_matter_are_those_with_several_lemmas():
    found = words.ambiguous()
    assert {"seated", "parking", "umbrellas", "skiing"} <= found
    assert not {"the", "dog", "xylophone"} & found
    assert len(found) == 966


# ---------------------------------------------------------------- fitting

# Stands in for NLTK's tagger: what follows "is" or "are" is a verb, all else a noun.
TEACHER = tags.Tagger(
    {"bias": {"NN": 1}, "i-1 word is": {"VBG": 2}, "i-1 word are": {"VBG": 2}},
    {"the": "DT", "is": "VBZ", "are": "VBZ"},
    ["NN", "VBG", "DT", "VBZ"],
)
CORPUS = [
    sentence.split(" ")
    for sentence in (
        "the dog is parking near a car",
        "the parking is full of cars",
        "two men are skiing on a hill",
        "the skiing was good for the men",
        "a car is turning near the parking",
    )
]
TARGETS = frozenset({"parking", "skiing"})


def fitted(**changes):
    return tags_train.make_model(
        CORPUS, TEACHER, TARGETS, **{"made": 400, "often": 2, "epochs": 4} | changes
    )


def test_a_model_learns_what_the_tagger_says_and_carries_it_over():
    model = fitted()
    assert model["known"]["the"] == "DT" and not TARGETS & set(model["known"])
    student = tags.read_model(model)
    unseen = ["the dog is skiing", "men are parking near the hill", "skiing is good", "a parking"]
    for tokens in [*CORPUS, *(sentence.split(" ") for sentence in unseen)]:
        asked = [i for i, word in enumerate(tokens) if word in TARGETS]
        found, right = student.tag(tokens, asked), TEACHER.tag(tokens, asked)
        assert [found[i] for i in asked] == [right[i] for i in asked], tokens


def test_a_model_is_the_same_every_time_and_depends_on_its_seeds():
    assert fitted() == fitted()
    assert fitted(made=300)["weights"] != fitted()["weights"]


def test_captions_read_wrongly_are_settled_by_small_steps():
    weights = {"bias": {"VBG": 3}}
    tokens = [list(sentence) for sentence in CORPUS]
    before = tags.Tagger(dict(weights), TEACHER.known, TEACHER.names).tag(CORPUS[1])
    assert before[1] == "VBG"
    tags_correct.settle(weights, TEACHER.known, TEACHER, tokens, TARGETS)
    student = tags.Tagger(weights, TEACHER.known, TEACHER.names)
    for sentence in CORPUS:
        for i in (i for i, word in enumerate(sentence) if word in TARGETS):
            assert student.tag(sentence, [i])[i] == TEACHER.tag(sentence)[i]
    # Weights that read everything right stay as they are.
    kept = json.dumps(weights)
    tags_correct.settle(weights, TEACHER.known, TEACHER, tokens, TARGETS)
    assert json.dumps(weights) == kept


def test_made_windows_are_of_parts_that_occur():
    real = tags_train.seen(CORPUS, TEACHER)
    vocabulary = {word for sentence in CORPUS for word in sentence} | TARGETS
    maker = tags_train.Maker(real, TARGETS)
    made = [maker.make() for _ in range(500)]
    for before2, before, word, after, after2, tag1, tag2 in made:
        assert {before2, before} <= vocabulary | set(tags.BEFORE)
        assert {after, after2} <= vocabulary | set(tags.AFTER)
        assert {tag1, tag2} <= set(TEACHER.names) | set(tags.BEFORE)
        assert word in vocabulary
    assert sum(window[2] in TARGETS for window in made) > 250
    assert len(set(made) - set(real)) > 250


def test_a_model_file_is_made_from_a_caption_file(tmp_path, monkeypatch):
    use_nltk_data()
    path, out = tmp_path / "captions.jsonl", tmp_path / "model.json.gz"
    lines = [
        {"image_id": 1, "caption": "A man is skiing fast."},
        {"text": "The old cars stopped there."},
        {"captions": ["A younger dog barked.", "The oldest bus is red and shorter."]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(words, "ambiguous", lambda: frozenset({"skiing", "cars"}))
    tags_train.main(str(out), str(path), made=50)
    model = json.loads(gzip.decompress(out.read_bytes()))
    assert "skiing" in model["weights"]["i word"]
    student = tags.read_model(model)
    for caption in tags_train.texts([path]):
        tokens = [word for word, _, _ in words.tokenize(caption)]
        for i in (i for i, word in enumerate(tokens) if word in ("skiing", "cars")):
            found, right = (t.tag(tokens, [i])[i] for t in (student, tags.installed()))
            assert tags.part(found) == tags.part(right)


# ---------------------------------------------------------------- the shipped model


def test_shipped_model_has_weights_for_every_kind_of_feature():
    model = json.loads(gzip.decompress(tags.MODEL.read_bytes()))
    assert set(model["weights"]) == {"bias", *tags.TEMPLATES}
    assert model["known"]["the"] == "DT"
    assert not words.ambiguous() & set(model["known"])
    assert tags.MODEL.stat().st_size < 2.5e6


@pytest.mark.parametrize(
    ("sentence", "word", "letter"),
    [
        ("a woman is seated at a table .", "seated", "v"),
        ("a parking meter stands on the street .", "parking", "n"),
        ("a man holding umbrellas .", "umbrellas", "n"),
        ("people with umbrellas walk in the rain .", "umbrellas", "a"),
        ("a man is skiing down a hill .", "skiing", "v"),
        ("the kitchen has ovens , a sink and cups .", "ovens", "v"),
    ],
)
def test_shipped_model_and_nltk_agree_on_words_that_turn_on_their_neighbours(
    sentence, word, letter
):
    tokens = sentence.split(" ")
    place = tokens.index(word)
    assert tags.part(tags.shipped().tag(tokens, [place])[place]) == letter
    use_nltk_data()
    assert tags.part(tags.installed().tag(tokens, [place])[place]) == letter
