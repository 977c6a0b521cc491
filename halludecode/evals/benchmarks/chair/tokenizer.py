"""Caption to tokens as NLTK's ``word_tokenize`` makes them, without NLTK's data.

NLTK cuts a text into sentences and then each sentence into tokens. A token never crosses white
space, and what happens inside one run of letters and marks depends on little beyond the run, so
runs are split one by one and remembered. Of the sentences only one thing matters: the period of
"dog." is a token of its own where a sentence ends, and part of the word where it does not, as in
"st. louis". ``data/README.md`` says how often this differs from NLTK.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

Token = tuple[str, int, int]  # lower-cased text, start and end in the caption

# English abbreviations: a period after them ends no sentence, unless the text ends there.
_SHORT = (
    "a.m p.m u.s u.k u.n d.c n.y n.j st dr mr mrs ms jr sr co corp inc ltd vs prof gen col sen rep "
    "lt ft ave ph.d jan feb aug sept oct nov dec"
)
ABBREVIATIONS = frozenset(_SHORT.split(" "))
_RUN = re.compile(r"\S+")
# A run whose last period may end a sentence: closing marks may follow it.
_ENDS = re.compile(r"(.*[^.])\.[\])}>\"'\u00bb\u201d\u2019]*", re.DOTALL)
# NLTK begins a new sentence inside a run, at such a mark after a period.
_INNER = re.compile(r"(?<=[^.\s]\.)(?=[)\";}\]*:@'({\[!?])")
_PLAIN = re.compile(r"[a-z]+(-[a-z]+)*('s)?[,;?!]?|[a-z]{2,}(-[a-z]{2,})*\.|\d+")
# A run that holds the end of a sentence and more; NLTK then lets an abbreviation before it end one.
_BROKEN = re.compile(r"[?!].|[^.]\.[)\";}\]*:@'({\[,!?\u2018\u2019\u201c\u201d\u00ab\u00bb]")
_TWO_WORDS = frozenset({"cannot", "gimme", "lemme", "gonna", "gotta", "wanna"})
_LONE_QUOTE = re.compile(r"(\"|'')[\"')\]}]*")
_NUMBER = re.compile(r"[.,]?\d[\d,.-]*")
# Texts of words, counts, commas and periods alone, as most captions are, split the same way in
# every place: no rule below looks beyond one of their words.
_SHORTS = "|".join(map(re.escape, sorted(ABBREVIATIONS)))
_EASY = re.compile(
    rf"(?:(?:[a-z]+(?:-[a-z]+)*(?:'s)?|[0-9]+)[,;]?\s+|(?!(?:{_SHORTS})\.)[a-z]{{2,}}\.\s+)*"
    r"(?:[a-z]{2,}|[0-9]+)[.,]?"
)
_PIECE = re.compile(r"[a-z]+(?:-[a-z]+)*|'s|[,;.]|[0-9]+")
_JOINED = re.compile("|".join(sorted(_TWO_WORDS)))

Rule = tuple[re.Pattern[str], str]


def _rules(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), put) for pattern, put in pairs)


# In NLTK's order. Every rule only adds spaces, apart from the straight double quote, which opens
# as `` and closes as ''.
_OPENING = _rules(
    (r"([\u00ab\u201c\u2018\u201e]|`+)", r" \1 "),
    (r'^"', "``"),
    (r"(``)", r" \1 "),
    (r"([ (\[{<])(\"|'')", r"\1 `` "),
    (r"(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", "' "),
)
_FINAL = re.compile(r"([^.])\.([\])}>\"'\u00bb\u201d\u2019]*)$")
_MARKS = _rules(
    (r"([:,])(?!\d)", r" \1 "),
    (r"\.{2,}", r" \g<0> "),
    (r"[;@#$%&]", r" \g<0> "),
    (r"[\u2012-\u2015]", r" \g<0> "),
    (r"[?!]", r" \g<0> "),
    (r"([^'])' ", r"\1 ' "),
    (r"\*", " * "),
    (r"[\]\[(){}<>]", r" \g<0> "),
    (r"--", " -- "),
)
_CLOSING = _rules(
    (r"([\u00bb\u201d\u2019])", r" \1 "),
    (r"''|\"", " '' "),
    (r"\s+", " "),
    (r"([^' ])('[smd]|') ", r"\1 \2 "),
    (r"([^' ])('ll|'re|'ve|n't) ", r"\1 \2 "),
    (r"\b(can)(not)\b", r" \1 \2 "),
    (r"\b(d)('ye)\b", r" \1 \2 "),
    (r"\b(gim|lem)(me)\b", r" \1 \2 "),
    (r"\b(gon)(na)\b", r" \1 \2 "),
    (r"\b(got)(ta)\b", r" \1 \2 "),
    (r"\b(more)('n)\b", r" \1 \2 "),
    (r"\b(wan)(na)(?= )", r" \1 \2 "),
    (r" ('t)(is|was)\b", r" \1 \2 "),
)


def tokenize(caption: str, abbreviations: frozenset[str] = ABBREVIATIONS) -> list[Token]:
    """Splits a caption into lower-cased tokens, each with its place in the caption.

    Args:
        caption: Any text.
        abbreviations: Lower-cased words, without their last period, that end no sentence.
    """
    lowered, place = lower(caption)
    runs: list[tuple[str, int]] = []
    for found in _RUN.finditer(lowered):
        text = found.group()
        runs += _runs(found) if "." in text else [(text, found.start())]
    tokens: list[Token] = []
    first = True
    for (text, start), (after, _) in pairwise([*runs, ("", 0)]):
        if text.isalpha() and text not in _TWO_WORDS:  # most words: `split` would say the same
            tokens.append((text, start, start + len(text)))
            first = not after
            continue
        last = not after or text[-1] in "?!" or ("." in text and _ends(text, after, abbreviations))
        before = "" if first else " " if lowered[start - 1] == " " else "\n"
        for piece, at, end in split(text, before, last):
            tokens.append((piece, start + at, start + end))
        first = last
    if isinstance(place, range):
        return tokens
    return [(text, place[start], place[end]) for text, start, end in tokens]


def easy_words(lowered: str) -> list[str] | None:
    """The texts of `tokenize`, in a tenth of the time; None where the text is not easy to split."""
    if not _EASY.fullmatch(lowered) or _JOINED.search(lowered):
        return None
    return _PIECE.findall(lowered)


def placed(lowered: str, words: Sequence[str]) -> list[Token]:
    """`easy_words` with their places."""
    tokens: list[Token] = []
    end = 0
    for word in words:
        start = lowered.index(word, end)
        end = start + len(word)
        tokens.append((word, start, end))
    return tokens


def plain(lowered: str, spared: frozenset[str]) -> bool:
    """Whether a lower-cased text holds nothing on which `tokenize` could differ from NLTK.

    Args:
        lowered: The text.
        spared: Words without their last period, after which a sentence may go on.
    """
    for run in lowered.split():
        if not run.isascii() or not _PLAIN.fullmatch(run):
            return False
        if run[-1] == "." and (run[:-1] in spared or run[:-1].rpartition("-")[2] in spared):
            return False
    return True


def _runs(found: re.Match[str]) -> list[tuple[str, int]]:
    """A run and its place, cut where a sentence ends inside it."""
    text, start = found.group(), found.start()
    if "." not in text[:-1] or _ENDS.fullmatch(text):
        return [(text, start)]
    cuts = [0, *(cut.start() for cut in _INNER.finditer(text)), len(text)]
    return [(text[a:b], start + a) for a, b in pairwise(cuts)]


def _ends(run: str, after: str, abbreviations: frozenset[str]) -> bool:
    """Whether the period near the end of a run ends a sentence, ``after`` being the next run."""
    found = _ENDS.fullmatch(run)
    if not found:
        return False
    word = found[1].rpartition(":")[2].lstrip('("`{[;&#*@)}]-,')
    if word in abbreviations or word.rpartition("-")[2] in abbreviations:
        return _BROKEN.search(after) is not None
    if run[-1] != ".":
        return True
    # A count or an initial stands before a word; a closing quote that stands alone is taken into
    # the sentence, and hides its period.
    counts = _NUMBER.fullmatch(word) or (len(word) == 1 and word.isalpha())
    if counts and (after[0].isalpha() or after[0] in ";:,.!?"):
        return _BROKEN.search(after) is not None
    return not _LONE_QUOTE.fullmatch(after)


@lru_cache(maxsize=65536)
def split(run: str, before: str, last: bool) -> tuple[Token, ...]:
    """The tokens of text without white space, with their places in it.

    Args:
        run: Lower-cased text.
        before: Nothing where it begins a sentence; else a space, or a line end for other marks.
        last: Whether it ends one.
    """
    if run.isalpha() and run not in _TWO_WORDS:
        return ((run, 0, len(run)),)
    text = before + run
    for pattern, put in _OPENING:
        text = pattern.sub(put, text)
    text = _FINAL.sub(r"\1 . \2 ", text) if last else f"{text} "
    for pattern, put in _MARKS:
        text = pattern.sub(put, text)
    text = f"{text} "
    for pattern, put in _CLOSING:
        text = pattern.sub(put, text)
    return tuple(spans(run, text.split()))


def spans(text: str, words: Sequence[str]) -> list[Token]:
    """Finds tokens in the lower-cased text they were cut from.

    NLTK writes straight double quotes as `` and ''; every other token stands in the text.
    """
    tokens: list[Token] = []
    at = 0
    for word in words:
        start, length = text.find(word, at), len(word)
        if word in ("``", "''"):
            quote = text.find('"', at)
            if quote >= 0 and not 0 <= start < quote:
                start, length = quote, 1
        if start < 0:
            start, length = at, 0
        at = start + length
        tokens.append((word, start, at))
    return tokens


def lower(caption: str) -> tuple[str, Sequence[int]]:
    """The lower-cased caption, and for each of its places the place in the caption.

    A few letters grow when lower-cased; spans must still point into the caption itself.
    """
    lowered = caption.lower()
    if len(lowered) == len(caption):
        return lowered, range(len(caption) + 1)
    place = [i for i, letter in enumerate(caption) for _ in letter.lower()]
    return lowered, [*place, len(caption)]
