"""CHAIR sentence by sentence, with the keys that the published scripts write.

The scripts keep every word in its normal form, also those that can name no object; our word paths
change only what can matter to a score. Where NLTK and its WordNet data are installed, the words of
the ``wordnet`` family are therefore made anew, by WordNet's own lemmatisation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.chair.object_words import Reader
from halludecode.evals.benchmarks.chair.word_list import every_lemma, reader_of, wordnet_lemma
from halludecode.evals.statistics.score import Score

EVERY, VOCABULARY = "every", "vocabulary"


def records(score: Score) -> tuple[str, Iterator[dict[str, Any]]]:
    """One record per caption, in the order they were scored.

    Args:
        score: Of `chair.score`.

    Returns:
        Which words are in their normal form, ``every`` or only those that can name an object
        (``vocabulary``), and the records: ``image_id caption words mscoco_generated_words
        mscoco_hallucinated_words`` (pairs of word and object) ``mscoco_gt_words
        hallucinated_indices metrics``. The indices point into ``words``; the original script's
        ``hallucination_idxs`` counts words before pairs are joined, and goes astray where it drops
        the seat of a toilet.
    """
    full = _full_reader(score)
    return (EVERY if full else VOCABULARY), _records(score, full)


def _records(score: Score, full: Reader | None) -> Iterator[dict[str, Any]]:
    for outcome in score.outcomes.values():
        words = full.read(outcome["caption"]).words if full else outcome["words"]
        wrong = [m for m in outcome["mentions"] if m["hallucinated"]]
        named, generated = set(outcome["generated"]), outcome["generated"]
        found = named - set(outcome["hallucinated"])
        present = sorted(found | set(outcome["missed"]))
        yield {
            "image_id": outcome["image_id"],
            "caption": outcome["caption"],
            "words": list(words),
            "mscoco_generated_words": list(generated),
            "mscoco_hallucinated_words": [[words[m["index"]], m["object"]] for m in wrong],
            "mscoco_gt_words": present,
            "hallucinated_indices": [m["index"] for m in wrong],
            "metrics": {
                "CHAIRs": int(bool(wrong)),
                "CHAIRi": len(wrong) / len(generated) if generated else 0.0,
                "Recall": len(found) / len(present) if present else 0.0,
            },
        }


def write_sentences(score: Score, path: Path | str) -> str:
    """Writes `records` as JSON lines.

    Returns:
        Which words are in their normal form, as `records` says.

    Raises:
        InvalidData: The file cannot be written.
    """
    which, lines = records(score)
    try:
        with Path(path).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    except OSError as error:
        raise InvalidData(f"{path}: cannot be written ({error.strerror}).") from None
    return which


def _full_reader(score: Score) -> Reader | None:
    """The score's own reader with every word lemmatised; None where WordNet is not to be had."""
    if (score.notes["family"], score.notes["path"]) != ("wordnet", "nltk"):
        return None
    lemma = wordnet_lemma()
    if lemma is None:
        return None
    lines = score.notes.get("synonyms")
    own = reader_of(None if lines is None else tuple(lines), "wordnet", "nltk")
    return replace(own, normalise=every_lemma(lemma))
