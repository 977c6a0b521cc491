"""Parts of speech for the few caption words whose WordNet lemma depends on them.

"parking" is the object word "park" only as a verb, "umbrellas" is "umbrella" only as a noun: some
960 such words decide what the wordnet family of CHAIR finds. NLTK's tagger is a greedy averaged
perceptron: it reads a text from left to right and gives every word the tag with the largest sum of
weights. Here the same reading is done for the words asked about and what they depend on alone, with
NLTK's own weights where they are installed (then the tags are NLTK's), and otherwise with weights
fitted to NLTK's tags of captions (`chair.tagger_training`), which are close to NLTK, not
equal: ``data/README.md`` gives the measured agreement.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

POS = "nvar"
MODEL = Path(__file__).parent / "data" / "wordnet_tags.json.gz"
# What a tag may depend on, apart from a constant: the word's own letters, the two tags before it,
# and the words up to two places away.
TEMPLATES = (
    "i suffix",
    "i pref1",
    "i-1 tag",
    "i-2 tag",
    "i tag+i-2 tag",
    "i word",
    "i-1 tag+i word",
    "i-1 word",
    "i-1 suffix",
    "i-2 word",
    "i+1 word",
    "i+1 suffix",
    "i+2 word",
)
BEFORE = ("-START-", "-START2-")
AFTER = ("-END-", "-END2-")
_REMEMBERED = 200_000

# Two words before, the word itself, two words after, the tag before, the tag before that.
Window = tuple[str, str, str, str, str, str, str]


class Tagger:
    """Tags words in a text by a linear model of their neighbourhood.

    Args:
        weights: Feature (see `features`) to tag to weight.
        known: Words that have one tag everywhere.
        names: All tags.
    """

    def __init__(
        self,
        weights: Mapping[str, Mapping[str, float]],
        known: Mapping[str, str],
        names: Collection[str],
    ) -> None:
        self.weights = weights
        self.known = known
        self.names = tuple(sorted(names, reverse=True))  # of equal sums the last name wins
        self._memory: dict[Window, str] = {}

    def tag(self, words: Sequence[str], wanted: Iterable[int] | None = None) -> dict[int, str]:
        """Penn tags by position.

        Args:
            words: All tokens of a text.
            wanted: Positions asked for; None is all.

        Returns:
            At least the positions asked for.
        """
        found = {-1: BEFORE[0], -2: BEFORE[1]}
        for i in range(len(words)) if wanted is None else wanted:
            start = i  # two tags in a row, once found, part a word from all that stands before
            while not (self._has(words, start - 1, found) and self._has(words, start - 2, found)):
                start -= 1
            for k in range(start, i + 1):
                if not self._has(words, k, found):
                    near = (*_left(words, k), words[k], *_right(words, k))
                    found[k] = self._best((*near, found[k - 1], found[k - 2]))
        return found

    def _has(self, words: Sequence[str], k: int, found: dict[int, str]) -> bool:
        if k not in found and words[k] in self.known:
            found[k] = self.known[words[k]]
        return k in found

    def _best(self, window: Window) -> str:
        tag = self._memory.get(window)
        if tag is None:
            if len(self._memory) >= _REMEMBERED:
                self._memory.clear()
            tag = self._memory[window] = self.judge(window)
        return tag

    def judge(self, window: Window) -> str:
        """The tag in the middle of a window by the weights alone, whatever words are known."""
        sums = dict.fromkeys(self.names, 0.0)
        for name in features(window):
            for label, weight in self.weights.get(name, {}).items():
                sums[label] += weight
        return max(sums, key=sums.__getitem__)


def _left(words: Sequence[str], k: int) -> tuple[str, str]:
    """The shapes of the two words before a place."""
    if k >= 2:
        return shape(words[k - 2]), shape(words[k - 1])
    return (BEFORE[1], shape(words[0])) if k else BEFORE


def _right(words: Sequence[str], k: int) -> tuple[str, str]:
    """The shapes of the two words after a place."""
    rest = len(words) - k
    if rest > 2:
        return shape(words[k + 1]), shape(words[k + 2])
    return (shape(words[k + 1]), AFTER[0]) if rest == 2 else AFTER


def features(window: Window) -> list[str]:
    """Names of the features of a window, in NLTK's words and order."""
    before2, before, word, after, after2, tag1, tag2 = window
    this = shape(word)
    values = (
        *(word[-3:], word[:1], tag1, tag2, f"{tag1} {tag2}", this, f"{tag1} {this}"),
        *(before, before[-3:], before2, after, after[-3:], after2),
    )
    return ["bias", *(f"{name} {value}" for name, value in zip(TEMPLATES, values, strict=True))]


def shape(word: str) -> str:
    """A lower-cased word as its neighbours see it: compounds are alike, and so are numbers."""
    if "-" in word[1:] and word[0] != "-":
        return "!HYPHEN"
    if not word[:1].isdigit():
        return word
    return "!YEAR" if word.isdigit() and len(word) == 4 else "!DIGITS"


def part(name: str) -> str:
    """The letter of `POS` for a Penn tag; what is none of the four counts as a noun."""
    return {"J": "a", "V": "v", "R": "r"}.get(name[:1], "n")


@cache
def shipped() -> Tagger:
    """The tagger of the ``tables`` path."""
    return read_model(json.loads(gzip.decompress(MODEL.read_bytes())))


def read_model(model: Mapping[str, Any]) -> Tagger:
    """The tagger in a file that `halludecode.evals.benchmarks.chair.tagger_training` wrote."""
    names, weights = model["names"], {}
    for template, rows in model["weights"].items():
        for value, row in rows.items():
            name = f"{template} {value}" if template in TEMPLATES else template
            weights[name] = {names[row[k]]: row[k + 1] for k in range(0, len(row), 2)}
    return Tagger(weights, model["known"], names)


@cache  # the weights take half a second to load
def installed() -> Tagger:
    """NLTK's own tagger, read by the same rule; needs NLTK and its data."""
    from nltk.tag import PerceptronTagger

    tagger = PerceptronTagger()
    return Tagger(tagger.model.weights, tagger.tagdict, tagger.classes)
