r"""The final answer in the words of a model that thinks aloud, boxes, tags or decorates it.

Official rules read an answer as it is written, and so do we unless ``--answers final`` is given:
``<think>`` blocks go, also one-sided ones, ``<answer>`` and ``\boxed{}`` give what they hold,
markdown marks and option letters ("B. No") go. A thought that was cut off holds no answer.
"""

from __future__ import annotations

import re
from functools import lru_cache

RULES = ("as_written", "final")

_THOUGHT = r"(?:seed:)?(?:think|thinking|thought|thoughts|reasoning|reflection)"
_OPEN = re.compile(rf"<\|?{_THOUGHT}\|?>|\u25c1think\u25b7|\[think\]", re.I)
_CLOSE = re.compile(rf"<\|?/{_THOUGHT}\|?>|\u25c1/think\u25b7|\[/think\]", re.I)
_ANSWER_OPEN = re.compile(r"<(?:answer|conclusion|final_answer)>|<\|begin_of_box\|>", re.I)
_ANSWER_CLOSE = re.compile(r"</(?:answer|conclusion|final_answer)>|<\|end_of_box\|>", re.I)
_BOXED = re.compile(r"\\boxed\s*\{")
_INNER = re.compile(r"^\\(?:text|textbf|mathrm|mathbf)\s*\{(.*)\}$", re.S)
_EMPHASIS = re.compile(r"(\*{1,3}|(?<!\w)_{1,3}|`+|~~)(?=\S)(.+?)(?<=\S)\1(?!\w)", re.S)
_LINE_MARK = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|>[ \t]?|[-*+][ \t]+)", re.M)
_LEAD = re.compile(
    r"^\W*(?:(?:the|my)\s+)?(?:(?:final|correct)\s+)?answer\s*(?:is\b\s*:?|:)\s*", re.I
)
_OPTION = re.compile(r"^\W*(?:option\s+)?\(?[A-Z]\s*[.):]\)?\s*(?=\W*(?:yes|no)\b)", re.I)
_LETTER = re.compile(r"^\W*(?:[Oo]ption\s+)?\(?([A-Z])(?:\s*\Z|\s*[.):]|\)\s)")
_WORD = re.compile(r"^[^\w<\\]*(yes|no)\b\s*([!:;]*)\s*", re.I)
_MARKS = frozenset("<*\\_`~#>[\u25c1")


@lru_cache(maxsize=1 << 15)  # most answers are one word
def final_answer(text: str, kind: str = "yes_no") -> str | None:
    """What an answer finally says.

    Args:
        text: The answer as it was written.
        kind: ``yes_no``, ``choice`` or ``caption``, see `Benchmark.text_kind`: in the first, option
            letters go and the letters of yes and no are mended; in the second, the letter of an
            option is left alone of "The answer is (B) a dog.".

    Returns:
        The text without what surrounds it; None where a thought was cut off before any answer, or
        nothing is left.
    """
    found = text
    if not _MARKS.isdisjoint(found):
        after = _thoughtless(found)
        if after is None:
            return None
        found = _plain(_unboxed(_tagged(after)))
    if kind == "yes_no":
        found = _yes_or_no(found)
    elif kind == "choice" and (letter := _LETTER.match(_LEAD.sub("", found))):
        found = letter[1]
    return (found.strip() if found != text else found) if found.strip() else None


def _thoughtless(text: str) -> str | None:
    """The text behind the last thought; None where one is still open and nothing came before it."""
    ends = list(_CLOSE.finditer(text))
    rest = text[ends[-1].end() :] if ends else text
    opened = _OPEN.search(rest)
    if opened is None:
        return rest
    before = rest[: opened.start()].strip()
    return before or None


def _tagged(text: str) -> str:
    """What stands in the last answer tag, of which one side may be missing."""
    opens = list(_ANSWER_OPEN.finditer(text))
    if opens:
        text = text[opens[-1].end() :]
    closed = _ANSWER_CLOSE.search(text)
    return text[: closed.start()] if closed else text


def _unboxed(text: str) -> str:
    r"""What the last ``\boxed{}`` holds; braces inside it may be nested."""
    boxes = list(_BOXED.finditer(text))
    if not boxes:
        return text
    start, depth = boxes[-1].end(), 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            break
    else:
        at = len(text)
    inside = text[start:at].strip()
    while inner := _INNER.match(inside):
        inside = inner[1].strip()
    return inside


def _plain(text: str) -> str:
    """The text without markdown's marks."""
    text = _LINE_MARK.sub("", text)
    for _ in range(3):  # bold in italics
        text = _EMPHASIS.sub(r"\2", text)
    return text


def _yes_or_no(text: str) -> str:
    """Yes and no in the letters that all rules know: "NO!" is "No", "B. No" is "No"."""
    found = _OPTION.sub("", _LEAD.sub("", text))
    word = _WORD.match(found)
    if word is None:
        return text
    rest = found[word.end() :]
    if not re.search(r"\w", rest):
        return word[1].capitalize()
    gap = ", " if word[2] else found[word.end(1) : word.end()]
    return word[1].capitalize() + gap + rest
