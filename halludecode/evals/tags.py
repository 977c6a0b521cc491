"""Parts of speech for the few caption words whose WordNet lemma depends on them, without NLTK.

"parking" is the object word "park" only as a verb, "umbrellas" is "umbrella" only as a noun: some
960 such words decide what the wordnet family of CHAIR finds. For them a small linear model, an
averaged perceptron over the neighbouring words, repeats what NLTK's tagger says; it was fitted to
that tagger's answers on published captions (`halludecode.evals.tags_train`). It is close to NLTK,
not equal: ``data/README.md`` gives the measured agreement.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

POS = "nvar"
MODEL = Path(__file__).parent / "data" / "wordnet_tags.json.gz"

Weights = Mapping[str, Sequence[int]]  # feature -> one weight for each of POS


def tag(words: Sequence[str], lemmas: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Tags lower-cased tokens as noun, verb, adjective or adverb.

    Args:
        words: The tokens of one caption.
        lemmas: Part of speech to its lemma table; a word with one lemma under all of them is
            tagged ``n``, because its tag cannot matter.

    Returns:
        One letter of `POS` for every token.
    """
    return [
        _best(words, i) if len({lemmas[pos].get(word, word) for pos in POS}) > 1 else "n"
        for i, word in enumerate(words)
    ]


def features(words: Sequence[str], i: int, usual: Mapping[str, str]) -> list[str]:
    """What the model sees of token ``i``: its letters, its neighbours and their usual tags.

    Args:
        words: The tokens of one caption.
        i: Position of the token.
        usual: Common words and their most frequent tag; a rare word shows its last two letters.
    """
    word = words[i]
    before2, before, after, after2 = (
        plain(words[k]) if 0 <= k < len(words) else "-" for k in (i - 2, i - 1, i + 1, i + 2)
    )
    tag2, tag1, tag0 = (usual.get(w) or "~" + w[-2:] for w in (before2, before, after))
    end = word[-2:]
    return [
        f"s {word[-3:]}",
        f"p1 {before}",
        f"p2 {before2}",
        f"n1 {after}",
        f"n2 {after2}",
        f"pe {before[-3:]}",
        f"ne {after[-3:]}",
        f"t1 {tag1}",
        f"t2 {tag2}",
        f"t12 {tag2} {tag1}",
        f"tn {tag0}",
        f"t1n {tag1} {tag0}",
        f"t1s {tag1} {end}",
        f"tns {tag0} {end}",
        f"t12s {tag2} {tag1} {end}",
        f"t1w {tag1} {after}",
        f"w {word}",
        f"wp {word} {before}",
        f"wn {word} {after}",
        f"wt {word} {tag1}",
        f"wtn {word} {tag0}",
        f"wt2 {word} {tag2} {tag1}",
    ]


def plain(word: str) -> str:
    """A neighbour as the model sees it: numbers are alike, and so are compounds."""
    if word[:1].isdigit():
        return "0"
    if word in ("``", "''"):  # NLTK's double quotes
        return '"'
    return "a-b" if "-" in word[1:] else word


def totals(names: Sequence[str], weights: Mapping[str, Sequence[float]]) -> list[float]:
    """Sum of the weights of some features, one for each of `POS`."""
    found = [weights[name] for name in names if name in weights]
    return [sum(column) for column in zip(*found, strict=True)] if found else [0.0] * len(POS)


def _best(words: Sequence[str], i: int) -> str:
    usual, weights = _model()
    sums = totals(features(words, i, usual), weights)
    return POS[max(range(len(POS)), key=sums.__getitem__)]


@cache
def _model() -> tuple[Mapping[str, str], Weights]:
    model = json.loads(gzip.decompress(MODEL.read_bytes()))
    return model["usual"], model["weights"]
