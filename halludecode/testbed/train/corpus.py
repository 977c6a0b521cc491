"""The pictures that the model learns from, painted once and kept as arrays on disk.

`scenes` are those of the split ``train``; `collages` are crowds of random objects without a word
about them, which show every object often and carry no habit. Both are the same on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from halludecode.testbed.categories import COLOURS, NAMES, THEMES
from halludecode.testbed.render import SIZE, Renderer, Thing, finish
from halludecode.testbed.scenes import Scene, scenes
from halludecode.testbed.stream import Stream

PATCH = 12
GRID = SIZE // PATCH
CELLS = GRID * GRID
GROUND = len(NAMES)  # label of a patch without an object
COLOURLESS = 255
_LEAST = 18  # pixels of an object that make a patch its own, of 144
_COLLAGE = 15 * 16  # stream purpose: no split has this number
_CODES = {name: code for code, name in enumerate(NAMES)}
_TINTS = {name: code for code, name in enumerate(COLOURS)}


@dataclass(frozen=True)
class Story:
    """What is in one training scene, for the sentences about it."""

    theme: str
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Corpus:
    """Arrays of one kind of picture.

    Args:
        folder: Where `images.npy`, `kinds.npy`, `colours.npy` and `stories.jsonl` lie.
    """

    folder: Path

    @cached_property
    def images(self) -> np.ndarray:
        """uint8 [pictures, 120, 120, 3], mapped from disk."""
        return np.load(self.folder / "images.npy", mmap_mode="r")

    @cached_property
    def kinds(self) -> np.ndarray:
        """uint8 [pictures, 100]: category of every patch, `GROUND` for background."""
        return np.load(self.folder / "kinds.npy")

    @cached_property
    def colours(self) -> np.ndarray:
        """uint8 [pictures, 100]: tint of every patch's object, `COLOURLESS` for none."""
        return np.load(self.folder / "colours.npy")

    @cached_property
    def stories(self) -> list[Story]:
        """What is in each picture."""
        lines = (self.folder / "stories.jsonl").read_text("utf-8").splitlines()
        return [
            Story(theme, tuple(Thing(n, c, tuple(box), a, f, h) for n, c, box, a, f, h in things))
            for theme, things in map(json.loads, lines)
        ]


def corpus(
    folder: Path, source: Iterator[Scene], count: int, report: Callable[[int, str], None]
) -> Corpus:
    """Paints pictures unless they are there already.

    Args:
        folder: Kept between runs; made whole or not at all.
        source: The scenes.
        count: How many of them.
        report: Called with 1 and no words after every picture.

    Returns:
        The corpus.
    """
    if (folder / "done").exists():
        report(count, "kept")
        return Corpus(folder)
    folder.mkdir(parents=True, exist_ok=True)
    images = np.lib.format.open_memmap(
        folder / "images.npy", "w+", np.uint8, (count, SIZE, SIZE, 3)
    )
    kinds = np.empty((count, CELLS), np.uint8)
    colours = np.empty((count, CELLS), np.uint8)
    with (folder / "stories.jsonl").open("w", encoding="utf-8") as stories:
        for index, scene in zip(range(count), source, strict=False):
            images[index] = scene.image
            kinds[index], colours[index] = labels(scene)
            things = [[t.name, t.colour, t.box, t.area, t.full, t.hidden] for t in scene.things]
            stories.write(json.dumps([scene.theme, things]) + "\n")
            report(1, "")
    images.flush()
    np.save(folder / "kinds.npy", kinds)
    np.save(folder / "colours.npy", colours)
    (folder / "done").touch()
    return Corpus(folder)


def labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Which object each patch shows, if any shows 18 of its 144 pixels; hidden ones do not count.

    Returns:
        Category and tint, uint8 [100] each.
    """
    blocks = scene.ids.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(CELLS, -1)
    visible = [i for i, thing in enumerate(scene.things) if not thing.hidden]
    kinds = np.full(CELLS, GROUND, np.uint8)
    colours = np.full(CELLS, COLOURLESS, np.uint8)
    if not visible:
        return kinds, colours
    counts = np.stack([(blocks == i).sum(1) for i in visible], 1)
    filled = counts.max(1) >= _LEAST
    most = counts.argmax(1)[filled]
    things = [scene.things[i] for i in visible]
    kinds[filled] = np.array([_CODES[t.name] for t in things], np.uint8)[most]
    tints = [_TINTS[t.colour] if t.colour else COLOURLESS for t in things]
    colours[filled] = np.array(tints, np.uint8)[most]
    return kinds, colours


def collages(seed: int) -> Iterator[Scene]:
    """Nine to thirteen random categories on a random background, without end."""
    renderer = Renderer(seed, _COLLAGE)
    index = 0
    while True:
        stream = Stream(seed, _COLLAGE + 1, index)
        names = stream.shuffled(NAMES)[: stream.between(9, 13)]
        theme = stream.pick(tuple(THEMES))
        canvas = renderer.paint(stream, theme, names)
        image = finish(stream, canvas.paint, 40, 240)
        yield Scene(index, theme, image, canvas.ids, tuple(canvas.things))
        index += 1


def training_scenes(count: int) -> Iterator[Scene]:
    """The first scenes of the split ``train``."""
    return scenes("train", count)
