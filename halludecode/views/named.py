"""Which of several pictures a question names: "image 2", "the first picture", "the last view"."""

from __future__ import annotations

import re

NOUN = r"(?:image|picture|photo|photograph|view|figure|frame)"
ORDINALS = (
    *("first", "second", "third", "fourth", "fifth"),
    *("sixth", "seventh", "eighth", "ninth", "tenth"),
)
BEFORE = re.compile(rf"\b{NOUN}\s*[-#_ ]?\s*(?:no\.?\s*|number\s*)?(\d+)\b", re.IGNORECASE)
AFTER = re.compile(
    rf"\b({'|'.join(ORDINALS)}|last|\d+(?=st|nd|rd|th))(?:st|nd|rd|th)?\s+{NOUN}\b", re.IGNORECASE
)


def named(question: str, count: int) -> frozenset[int]:
    """Pictures that a question names, counted from 0; numbers beyond ``count`` name none.

    Args:
        question: The user's words.
        count: How many pictures there are.
    """
    numbers = [int(number) for number in BEFORE.findall(question)]
    for word in AFTER.findall(question):
        low = word.lower()
        if low == "last":
            numbers.append(count)
        else:
            numbers.append(int(low) if low.isdigit() else ORDINALS.index(low) + 1)
    return frozenset(number - 1 for number in numbers if 1 <= number <= count)
