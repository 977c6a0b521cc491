"""The small model that tells the parts of speech that matter, and how it is made."""

from __future__ import annotations

import gzip
import json

import pytest

from halludecode.evals import tags, tags_train, words
from tests.evals.public import use_nltk_data


class Tagger:
    """Stands in for NLTK's tagger: what follows "is" or "are" is a verb, all else a noun."""

    def tag(self, sentence):
        before = ["", *sentence]
        return [
            (word, "VBG" if last in ("is", "are") else "NN")
            for last, word in zip(before, sentence, strict=False)
        ]


SENTENCES = [
    ["the", "dog", "is", "parking", "near", "a", "car"],
    ["the", "parking", "is", "full", "of", "cars"],
    ["two", "men", "are", "skiing", "on", "a", "hill"],
    ["the", "skiing", "was", "good", "for", "the", "men"],
    ["a", "car", "is", "turning", "near", "the", "parking"],
]


def test_fit_learns_what_the_tagger_says():
    tagger = Tagger()
    captions = [tagger.tag(sentence) for sentence in SENTENCES]
    usual = tags_train.usual_tags(captions, least=1)
    made = tags_train.examples(captions, {"parking", "skiing"}, usual, tagger, contexts=20)
    assert {right for _, right in made} == {tags.POS.index("n"), tags.POS.index("v")}
    weights = tags_train.rounded(tags_train.fit(list(made)))
    for names, right in made:
        sums = tags.totals(names, weights)
        assert sums.index(max(sums)) == right


def test_fit_is_the_same_every_time():
    tagger = Tagger()
    captions = [tagger.tag(sentence) for sentence in SENTENCES]
    usual = tags_train.usual_tags(captions, least=1)

    def made():
        data = tags_train.examples(captions, {"parking"}, usual, tagger, contexts=5)
        return tags_train.fit(data)

    assert made() == made()


def test_words_that_matter_are_those_with_several_lemmas():
    found = tags_train.ambiguous()
    assert {"seated", "parking", "umbrellas", "skiing"} <= found
    assert not {"the", "dog", "xylophone"} & found
    assert len(found) == 966


def test_numbers_compounds_and_quotes_are_alike():
    assert tags.plain("1970s") == tags.plain("3") == "0"
    assert tags.plain("well-lit") == tags.plain("snow-covered")
    assert tags.plain("``") == tags.plain('"')
    assert tags.plain("-") == "-"


def test_shipped_model_holds_weights_for_every_part_of_speech():
    model = json.loads(gzip.decompress(tags.MODEL.read_bytes()))
    assert all(len(row) == len(tags.POS) for row in model["weights"].values())
    assert model["usual"]["the"] == "DT"


@pytest.mark.parametrize(
    ("sentence", "word", "pos"),
    [
        ("a woman is seated at a table .", "seated", "v"),
        ("a parking meter stands on the street .", "parking", "n"),
        ("a man holding umbrellas .", "umbrellas", "n"),
        ("people with umbrellas walk in the rain .", "umbrellas", "a"),
        ("a man is skiing down a hill .", "skiing", "v"),
    ],
)
def test_shipped_model_agrees_with_nltk(sentence, word, pos):
    tokens = sentence.split()
    assert tags.tag(tokens, words._lemma_table())[tokens.index(word)] == pos
    use_nltk_data()
    from nltk.tag import PerceptronTagger

    name = PerceptronTagger().tag(tokens)[tokens.index(word)][1]
    assert {"V": "v", "J": "a", "R": "r"}.get(name[0], "n") == pos


def test_model_can_be_made_from_a_caption_file(tmp_path):
    use_nltk_data()
    path = tmp_path / "captions.jsonl"
    texts = ["A man is skiing fast.", "The old cars stopped there.", "A younger dog barked."] * 3
    texts += ["The oldest bus is red and shorter."] * 3
    path.write_text("".join(json.dumps({"image_id": 1, "caption": t}) + "\n" for t in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tags_train, "ambiguous", lambda: {"skiing", "cars"})
        tags_train.main(str(tmp_path / "model.json.gz"), str(path))
    model = json.loads(gzip.decompress((tmp_path / "model.json.gz").read_bytes()))
    assert model["usual"]["a"] == "DT"
    assert any(name.startswith("w skiing") for name in model["weights"])
