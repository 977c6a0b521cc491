"""From a caption to the COCO objects it names, as CHAIR's scripts find them.

A family decides how a token becomes a vocabulary word: ``pattern`` (every token made singular; the
original script and POPE's object lists) or ``wordnet`` (WordNet lemma under the part of speech;
what papers on decoding use). For ``wordnet`` two paths make tokens and tags: ``nltk`` runs NLTK's
own tokeniser and tagger and is exact; ``tables`` needs no download and decides the few parts of
speech that matter with a small shipped model (`halludecode.evals.tags`). Which one ran is recorded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData, MissingExtra
from halludecode.evals.tags import tag

FAMILIES = ("wordnet", "pattern")
PATHS = ("auto", "nltk", "tables")
DATA = Path(__file__).parent / "data"
NLTK_PARTS = ("punkt_tab", "averaged_perceptron_tagger_eng")

_SEPARATORS = re.escape(',;:!?"\u201c\u201d\u2018\u2019()[]{}<>&@#$%*`\u2026')
_RUN = re.compile(rf"[{_SEPARATORS}]|[^\s{_SEPARATORS}]+")
_PIECES = re.compile(r"(.+?)('s|'re|'ve|'ll|'d|'m|n't|')?", re.DOTALL)

Token = tuple[str, int, int]  # lower-cased text, start and end in the caption


@dataclass(frozen=True)
class Mention:
    """One COCO object named in a caption.

    Args:
        object: COCO category name.
        word: The caption's own letters.
        start: First character of ``word`` in the caption.
        end: One past its last character.
        index: Position in `Reading.words`.
    """

    object: str
    word: str
    start: int
    end: int
    index: int


@dataclass(frozen=True)
class Reading:
    """What a caption says: its normalised words, punctuation included, and the objects named."""

    words: tuple[str, ...]
    mentions: tuple[Mention, ...]

    @property
    def objects(self) -> list[str]:
        """Objects in order, with repetition."""
        return [mention.object for mention in self.mentions]


@dataclass(frozen=True)
class Reader:
    """Reads captions under one family.

    Args:
        family: ``wordnet`` or ``pattern``.
        path: ``nltk`` or ``tables``, whichever makes the tokens and tags.
        tokens: Caption to tokens.
        normalise: Token texts to vocabulary words, one each.
    """

    family: str
    path: str
    tokens: Callable[[str], list[Token]]
    normalise: Callable[[list[str]], list[str]]

    def read(self, caption: str) -> Reading:
        """Finds the words and the objects of one caption."""
        tokens = self.tokens(caption)
        words = _join(self.normalise([text for text, _, _ in tokens]), tokens)
        # The seat of a toilet is no chair; it still counts as a word.
        seat = "seat" if any(word == "toilet" for word, _, _ in words) else None
        nodes = vocabulary()
        mentions = tuple(
            Mention(nodes[word], caption[start:end], start, end, i)
            for i, (word, start, end) in enumerate(words)
            if word in nodes and word != seat
        )
        return Reading(tuple(word for word, _, _ in words), mentions)


def reader(family: str = "wordnet", path: str = "auto") -> Reader:
    """Makes a `Reader`.

    Args:
        family: ``wordnet`` or ``pattern``.
        path: For ``wordnet``: ``nltk``, ``tables``, or ``auto``, which takes ``nltk`` where the
            package and its data are installed. ``pattern`` always reads tables and is exact.

    Raises:
        InvalidData: Unknown family or path.
        MissingExtra: ``nltk`` was asked for by name and is not installed or lacks its data.
    """
    if family not in FAMILIES:
        raise InvalidData(
            f"CHAIR family {family!r} is unknown; the known ones are {', '.join(FAMILIES)}."
        )
    if path not in PATHS:
        raise InvalidData(f"word path {path!r} is unknown; the known ones are {', '.join(PATHS)}.")
    if family == "pattern":
        return Reader(family, "tables", tokenize, _singulars)
    if path == "tables" or (path == "auto" and missing_nltk()):
        return Reader(family, "tables", tokenize, _tagged_lemmas)
    lack = missing_nltk()
    if lack:
        raise MissingExtra(lack)
    return _nltk_reader()


def tokenize(caption: str) -> list[Token]:
    """Splits a caption into lower-cased tokens that give the same objects as NLTK's tokeniser."""
    lowered, place = _lower(caption)
    tokens: list[Token] = []
    for run in _RUN.finditer(lowered):
        text, at = run.group(), run.start()
        stem = text.rstrip(".")
        if stem:
            pieces = _PIECES.fullmatch(stem)
            for piece in pieces.groups() if pieces else (stem,):
                if piece:
                    tokens.append((piece, place[at], place[at + len(piece)]))
                    at += len(piece)
        if stem != text:
            tokens.append((".", place[at], place[run.end()]))
    return tokens


def _lower(caption: str) -> tuple[str, Sequence[int]]:
    # A few letters grow when lower-cased; spans must still point into the caption itself.
    lowered = caption.lower()
    if len(lowered) == len(caption):
        return lowered, range(len(caption) + 1)
    place = [i for i, letter in enumerate(caption) for _ in letter.lower()]
    return lowered, [*place, len(caption)]


def _join(normal: list[str], tokens: list[Token]) -> list[Token]:
    pairs = bigrams()
    words: list[Token] = []
    i = 0
    while i < len(normal):
        two = " ".join(normal[i : i + 2])
        last = i + 1 if two in pairs and i + 1 < len(normal) else i
        word = pairs[two] if last > i else normal[i]
        words.append((word, tokens[i][1], tokens[last][2]))
        i = last + 1
    return words


# Tables ------------------------------------------------------------------------------------------


def _table(name: str) -> Any:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


@cache
def vocabulary() -> Mapping[str, str]:
    """Every word of the synonym list and the COCO category it stands for.

    Entries are not trimmed: two of them begin with a space and can never match, as in the original.
    """
    lines = (DATA / "synonyms.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.strip().split(", ") for line in lines]
    return {word: row[0] for row in rows for word in row}


@cache
def bigrams() -> Mapping[str, str]:
    """Pairs of words that are read as one, and what they are read as."""
    return _table("bigrams.json")


@cache
def _singular_table() -> Mapping[str, str]:
    return _table("pattern_singular.json")


@cache
def _lemma_table() -> Mapping[str, Mapping[str, str]]:
    return _table("wordnet_lemma.json")


def _singulars(words: list[str]) -> list[str]:
    table = _singular_table()
    return [table.get(word, word) for word in words]


def _lemmas(words: list[str], tags: Sequence[str]) -> list[str]:
    # Only words that can end in the vocabulary are in the table; the others never matter.
    table = _lemma_table()
    return [table[pos].get(word, word) for word, pos in zip(words, tags, strict=True)]


def _tagged_lemmas(words: list[str]) -> list[str]:
    return _lemmas(words, tag(words, _lemma_table()))


# NLTK --------------------------------------------------------------------------------------------


def missing_nltk() -> str | None:
    """What the ``nltk`` path lacks here, as a sentence with the cure; None when it can run."""
    try:
        import nltk
    except ImportError:
        return 'NLTK is not installed; pip install "halludecode[eval]", or use the tables path.'
    for name, folder in zip(NLTK_PARTS, ("tokenizers", "taggers"), strict=True):
        try:
            nltk.data.find(f"{folder}/{name}/")
        except LookupError:
            return (
                f"NLTK's data {name!r} is not installed; run python -m nltk.downloader "
                f"{' '.join(NLTK_PARTS)}, or use the tables path."
            )
    return None


@cache  # the tagger takes half a second to load
def _nltk_reader() -> Reader:
    from nltk import word_tokenize
    from nltk.tag import PerceptronTagger

    tagger = PerceptronTagger()

    def tokens(caption: str) -> list[Token]:
        return _spans(caption, word_tokenize(caption.lower()))

    def normalise(words: list[str]) -> list[str]:
        parts = {"J": "a", "V": "v", "R": "r"}
        tags = [parts.get(name[:1], "n") for _, name in tagger.tag(words)]
        return _lemmas(words, tags)

    return Reader("wordnet", "nltk", tokens, normalise)


def _spans(caption: str, words: Sequence[str]) -> list[Token]:
    # NLTK writes straight double quotes as `` and ''; every other token stands in the text.
    lowered, place = _lower(caption)
    tokens: list[Token] = []
    at = 0
    for word in words:
        start = lowered.find(word, at)
        length = len(word)
        if word in ("``", "''"):
            quote = lowered.find('"', at)
            if quote >= 0 and not 0 <= start < quote:
                start, length = quote, 1
        if start < 0:
            start, length = at, 0
        at = start + length
        tokens.append((word, place[start], place[at]))
    return tokens
