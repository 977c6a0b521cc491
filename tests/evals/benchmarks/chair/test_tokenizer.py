"""The tokeniser without data: NLTK's tokens, with their places in the caption."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halludecode.evals.benchmarks.chair import object_words as words
from halludecode.evals.benchmarks.chair import tokenizer as tokens
from tests.support.published import CAPTION_FILES, VECTORS, caption_texts, use_nltk_data

SAMPLE = 4  # every so many published captions; test_chair counts the words of all


@pytest.fixture(scope="module")
def nltk_tokens():
    """What the published scripts split a caption into."""
    use_nltk_data()
    if version("nltk").startswith("3.9"):
        pytest.skip("NLTK 3.9 splits some tokens in another way; the rules here are those of 3.10")
    from nltk import word_tokenize

    return lambda caption: word_tokenize(caption.lower())


def own_tokens(caption):
    return [word for word, _, _ in tokens.tokenize(caption)]


# ---------------------------------------------------------------- against NLTK


@pytest.mark.parametrize("name", CAPTION_FILES)
def test_published_captions_are_split_as_nltk_does(name, nltk_tokens):
    for caption in caption_texts(name)[::SAMPLE]:
        assert own_tokens(caption) == nltk_tokens(caption)


def test_every_vector_caption_is_split_as_nltk_does(nltk_tokens):
    for case in VECTORS["chair"]["captions"]:
        assert own_tokens(case["caption"]) == nltk_tokens(case["caption"])


# Sentences as people and models write them: each word with at most one mark before it and a few
# after it, and the abbreviations of `tokens.ABBREVIATIONS`.
_WORDS = (
    "a the A dog dogs Two men's it's isn't They'll I'm we've there's cats' x-ray hot-dog cups/mugs "
    "3 12 1,000 3.5 10:30 1990s cannot gonna wanna caf\u00e9 \u00c9clair don\u2019t dog\u2019s "
    "toilet seat wine glasses bus no yes AND/OR 50% #1 & - * \u2014 $5 @home \u2026"
)
_SHORT = "St. Mr. Dr. U.S. a.m. p.m. vs. Jr. ave. St.-Louis"
_BEFORE = ["", "", "", "", "", '"', "(", "\u201c", "\u2018", "[", "'"]
_AFTER = ["", "", "", "", ".", ".", ",", "?", "!", ";", ":", "...", '."', '"', ").", ")", ",", "'"]
_AFTER += [".)", "\u201d", ".\u201d", ',"', "?!", "]", "..", '?"', "!)"]
_WORD = st.tuples(
    st.sampled_from(_BEFORE), st.sampled_from(_WORDS.split(" ")), st.sampled_from(_AFTER)
)
PIECES = _WORD.map("".join) | st.sampled_from(_SHORT.split(" "))
TEXTS = st.lists(PIECES, max_size=12).map(" ".join)


def test_sentences_are_split_as_nltk_does(nltk_tokens):
    @settings(deadline=None, max_examples=400)
    @given(TEXTS)
    def check(caption):
        assert own_tokens(caption) == nltk_tokens(caption)

    check()


_ODD = "a I dogs cannot gonna hot-dog men's don st 12 1990"
_LETTERS = st.text("abcdefghinorstuvwy", min_size=2, max_size=6)
_PLAIN = st.tuples(
    _LETTERS | st.sampled_from(_ODD.split(" ")),
    st.sampled_from(["", "", ".", ",", "!", "?", ";"]),
)
PLAIN = st.lists(_PLAIN.map("".join), min_size=3, max_size=7).map(" ".join)


def test_texts_called_plain_never_differ(nltk_tokens):
    """The ``nltk`` path leaves these to the tokeniser without data, for speed alone."""
    spared = words._spared()
    asked = []

    @settings(deadline=None, max_examples=300)
    @given(PLAIN)
    def check(caption):
        if tokens.plain(caption.lower(), spared):
            asked.append(caption)
            assert own_tokens(caption) == nltk_tokens(caption)

    check()
    assert len(set(asked)) > 100


_WORDS = _LETTERS | st.sampled_from(["a", "dogs", "dog's", "hot-dog", "cannot-do", "12", "1990"])
_WITH = st.tuples(_WORDS, st.sampled_from(["", "", ",", ";", "."])).map("".join)
EASY = st.tuples(st.lists(_WITH, max_size=6), _LETTERS).map(
    lambda parts: " ".join([*parts[0], parts[1]])
)


def test_easy_texts_are_split_as_all_others_are():
    asked = []

    def check(caption):
        lowered = caption.lower()
        found = tokens.easy_words(lowered)
        if found is not None:
            asked.append(caption)
            assert tokens.placed(lowered, found) == tokens.tokenize(lowered)

    for texts in (EASY, TEXTS):  # half of the first are easy, however they are drawn
        settings(deadline=None, max_examples=300)(given(texts)(check))()
    assert len(set(asked)) > 100


@pytest.mark.parametrize("odd", ["st. louis", "a. dog", "gonna", "3.5 m", "it isn't", "caf\u00e9"])
def test_odd_texts_are_not_easy(odd):
    assert tokens.easy_words("a dog, the cat's 2 well-lit toys.") is not None
    assert tokens.easy_words(f"the {odd} dog") is None


# What differs: NLTK's tokens and ours.
DIFFERENCES = {
    # NLTK's list of abbreviations is longer, and partly of ordinary words.
    "A car wash. Two dogs.": ("a car wash. two dogs .", "a car wash . two dogs ."),
    "He is ill. Two dogs.": ("he is ill. two dogs .", "he is ill . two dogs ."),
    "By j.b. Two dogs.": ("by j.b. two dogs .", "by j.b . two dogs ."),
    # Two dashes in one run with a quote and the period.
    "Dr. \u201c--.\u201d Two": ("dr. \u201c -- . \u201d two", "dr . \u201c -- . \u201d two"),
}


@pytest.mark.parametrize("caption", DIFFERENCES)
def test_known_differences_are_as_listed(caption, nltk_tokens):
    theirs, ours = DIFFERENCES[caption]
    assert " ".join(own_tokens(caption)) == ours != theirs
    assert " ".join(nltk_tokens(caption)) == theirs


# ---------------------------------------------------------------- by itself


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("", ""),
        ("  \n ", ""),
        ("Dogs, cats; and a bus.", "dogs , cats ; and a bus ."),
        ("It isn't. They'll go.", "it is n't . they 'll go ."),
        ('A "stop" sign', "a `` stop '' sign"),
        ("Go to St. Louis at 5 p.m. on Main St.", "go to st. louis at 5 p.m. on main st ."),
        ("1,000 dogs... cannot run", "1,000 dogs ... can not run"),
        ("hot-dog and cups/mugs (two)", "hot-dog and cups/mugs ( two )"),
        ("St.)dogs here", "st. ) dogs here"),
        ("the dogs' 'home'", "the dogs ' ' home '"),
    ],
)
def test_hand_made_captions(caption, wanted):
    assert " ".join(own_tokens(caption)) == wanted


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=60) | TEXTS)
def test_tokens_stand_in_the_callers_own_letters(caption):
    """In order, without overlap, and with every letter that is not white space in one of them."""
    end, covered = 0, []
    for word, start, stop in tokens.tokenize(caption):
        assert end <= start < stop <= len(caption)
        letters = caption[start:stop].lower()
        # A letter that grows when lower-cased may be cut inside: its token still lies at it.
        assert letters == word or word in ("``", "''") or word in letters
        covered += range(start, stop)
        end = stop
    bare = {i for i, letter in enumerate(caption) if not letter.isspace()}
    assert bare <= set(covered)


def test_letters_that_grow_when_lower_cased_keep_their_place():
    caption = "\u0130stanbul: DOG"
    lowered, place = tokens.lower(caption)
    assert len(lowered) == len(caption) + 1 == len(place) - 1
    assert [caption[a:b] for _, a, b in tokens.tokenize(caption)] == ["\u0130stanbul", ":", "DOG"]


def test_abbreviations_may_be_given():
    caption = "Two abc. dogs."
    assert [w for w, _, _ in tokens.tokenize(caption)] == ["two", "abc", ".", "dogs", "."]
    shorter = tokens.tokenize(caption, frozenset({"abc"}))
    assert [w for w, _, _ in shorter] == ["two", "abc.", "dogs", "."]
