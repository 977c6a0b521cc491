"""CHAIR's record of every caption, against the published scripts' own."""

from __future__ import annotations

import gzip
import json

import pytest

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.chair import caption_records as sentences
from halludecode.evals.benchmarks.chair import object_words as words
from halludecode.evals.benchmarks.chair import scoring as chair
from halludecode.evals.benchmarks.chair import word_list
from tests.support.published import VECTORS, public, truth, use_nltk_data

CAPTIONS = VECTORS["chair"]["captions"]
SETS = VECTORS["chair"]["expected_ground_truth"]["wordnet"]
TRUTH = {9999: frozenset()} | {int(i): frozenset(names) for i, names in SETS.items()}


def test_another_groups_records_are_reproduced_word_for_word():
    use_nltk_data()
    path = public("chair/reference_output_llava-1.5-7b.jsonl.gz")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    captions = [chair.Caption(row["image_id"], row["caption"]) for row in rows]
    which, made = sentences.records(chair.score(captions, truth("wordnet"), path="nltk"))
    assert which == "every"
    count = 0
    for record, row in zip(made, rows, strict=True):
        count += 1
        for key in ("image_id", "caption", "words"):
            assert record[key] == row[key]
        for key in ("mscoco_generated_words", "mscoco_hallucinated_words"):
            assert record[key] == row[key]
        # This group's script counts in the joined words, as we do.
        assert record["hallucinated_indices"] == row["hallucination_idxs"]
        assert set(record["mscoco_gt_words"]) == truth("wordnet")[row["image_id"]]
        for name, value in record["metrics"].items():
            assert value == pytest.approx(row["metrics"][name], abs=1e-9)
    assert count == 500


def test_vector_captions_are_reproduced_word_for_word():
    use_nltk_data()
    captions = [chair.Caption(c["image_id"], c["caption"]) for c in CAPTIONS]
    _, made = sentences.records(chair.score(captions, TRUTH, path="nltk"))
    for record, case in zip(made, CAPTIONS, strict=True):
        wanted = case["wordnet"]
        assert record["words"] == wanted["words"]
        assert record["mscoco_generated_words"] == wanted["generated"]
        assert record["mscoco_hallucinated_words"] == wanted["hallucinated"]
        assert record["metrics"] == pytest.approx({k: wanted[k] for k in record["metrics"]})


@pytest.mark.parametrize(("family", "path"), [("wordnet", "tables"), ("pattern", "auto")])
def test_words_that_name_objects_are_in_their_normal_form_on_every_path(family, path):
    score = chair.score(
        [chair.Caption(1, "Two dogs sit by wine glasses.")],
        {1: frozenset({"dog"})},
        family=family,
        path=path,
    )
    which, made = sentences.records(score)
    (record,) = made
    assert which == "vocabulary"
    assert record["words"] == ["two", "dog", "sit", "by", "wine glass", "."]
    assert record["mscoco_hallucinated_words"] == [["wine glass", "wine glass"]]
    assert record["mscoco_gt_words"] == ["dog"]
    assert record["hallucinated_indices"] == [4]
    assert record["metrics"] == {"CHAIRs": 1, "CHAIRi": 0.5, "Recall": 1.0}


def test_without_wordnets_own_data_the_record_says_so(monkeypatch):
    use_nltk_data()
    score = chair.score([chair.Caption(1, "He has dogs.")], {1: frozenset({"dog"})}, path="nltk")
    _, full = sentences.records(score)
    assert next(full)["words"] == ["he", "have", "dog", "."]
    monkeypatch.setattr(sentences, "wordnet_lemma", lambda: None)
    which, made = sentences.records(score)
    assert which == "vocabulary"
    assert next(made)["words"] == ["he", "has", "dog", "."]


def test_a_caption_of_nothing_in_a_picture_of_nothing():
    score = chair.score([chair.Caption(1, "")], {1: frozenset()}, path="tables")
    _, made = sentences.records(score)
    assert next(made) == {
        "image_id": 1,
        "caption": "",
        "words": [],
        "mscoco_generated_words": [],
        "mscoco_hallucinated_words": [],
        "mscoco_gt_words": [],
        "hallucinated_indices": [],
        "metrics": {"CHAIRs": 0, "CHAIRi": 0.0, "Recall": 0.0},
    }


def test_records_are_of_the_caption_that_was_scored(tmp_path):
    captions = [chair.Caption(1, "A dog\ud800. A cat on a"), chair.Caption(2, "A caf\u00e9 bench.")]
    sets = {1: frozenset({"dog"}), 2: frozenset()}
    score = chair.score(captions, sets, path="tables", incomplete="drop")
    assert sentences.write_sentences(score, tmp_path / "d.jsonl") in ("every", "vocabulary")
    first, second = map(json.loads, (tmp_path / "d.jsonl").read_text().splitlines())
    assert first["caption"] == "A dog\ud800."
    assert first["mscoco_hallucinated_words"] == []
    assert second["words"] == ["a", "caf\u00e9", "bench", "."]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    score = chair.score([chair.Caption(1, "A dog.")], {1: frozenset()}, path="tables")
    with pytest.raises(InvalidData, match=r"none/d\.jsonl: cannot be written \(No such file"):
        sentences.write_sentences(score, tmp_path / "none" / "d.jsonl")


def test_the_vocabulary_is_what_the_two_word_lists_share():
    # The tables path leaves other words alone: none of them may be a way to a vocabulary word.
    use_nltk_data()
    full = word_list.every_lemma(word_list.wordnet_lemma())
    ours = words.reader("wordnet", "nltk").normalise
    said = ["two", "women", "sat", "on", "benches", "near", "knives", "and", "parked", "cars"]
    known = words.vocabulary()
    pairs = zip(full(said), ours(said), strict=True)
    assert all(a == b for a, b in pairs if a in known or b in known)
