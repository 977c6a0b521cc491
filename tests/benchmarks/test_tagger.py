"""benchmarks/tagger.py: what it counts, by readers whose differences are known."""

from __future__ import annotations

import json

from benchmarks import tagger as script
from halludecode.evals.benchmarks.chair import object_words as words
from halludecode.evals.benchmarks.chair import tagger as tags


def test_texts_that_name_other_objects_are_counted():
    ours = words.reader("wordnet", "tables")
    nouns = tags.Tagger({"bias": {"NN": 1}}, {}, ["NN"])  # for whom nobody is ever seated
    other = words.Reader(
        "wordnet", "tables", words.tokenize, lambda found: words._lemmas(found, nouns)
    )
    texts = ["A woman is seated near two dogs.", "A dog and a cat.", "Nothing is here."]
    assert script.compared(texts, ours, ours) == (3, 0, 5, 0)
    assert script.compared(texts, ours, other) == (3, 1, 5, 1)


def test_texts_are_found_under_their_usual_names(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [{"id": 1, "response": "A dog runs."}, {"captions": ["Two cats sit."]}, {"text": "Yes"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert script.texts_of(path) == ["A dog runs.", "Two cats sit."]
    reader = words.reader("wordnet", "tables")
    assert script.marked("Two cats sit by a dog.", "`", reader) == "Two `cats` sit by a `dog`."


def test_the_page_stands_on_texts_of_no_part_in_the_fit():
    """Those of the page are in the repository, and the fit's own are not among them."""
    files = sorted((script.HERE / "published").glob(script.HELD_OUT))
    assert len(files) == 5
    page = (script.HERE / "tagger.md").read_text()
    assert all(path.name.split(".json")[0] in page for path in files)
