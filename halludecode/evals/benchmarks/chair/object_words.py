"""From a caption to the COCO objects it names, as CHAIR's scripts find them.

A family decides how a token becomes a vocabulary word: ``pattern`` (every token made singular; the
original script and POPE's object lists) or ``wordnet`` (WordNet lemma under the part of speech;
what papers on decoding use). For ``wordnet`` two paths make tokens and tags: ``nltk`` uses NLTK's
own data and is exact; ``tables`` needs no download, splits tokens by the same rules
(`chair.tokenizer`) and decides the few parts of speech that matter with a shipped model
(`chair.tagger`). Which one ran is recorded.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData, MissingExtra
from halludecode.evals.benchmarks.chair import tagger as tags
from halludecode.evals.benchmarks.chair import tokenizer as tokens
from halludecode.evals.benchmarks.chair.tokenizer import Token, tokenize

FAMILIES = ("wordnet", "pattern")
PATHS = ("auto", "nltk", "tables")
DATA = Path(__file__).parent / "data"
NLTK_PARTS = ("punkt_tab", "averaged_perceptron_tagger_eng")


@dataclass(frozen=True)
class Mention:
    """One COCO object named in a caption.

    Args:
        object: COCO category name.
        word: The caption's own letters.
        start: First character of ``word`` in the caption.
        end: One past its last character.
        index: Position in `CaptionReading.words`.
    """

    object: str
    word: str
    start: int
    end: int
    index: int


@dataclass(frozen=True)
class CaptionReading:
    """What a caption says: its normalised words, punctuation included, and the objects named."""

    words: tuple[str, ...]
    mentions: tuple[Mention, ...]

    @property
    def objects(self) -> list[str]:
        """Objects in order, with repetition."""
        return [mention.object for mention in self.mentions]


@dataclass(frozen=True, eq=False)
class Objects:
    """What words stand for.

    Args:
        nodes: A word, or a pair of words, to its category.
        pairs: Two words that are read as one, to what they are read as.
    """

    nodes: Mapping[str, str]
    pairs: Mapping[str, str]

    @cached_property
    def firsts(self) -> frozenset[str]:
        """The first words of the pairs."""
        return frozenset(pair.partition(" ")[0] for pair in self.pairs)


@cache
def coco_objects() -> Objects:
    """CHAIR's own words for COCO's 80 categories."""
    return Objects(vocabulary(), bigrams())


@dataclass(frozen=True)
class Reader:
    """Reads captions under one family.

    Args:
        family: ``wordnet`` or ``pattern``.
        path: ``nltk`` or ``tables``, whichever makes the tokens and tags.
        tokens: Caption to tokens.
        normalise: Token texts to vocabulary words, one each.
        objects: What those words stand for.
    """

    family: str
    path: str
    tokens: Callable[[str], list[Token]]
    normalise: Callable[[list[str]], list[str]]
    objects: Objects = field(default_factory=lambda: coco_objects(), repr=False)

    def read(self, caption: str) -> CaptionReading:
        """Finds the words and the objects of one caption; a caption read before is remembered."""
        return _remembered(self, caption)

    def _read(self, caption: str) -> CaptionReading:
        lowered = caption.lower()
        pieces = tokens.easy_words(lowered) if self.path == "tables" else None
        found = [] if pieces else self.tokens(caption)
        normal = self.normalise(pieces or [text for text, _, _ in found])
        words, heads = _join(normal, self.objects)
        # The seat of a toilet is no chair; it still counts as a word.
        seat = "seat" if "toilet" in words else None
        nodes = self.objects.nodes
        named = [i for i, word in enumerate(words) if word in nodes and word != seat]
        if named and pieces:
            found = tokens.placed(lowered, pieces[: heads[named[-1] + 1]])
        mentions = []
        for i in named:
            start, end = found[heads[i]][1], found[heads[i + 1] - 1][2]
            mentions.append(Mention(nodes[words[i]], caption[start:end], start, end, i))
        return CaptionReading(tuple(words), tuple(mentions))


@lru_cache(maxsize=1 << 15)  # judged, scored, cut and compared, a caption is read many times
def _remembered(reader: Reader, caption: str) -> CaptionReading:
    return reader._read(caption)


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
        return _made(family, "tables")
    lack = missing_nltk() if path != "tables" else None
    if path == "tables" or (path == "auto" and lack):
        return _made(family, "tables")
    if lack:
        raise MissingExtra(lack)
    return _made(family, "nltk")


@cache
def _made(family: str, path: str) -> Reader:
    if family == "pattern":
        return Reader(family, path, tokenize, _singulars)
    if path == "tables":
        return Reader(family, path, tokenize, lambda words: _lemmas(words, tags.shipped()))
    return Reader(family, path, _nltk_tokens(), lambda words: _lemmas(words, tags.installed()))


def _join(normal: list[str], objects: Objects) -> tuple[list[str], Sequence[int]]:
    """The words, pairs that are read as one joined; the first token of each, and the end."""
    joined, firsts = objects.pairs, objects.firsts
    pairs = [
        (i, joined[two])
        for i, word in enumerate(normal[:-1])
        if word in firsts and (two := f"{word} {normal[i + 1]}") in joined
    ]
    if not pairs:
        return normal, range(len(normal) + 1)
    words: list[str] = []
    heads: list[int] = []
    start = 0
    for i, word in pairs:
        if i < start:  # part of the pair before
            continue
        words += [*normal[start:i], word]
        heads += range(start, i + 1)
        start = i + 2
    return words + normal[start:], [*heads, *range(start, len(normal) + 1)]


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


@cache
def ambiguous() -> frozenset[str]:
    """Words whose lemma depends on the part of speech."""
    tables = _lemma_table()
    words = {word for table in tables.values() for word in table}
    return frozenset(w for w in words if len({tables[p].get(w, w) for p in tags.POS}) > 1)


def _lemmas(words: list[str], tagger: tags.Tagger) -> list[str]:
    # Only words that can end in the vocabulary are in the table; the others never matter.
    table, matter = _lemma_table(), ambiguous()
    nouns = table["n"]
    lemmas = [nouns.get(word, word) for word in words]
    wanted = [i for i, word in enumerate(words) if word in matter]
    if wanted:
        found = tagger.tag(words, wanted)
        for i in wanted:
            lemmas[i] = table[tags.part(found[i])].get(words[i], words[i])
    return lemmas


# NLTK --------------------------------------------------------------------------------------------


def missing_nltk() -> str | None:
    """What the ``nltk`` path lacks here, as a sentence with the cure; None when it can run."""
    # NLTK imports all of scipy: where it has no data, a second is spared.
    if find_spec("nltk") is not None and not any(map(_nltk_has, _nltk_folders())):
        return _no_data(NLTK_PARTS[0])
    try:
        import nltk
    except ImportError:
        return 'NLTK is not installed; pip install "halludecode[eval]", or use the tables path.'
    for name, folder in zip(NLTK_PARTS, ("tokenizers", "taggers"), strict=True):
        try:
            nltk.data.find(f"{folder}/{name}/")
        except LookupError:
            return _no_data(name)
    return None


def _no_data(name: str) -> str:
    return (
        f"NLTK's data {name!r} is not installed; run python -m nltk.downloader "
        f"{' '.join(NLTK_PARTS)}, or use the tables path."
    )


def _nltk_folders() -> list[str]:
    """Where NLTK looks for its data, as `nltk.data` documents it."""
    if "nltk" in sys.modules:
        return list(sys.modules["nltk"].data.path)
    own = [folder for folder in os.environ.get("NLTK_DATA", "").split(os.pathsep) if folder]
    prefixes = (sys.prefix, *(str(Path(sys.prefix) / part) for part in ("share", "lib")))
    roots = [*prefixes, "~", "/usr/share", "/usr/local/share", "/usr/lib", "/usr/local/lib"]
    roots += [os.environ[name] for name in ("APPDATA",) if name in os.environ] + ["C:", "D:", "E:"]
    return [*own, *(str(Path(root).expanduser() / "nltk_data") for root in roots)]


def _nltk_has(folder: str) -> bool:
    place = Path(folder) / "tokenizers"
    return any((place / (NLTK_PARTS[0] + end)).exists() for end in ("", ".zip"))


@cache
def _nltk_tokens() -> Callable[[str], list[Token]]:
    """NLTK's tokeniser; captions on which ours cannot differ are left to ours, which is faster."""
    from nltk import word_tokenize

    spared = _spared()

    def split(caption: str) -> list[Token]:
        lowered, place = tokens.lower(caption)
        if tokens.plain(lowered, spared):
            return tokenize(caption)
        found = tokens.spans(lowered, word_tokenize(lowered))
        return [(word, place[start], place[end]) for word, start, end in found]

    return split


def _spared() -> frozenset[str]:
    """Words after which NLTK's data may let a sentence go on in spite of a period."""
    import nltk

    def rows(name: str) -> Iterable[str]:
        with nltk.data.find(f"tokenizers/punkt_tab/english/{name}").open() as file:
            return file.read().decode("utf-8").splitlines()

    pairs = (row.split("\t")[0] for row in rows("collocations.tab"))
    return frozenset([*rows("abbrev_types.txt"), *pairs])
