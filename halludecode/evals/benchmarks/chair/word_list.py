"""A user's own object words in place of CHAIR's: one category a line, as ``synonyms.txt`` has them.

The shipped tables know the forms of CHAIR's own words alone. What a list says beyond those is
brought into its normal form, and looked for, by WordNet's own lemmatisation under NLTK's tags.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

from halludecode.core.errors import InvalidData, MissingExtra
from halludecode.evals.benchmarks.chair import object_words as words
from halludecode.evals.benchmarks.chair import tagger as tags
from halludecode.evals.data.records import read_text

Lines = tuple[str, ...]
Lemma = Callable[[str, str], str]  # a word and its part of speech, one of `tagger.POS`
NO_WORDNET = "its data 'wordnet' are not installed; run python -m nltk.downloader wordnet."


def read_lines(path: Path | str) -> Lines:
    """The lines of a list, blank ones left out.

    Args:
        path: Text of lines ``category, word, word, ...``.

    Raises:
        InvalidData: It cannot be read, or a line cannot be used.
    """
    found: list[str] = []
    owners: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where, entries = f"{path}:{number}", _entries(line)
        for entry in entries:
            if not entry.strip():
                raise InvalidData(f"{where}: a word is missing between two commas.")
            if len(entry.split()) > 2 and entry not in words.vocabulary():
                raise InvalidData(
                    f"{where}: {entry!r} has more than two words, and captions are read by single "
                    "words and pairs; give a shorter name for it."
                )
            owner, line_before = owners.setdefault(entry, (entries[0], number))
            if owner != entries[0]:
                raise InvalidData(
                    f"{where}: {entry!r} stands for {entries[0]!r} here and for {owner!r} on line "
                    f"{line_before}; leave one out."
                )
        found.append(line.strip())
    if not found:
        raise InvalidData(f"{path} holds no object words; give one category a line.")
    return tuple(found)


def reader_of(lines: Lines | None, family: str = "wordnet", path: str = "auto") -> words.Reader:
    """What reads captions by a list of one's own; None is CHAIR's, see `object_words.reader`.

    Args:
        lines: As `read_lines` gives them.
        family: As for `object_words.reader`; words beyond CHAIR's own need ``wordnet``.
        path: Likewise; they need ``nltk``, which ``auto`` is then.

    Raises:
        InvalidData: The family or path does not know the forms of a word.
        MissingExtra: NLTK, its data or WordNet's are not installed.
    """
    return words.reader(family, path) if lines is None else _own_reader(lines, family, path)


def categories_of(lines: Lines | None) -> frozenset[str]:
    """The categories of a list, or of CHAIR's own."""
    if lines is None:
        return frozenset(words.vocabulary().values())
    return frozenset(_entries(line)[0] for line in lines)


def beyond(lines: Lines) -> list[str]:
    """The words of a list that CHAIR's own does not have."""
    known = words.vocabulary()
    return [entry for line in lines for entry in _entries(line) if entry not in known]


def _entries(line: str) -> list[str]:
    """The words of a line: those of CHAIR's own list as they stand there, stray space included."""
    known, parts = words.vocabulary(), [part.removeprefix(" ") for part in line.strip().split(",")]
    return [part if part in known else " ".join(part.lower().split()) for part in parts]


@cache
def _own_reader(lines: Lines, family: str, path: str) -> words.Reader:
    nodes = {entry: _entries(line)[0] for line in lines for entry in _entries(line)}
    if not (more := beyond(lines)):
        plain = words.reader(family, path)
        return words.Reader(
            family, plain.path, plain.tokens, plain.normalise, words.Objects(nodes, words.bigrams())
        )
    first = f"{more[0]!r}" + (f" and {len(more) - 1} more" if more[1:] else "")
    if family != "wordnet" or path == "tables":
        which = f"family {family}" if family != "wordnet" else f"path {path}"
        raise InvalidData(
            f"{first} of the object words are not in CHAIR's own list, whose forms alone {which} "
            "knows; use family wordnet with path nltk."
        )
    lemma = None if (lack := words.missing_nltk()) else wordnet_lemma()
    if lemma is None:
        raise MissingExtra(
            f"{first} of the object words are not in CHAIR's own list, so that their forms need "
            f"NLTK's lemmatiser: {lack or NO_WORDNET}"
        )
    for entry in more:  # "drones" is found where captions say "drone"
        nodes.setdefault(" ".join(lemma(word, "n") for word in entry.split()), nodes[entry])
    pairs = {entry: entry for entry in nodes if " " in entry and entry not in words.vocabulary()}
    objects = words.Objects(nodes, {**words.bigrams(), **pairs})
    exact = words.reader("wordnet", "nltk")
    return words.Reader(family, "nltk", exact.tokens, every_lemma(lemma), objects)


# WordNet ------------------------------------------------------------------------------------------


def wordnet_lemma() -> Lemma | None:
    """A word's normal form under a part of speech; None where WordNet's data are not installed."""
    from nltk.stem import WordNetLemmatizer

    lemma = WordNetLemmatizer().lemmatize
    try:
        lemma("dogs")
    except LookupError:
        return None
    return lru_cache(maxsize=1 << 16)(lemma)


def every_lemma(lemma: Lemma) -> Callable[[list[str]], list[str]]:
    """Brings every token into its normal form, also those that can name no object."""

    def normalise(tokens: list[str]) -> list[str]:
        found = tags.installed().tag(tokens)
        return [lemma(token, tags.part(found[i])) for i, token in enumerate(tokens)]

    return normalise
