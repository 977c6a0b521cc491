"""The testbed's English: noun phrases and reference captions, within the model's vocabulary.

Reference captions name only what is in the picture. Plurals that a CHAIR word family cannot read
("vases", "ties") are avoided: such objects are named in the singular.
"""

from __future__ import annotations

from collections.abc import Sequence

from halludecode.testbed.render import Thing
from halludecode.testbed.scenes import Scene
from halludecode.testbed.stream import Stream

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
SUFFIX = "Please answer yes or no."
_PAIRS = ("skis", "scissors")
_PLURALS = {
    "person": "people",
    "bus": "buses",
    "bench": "benches",
    "sheep": "sheep",
    "skis": "skis",
    "couch": "couches",
    "knife": "knives",
    "sandwich": "sandwiches",
    "mouse": "mice",
    "toothbrush": "toothbrushes",
    "scissors": "scissors",
    "wine glass": "wine glasses",
    "broccoli": "broccoli",
}
# The pattern family turns "ties" into "ty"; the wordnet family "vases" into "vas" and "parking
# meters", taken for a verb, into "park meter".
UNREAD_PLURALS = frozenset({"tie", "vase", "parking meter"})


def plural(name: str) -> str:
    """The plural of a category name, as the model learnt it."""
    return _PLURALS.get(name, name + "s")


def a(words: str) -> str:
    """The words with "a" or "an" before them."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def noun(name: str, count: int = 1, colour: str | None = None) -> str:
    """A noun phrase: "a red car", "two dogs", "a pair of skis"."""
    words = f"{colour} {name}" if colour else name
    if name in _PAIRS:
        return f"a pair of {words}"
    if count == 1 or name in UNREAD_PLURALS:
        return a(words)
    return f"{NUMBERS[count]} {plural(name)}"


def captions(stream: Stream, scene: Scene) -> list[str]:
    """Three true captions of a scene: two that name everything and a brief one."""
    full = [caption_text(stream, scene.theme, ranked(stream, scene.things)) for _ in range(2)]
    brief = caption_text(stream, scene.theme, ranked(stream, scene.things)[:2])
    return [*full, brief]


def ranked(stream: Stream, things: Sequence[Thing]) -> list[list[Thing]]:
    """The things by category, large first; sizes count 70 to 130 %, so that orders differ."""
    groups: dict[str, list[Thing]] = {}
    for thing in things:
        groups.setdefault(thing.name, []).append(thing)
    size = {name: max(t.area for t in g) * stream.between(70, 130) for name, g in groups.items()}
    return sorted(groups.values(), key=lambda group: -size[group[0].name])


def caption_text(stream: Stream, theme: str, groups: Sequence[list[Thing]]) -> str:
    """A caption that names the groups in their order.

    Args:
        stream: Where the choice of words comes from.
        theme: Name of the theme.
        groups: Things of one category each; a thing with ``full`` 0 has no place in the picture.
    """
    verb = stream.pick(("shows", "features"))
    setting = f"{a(theme)} scene with " if stream.chance(600) else ""
    nouns = [_group_noun(stream, group) for group in groups]
    first = f"The image {verb} {setting}{nouns[0]}"
    if len(groups) > 1:
        first += f" {_connective(stream, groups[0], groups[1])} {nouns[1]}"
    sentences = [first + "."]
    next_group = 2
    while next_group < len(groups):
        be = "is" if nouns[next_group].startswith(("a ", "an ")) else "are"
        opening = stream.pick(
            (f"There {be} also", f"Additionally, there {be}", f"In the background, there {be}")
        )
        join_two = next_group + 1 < len(groups) and stream.chance(500)
        sentences.append(
            f"{opening} {' and '.join(nouns[next_group : next_group + 1 + join_two])}."
        )
        next_group += 1 + join_two
    return " ".join(sentences)


def _group_noun(stream: Stream, group: Sequence[Thing]) -> str:
    tell = len(group) == 1 and stream.chance(700)
    return noun(group[0].name, len(group), group[0].colour if tell else None)


def _connective(stream: Stream, first: Sequence[Thing], second: Sequence[Thing]) -> str:
    if len(first) > 1 or len(second) > 1:
        return "and"
    if stream.chance(400) or not (first[0].full and second[0].full):
        return stream.pick(("near", "next to"))
    return where(first[0], second[0])


def where(first: Thing, second: Thing) -> str:
    """Where the first thing is, seen from the second."""
    across, down = (p - q for p, q in zip(first.middle, second.middle, strict=True))
    if abs(across) > abs(down):
        return "to the left of" if across < 0 else "to the right of"
    return "above" if down < 0 else "below"
