"""A user's own object words: read as CHAIR reads its own, or refused in a sentence."""

from __future__ import annotations

import json

import pytest

from halludecode.core.errors import InvalidData, MissingExtra
from halludecode.evals.benchmarks.chair import object_words as words
from halludecode.evals.benchmarks.chair import word_list
from halludecode.evals.report.render import render
from halludecode.evals.results.compare import compare_runs
from halludecode.evals.runner.import_answers import import_answers
from halludecode.evals.runner.score_file import score_predictions
from tests.support.published import use_nltk_data

OWN = "drone, drones, Quadcopter\ntraffic cone\n\nbinoculars, field glasses\ndog, puppy, pup\n"
CAPTION = "Two drones fly above traffic cones, a pair of field glasses and puppies."


def written(tmp_path, text=OWN, name="own.txt"):
    path = tmp_path / name
    path.write_text(text)
    return path


def own_reader(tmp_path, text=OWN, **how):
    return word_list.reader_of(word_list.read_lines(written(tmp_path, text)), **how)


def test_chairs_own_list_given_as_ones_own_reads_the_same(tmp_path):
    lines = word_list.read_lines(words.DATA / "synonyms.txt")
    assert not word_list.beyond(lines)
    assert word_list.categories_of(lines) == word_list.categories_of(None)
    text = "A motor bike, wine glasses, an iPhone, two cheesecakes and a puppy by a stove top oven."
    for family in words.FAMILIES:
        own = word_list.reader_of(lines, family, "tables")
        assert own.read(text) == words.reader(family, "tables").read(text)


def test_fewer_words_need_no_lemmatiser(tmp_path):
    reader = own_reader(tmp_path, "puppy, dog, cat\n", path="tables")
    found = reader.read("Two dogs chase a kitten, a cat and a car.").mentions
    assert [(m.object, m.word) for m in found] == [("puppy", "dogs"), ("puppy", "cat")]


def test_forms_of_new_words_are_found_by_wordnet(tmp_path):
    use_nltk_data()
    reader = own_reader(tmp_path)
    assert reader.path == "nltk"
    found = reader.read(CAPTION).mentions
    assert [(m.object, m.word) for m in found] == [
        ("drone", "drones"),
        ("traffic cone", "traffic cones"),
        ("binoculars", "field glasses"),
        ("dog", "puppies"),
    ]
    assert not reader.read("A cone alone, and glasses in a field.").mentions


def test_new_words_without_their_lemmatiser_are_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(InvalidData, match=r"'drone' and 5 more .* forms alone family pattern"):
        own_reader(tmp_path, family="pattern")
    with pytest.raises(InvalidData, match="alone path tables knows; use family wordnet with path"):
        own_reader(tmp_path, path="tables")
    monkeypatch.setattr(words, "missing_nltk", lambda: "NLTK is not installed")
    with pytest.raises(MissingExtra, match="need NLTK's lemmatiser: NLTK is not installed"):
        own_reader(tmp_path, "kettle")
    monkeypatch.setattr(words, "missing_nltk", lambda: None)
    monkeypatch.setattr(word_list, "wordnet_lemma", lambda: None)
    with pytest.raises(MissingExtra, match=r"data 'wordnet' are not installed; run python -m nltk"):
        own_reader(tmp_path, "kettle")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "own.txt holds no object words"),
        ("dog, puppy\ncat,, kitten\n", "own.txt:2: a word is missing between two commas"),
        ("dog, puppy\ncat, puppy\n", "own.txt:2: 'puppy' stands for 'cat' here and for 'dog' on l"),
        ("dog, very small dog\n", "own.txt:1: 'very small dog' has more than two words"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, text, why):
    with pytest.raises(InvalidData, match=why):
        word_list.read_lines(written(tmp_path, text))


def instances(tmp_path, names):
    pictures = [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}]
    things = [{"id": n, "image_id": 1, "category_id": n} for n in range(1, len(names) + 1)]
    kinds = [{"id": n, "name": name} for n, name in enumerate(names, start=1)]
    coco = {"images": pictures, "annotations": things, "categories": kinds}
    return written(tmp_path, json.dumps(coco), "instances_mine.json")


def test_scores_and_runs_use_the_list_and_keep_it(tmp_path):
    """The truth may have categories of one's own; a run needs the file no more."""
    truth = instances(tmp_path, ["puppy", "stove"])
    own = written(tmp_path, "puppy, dog, cat\nstove, oven\n")
    texts = {1: "A dog by an oven.", 2: "A cat and a car."}
    rows = [json.dumps({"image_id": i, "caption": text}) for i, text in texts.items()]
    answers = written(tmp_path, "\n".join(rows), "a.jsonl")
    task = "chair(path=tables)"
    with pytest.raises(InvalidData, match="'puppy' is not among CHAIR's 80 COCO"):
        score_predictions(task, answers, truth)
    with pytest.raises(InvalidData, match="'stove' begins no line of the object words"):
        score_predictions(
            task, answers, truth, synonyms=written(tmp_path, "puppy, dog", "less.txt")
        )
    with pytest.raises(InvalidData, match="with others give --annotations"):
        score_predictions(task, answers, synonyms=own)
    scored = score_predictions(task, answers, truth, synonyms=own)
    assert scored["metrics"]["chair_i"]["value"] == pytest.approx(1 / 3)
    assert scored["metrics"]["recall"]["value"] == 1
    assert len(scored["files"]["synonyms"]) == 64
    assert any("your own: 2 categories, 0 words CHAIR lacks" in told for told in scored["told"])
    files = {"greedy": answers, "again": answers}
    import_answers(task, files, annotations=truth, synonyms=own, output=tmp_path / "run")
    own.unlink()
    (gap,) = compare_runs([str(tmp_path / "run")]).differences
    assert gap["metrics"]["chair_i"]["strategy"]["value"] == pytest.approx(1 / 3)
    render([tmp_path / "run"], "html", tmp_path / "page.html")
    assert "of 2 categories of one" in (tmp_path / "page.html").read_text()
