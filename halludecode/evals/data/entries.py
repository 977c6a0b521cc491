"""Between data files and samples: what part of a source is wanted, its entries, units of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.amber.description_words import Similarity
from halludecode.evals.data.samples import EvalImage, EvalUnit, Sample
from halludecode.evals.presets import Preset


@dataclass(frozen=True)
class Selection:
    """What to take from every source.

    Args:
        tasks: Tasks asked for.
        presets: Prompt preset of every task.
        limit: Pictures per source and task; None takes all.
        splits: POPE splits; empty takes those that exist.
        families: CHAIR's ``gt_family`` and word ``path``, where they are not the defaults.
        image_ids: CHAIR's pictures, in the order they are taken in; empty takes all.
        columns: Our column name to a hub data set's own, where they differ.
        testbed_images: Pictures per testbed source.
        similarity: Similarity of two words for AMBER's descriptions, see `amber.score`.
    """

    tasks: Sequence[str]
    presets: Mapping[str, Preset]
    limit: int | None = None
    splits: Sequence[str] = ()
    families: Mapping[str, str] = field(default_factory=dict)
    image_ids: Sequence[int] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    testbed_images: int = 500
    similarity: Similarity | str | None = None


@dataclass(frozen=True)
class Entry:
    """A question before its picture is read.

    Args:
        id: Its id.
        question: Its words; "" where the prompt preset has them all.
        image: Name of its picture; None is asked without one.
        where: Where it stands.
        label: "yes" or "no"; None for descriptions.
        objects: True objects of descriptions.
        facts: See `Sample`.
        group: What a limit counts, where that is not the picture.
    """

    id: int | str
    question: str
    image: str | None
    where: str
    label: str | None = None
    objects: tuple[str, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""

    @property
    def whole(self) -> str:
        """What a limit takes whole or not at all."""
        return self.group or str(self.image)


Pictures = Callable[[str, str], EvalImage]  # (name, where it is asked for) -> picture


def folder_pictures(folder: Path) -> Pictures:
    """Pictures of a folder by name, each read and hashed once."""
    known: dict[str, EvalImage] = {}

    def find(name: str, where: str) -> EvalImage:
        if name not in known:
            path = folder / name
            if not path.is_file():
                raise InvalidData(f"{where}: picture {path} does not exist.")
            known[name] = EvalImage.from_file(path, name)
        return known[name]

    return find


def in_turn(entries: Iterable[Entry]) -> list[Entry]:
    """MME's questions with the subtasks in turn: the first picture of each, then the second ...

    Args:
        entries: In any order; pictures are named ``subtask/picture``.
    """
    subtasks: dict[str, dict[str, list[Entry]]] = {}
    for entry in entries:
        by_picture = subtasks.setdefault(entry.whole.split("/", 1)[0], {})
        by_picture.setdefault(entry.whole, []).append(entry)
    turns = [list(by_picture.values()) for by_picture in subtasks.values()]
    longest = max(map(len, turns), default=0)
    return [e for i in range(longest) for turn in turns if i < len(turn) for e in turn[i]]


def make_unit(
    task: str,
    data: str,
    split: str | None,
    entries: Sequence[Entry],
    pictures: Pictures,
    selection: Selection,
    revision: str | None = None,
    judge: Callable[[Sample, str], dict[str, Any]] | None = None,
) -> EvalUnit:
    """Applies the limit, finds the pictures and words the prompts."""
    preset, found, samples, ids = selection.presets[task], {}, [], {}
    for entry in limited(entries, selection.limit):
        if entry.id in ids:
            raise InvalidData(f"{entry.where}: id {entry.id} was already used at {ids[entry.id]}.")
        ids[entry.id] = entry.where
        if entry.image is None:
            picture = EvalImage.none(f"{entry.whole}: no picture")
        elif entry.image in found:
            picture = found[entry.image]
        else:
            picture = found[entry.image] = pictures(entry.image, entry.where)
        described = task == "amber" and entry.label is None
        prompt = entry.question if described else preset.prompt(task, entry.question)
        told = (entry.label, entry.objects, entry.facts)
        samples.append(Sample(entry.id, entry.question, prompt, picture, *told))
    return EvalUnit(task, data, split, tuple(samples), revision, judge)


def limited(entries: Sequence[Entry], limit: int | None) -> list[Entry]:
    """The entries of the first ``limit`` pictures or groups."""
    kept = set(list(dict.fromkeys(entry.whole for entry in entries))[:limit])
    return [entry for entry in entries if entry.whole in kept]
