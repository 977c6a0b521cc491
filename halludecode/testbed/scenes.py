"""Which scenes a split holds: theme and objects, the split's rules, and the finished pictures.

Splits differ in how often an anchor comes with its partner and in how often a stranger does.
``iid`` keeps the training mixture, where the prior is right; ``broken`` has few partners and many
strangers, where it misleads. The ``dev`` pair is for tuning. Every split has its own random
streams, so no scene of one is in another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from halludecode.core.errors import InvalidParameter
from halludecode.testbed.categories import NAMES, PARTNERS, THEMES
from halludecode.testbed.render import Renderer, Thing, finish
from halludecode.testbed.stream import Stream

_OBJECTS, _PICTURE, _BACKDROP, QUESTIONS = range(4)  # what a stream is for


@dataclass(frozen=True)
class Split:
    """The rules of one split.

    Args:
        number: Keeps its streams apart from those of the others.
        pair: How often an anchor brings its partner, permille.
        stranger: How often one object of any category is added, permille.
        hide: Objects that are annotated but all but invisible, permille.
        spoil: Pictures with heavy noise or blur, permille.
        judged: An evaluation split: at least three categories a scene (as the official POPE
            construction demands), every object at least 35 % and 40 pixels visible.
        worst: Largest standard deviation of heavy noise, in grey steps.
    """

    number: int
    pair: int
    stranger: int
    hide: int = 0
    spoil: int = 0
    judged: bool = True
    worst: int = 140

    def purpose(self, use: int) -> int:
        """The stream purpose of this split for one use."""
        return self.number * 16 + use


SPLITS = {
    "train": Split(5, pair=650, stranger=200, hide=220, spoil=120, judged=False, worst=240),
    "iid": Split(6, pair=650, stranger=200),
    "broken": Split(2, pair=250, stranger=500),
    "dev-iid": Split(7, pair=650, stranger=200),
    "dev-broken": Split(4, pair=250, stranger=500),
}
MOST = 8  # objects a scene
CATEGORIES_LEAST = 3
SEEDS = 2**64


@dataclass(frozen=True)
class Scene:
    """One finished scene.

    Args:
        index: 0 for the first of its split.
        theme: Name of the theme.
        image: uint8 [120, 120, 3].
        ids: int8 [120, 120], index into ``things`` of the object on top, -1 for background.
        things: In painting order.
        attempt: Which of the casts drawn for it was the first within the rules, from 0.
    """

    index: int
    theme: str
    image: np.ndarray
    ids: np.ndarray
    things: tuple[Thing, ...]
    attempt: int = 0

    @property
    def names(self) -> list[str]:
        """The categories in painting order, each once."""
        return list(dict.fromkeys(thing.name for thing in self.things))


def rules(split: str) -> Split:
    """Finds the rules of a split.

    Raises:
        InvalidParameter: There is no such split.
    """
    if split not in SPLITS:
        raise InvalidParameter(
            f"There is no testbed split {split!r}; use one of {', '.join(SPLITS)}."
        )
    return SPLITS[split]


def check(split: str, count: int, seed: int) -> None:
    """Checks what the user chose.

    Raises:
        InvalidParameter: Unknown split, count below 1 or seed outside 0..2**64 - 1.
    """
    rules(split)
    if count < 1:
        raise InvalidParameter(f"count is {count}; it must be at least 1.")
    if not 0 <= seed < SEEDS:
        raise InvalidParameter(f"seed is {seed}; it must be between 0 and 2**64 - 1.")


def cast(stream: Stream, split: Split) -> tuple[str, list[str]]:
    """Draws a theme and the objects on stage, at most eight; a category drawn twice counts once."""
    theme = stream.pick(tuple(THEMES))
    names: list[str] = []
    for _ in range(stream.weighted((1, 2, 3), (1, 3, 2))):
        anchor = stream.pick(THEMES[theme])
        if anchor in names:
            continue
        names += [anchor] * stream.weighted((1, 2, 3), (74, 18, 8))
        partner = PARTNERS.get(anchor)
        if partner and partner not in names and stream.chance(split.pair):
            names.append(partner)
    if stream.chance(split.stranger):
        stranger = stream.pick(NAMES)
        if stranger not in names:
            names.append(stranger)
    return theme, names[:MOST]


def casts(split: str, count: int, seed: int = 0) -> Iterator[list[str]]:
    """The objects of the first ``count`` scenes of a split without judging or painting them.

    For ``train`` these are the objects of its scenes; for others, those of the first attempts.
    """
    for index in range(count):
        yield cast(Stream(seed, rules(split).purpose(_OBJECTS), index), rules(split))[1]


def scenes(split: str, count: int, seed: int = 0) -> Iterator[Scene]:
    """Makes the scenes of a split, one after another; scene i is the same whatever ``count`` is.

    Args:
        split: One of `SPLITS`.
        count: Number of scenes.
        seed: Other seeds give other scenes under the same rules.

    Yields:
        The scenes.

    Raises:
        InvalidParameter: See `check`.
    """
    check(split, count, seed)
    rule = rules(split)
    renderer = Renderer(seed, rule.purpose(_BACKDROP))
    for index in range(count):
        yield _scene(renderer, rule, seed, index)


def _scene(renderer: Renderer, rule: Split, seed: int, index: int) -> Scene:
    for attempt in range(2**32):
        theme, names = cast(Stream(seed, rule.purpose(_OBJECTS), index, attempt), rule)
        if rule.judged and len(set(names)) < CATEGORIES_LEAST:
            continue
        stream = Stream(seed, rule.purpose(_PICTURE), index, attempt)
        canvas = renderer.paint(stream, theme, names, rule.hide)
        if rule.judged and not all(map(_recognisable, canvas.things)):
            continue
        image = finish(stream, canvas.paint, rule.spoil, rule.worst)
        return Scene(index, theme, image, canvas.ids, tuple(canvas.things), attempt)
    raise RuntimeError("no attempt gave a scene within the rules")


def edited(split: str, count: int, seed: int = 0) -> Iterator[tuple[Scene, dict[str, np.ndarray]]]:
    """Scenes, each with two pictures more that lack one of its categories and are else the same.

    Args:
        split: A split that is judged.
        count: Number of scenes, which are those of `scenes`.
        seed: As there.

    Yields:
        The scene, and category to its picture without it, uint8 [120, 120, 3].

    Raises:
        InvalidParameter: See `check`; or the split is not judged.
    """
    check(split, count, seed)
    rule = rules(split)
    if not rule.judged:
        judged = ", ".join(name for name, other in SPLITS.items() if other.judged)
        raise InvalidParameter(f"Split {split!r} has no pairs; use one of {judged}.")
    renderer = Renderer(seed, rule.purpose(_BACKDROP))
    for index in range(count):
        scene = _scene(renderer, rule, seed, index)
        taken = Stream(seed, rule.purpose(QUESTIONS), index, 2).shuffled(scene.names)[:2]
        yield scene, {name: _without(renderer, rule, seed, scene, name) for name in taken}


def _without(renderer: Renderer, rule: Split, seed: int, scene: Scene, name: str) -> np.ndarray:
    place = (scene.index, scene.attempt)
    theme, names = cast(Stream(seed, rule.purpose(_OBJECTS), *place), rule)
    stream = Stream(seed, rule.purpose(_PICTURE), *place)
    canvas = renderer.paint(stream, theme, names, rule.hide, without=name)
    return finish(stream, canvas.paint, rule.spoil, rule.worst)


def _recognisable(thing: Thing) -> bool:
    return thing.area >= max(40, math.ceil(thing.full * 35 / 100))
