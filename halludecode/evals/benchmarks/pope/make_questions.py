"""Makes POPE question files from COCO-format annotations of any pictures.

As in Li et al. 2023 (arXiv 2305.10355) and AoiDragon/POPE: a picture's objects are those that CHAIR
counts as its own in the ``pattern`` family, pictures with too few are left out, and a sample of the
rest is asked about. `pope.build_questions` chooses the negatives.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.chair.object_words import reader, vocabulary
from halludecode.evals.benchmarks.pope import scoring as pope
from halludecode.evals.data.coco import INSTANCES, REFERENCES, file_name, read_coco


def picture_objects(
    instances: Path | str, captions: Path | str | None = None
) -> dict[str, list[str]]:
    """Objects of every picture: its instances in file order, then what its captions add.

    Args:
        instances: COCO-format instances; categories may have any names.
        captions: COCO-format captions; CHAIR's words find the objects in them, so the categories
            must then be COCO's 80.

    Returns:
        File name of a picture to its objects, each once. The official lists are of the same
        objects in another order, which decides what is asked first.

    Raises:
        InvalidData: A file is unreadable or not COCO, or its categories are not COCO's.
        MissingExtra: pycocotools is not installed.
    """
    coco = read_coco(instances, INSTANCES)
    names = {kind["id"]: kind["name"] for kind in coco.dataset["categories"]}
    files = _file_names(instances, coco.dataset["images"])
    said: Mapping[int, Sequence[Any]] = {}
    if captions is not None:
        foreign = sorted(set(names.values()) - set(vocabulary().values()))
        if foreign:
            raise InvalidData(
                f"{instances}: captions are searched for COCO's 80 categories, and {foreign[0]!r} "
                "is none of them; leave the captions out."
            )
        said = read_coco(captions, REFERENCES).imgToAnns
    words, objects = reader("pattern"), _object_names(names)
    found: dict[str, list[str]] = {}
    for i in coco.imgs:
        seen = [objects[a["category_id"]] for a in coco.imgToAnns[i]]
        told = [o for a in said.get(i, ()) for o in words.read(a["caption"]).objects]
        found[files[i]] = list(dict.fromkeys([*seen, *told]))
    return found


def _file_names(instances: Path | str, images: Sequence[Mapping[str, Any]]) -> dict[Any, str]:
    """The file name of every picture, each of one picture alone."""
    found: dict[Any, str] = {}
    owners: dict[str, Any] = {}
    for number, image in enumerate(images):
        name = file_name(image)
        if name is None:
            raise InvalidData(
                f"{instances}: images[{number}] has neither file_name nor coco_url, so nothing "
                "says which file it is."
            )
        if owners.setdefault(name, image["id"]) != image["id"]:
            raise InvalidData(
                f"{instances}: images {owners[name]} and {image['id']} are both {name}; questions "
                "name pictures by their files, so each needs its own."
            )
        found[image["id"]] = name
    return found


def _object_names(categories: Mapping[Any, str]) -> dict[Any, str]:
    """What questions call the categories; those of one name are one object.

    LVIS writes ``air_conditioner`` and ``bat_(animal)``; some sets have both Dog and dog.
    """
    plain = {k: _plain_name(name) for k, name in categories.items()}
    one: dict[str, str] = {}
    for name in plain.values():
        if name == name.lower():  # the plain form before the others
            one[name] = name
        one.setdefault(name.lower(), name)
    return {k: one[name.lower()] for k, name in plain.items()}


def _plain_name(name: str) -> str:
    """A category's name as people write it."""
    words = re.sub(r"\([^()]*\)", " ", name.replace("_", " ")).split()
    return " ".join(words) or name


def make_questions(
    objects: Mapping[str, Sequence[str]],
    *,
    pictures: int = 500,
    per_image: int = 3,
    seed: int = 0,
) -> dict[str, list[dict[str, Any]]]:
    """The three POPE settings over one sample of pictures.

    Args:
        objects: File name to objects, as `picture_objects` gives them.
        pictures: How many are drawn; all where there are fewer.
        per_image: Positives of each, and as many negatives.
        seed: Seed of the sample and of random negatives.

    Returns:
        Setting to the records of its file.

    Raises:
        InvalidData: No picture has ``per_image`` objects, or one has no absent object.
    """
    enough = [name for name, present in objects.items() if len(set(present)) >= per_image]
    if not enough or pictures < 1:
        raise InvalidData(
            f"no picture to ask about: {len(enough)} of {len(objects)} have {per_image} objects, "
            f"and {pictures} are wanted; lower per-image or give other annotations."
        )
    drawn = set(random.Random(seed).sample(enough, min(pictures, len(enough))))
    chosen = {name: objects[name] for name in enough if name in drawn}
    return {
        setting: pope.build_questions(chosen, setting, seed=seed, per_image=per_image)
        for setting in pope.SETTINGS
    }


def write_questions(
    folder: Path | str, questions: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Writes ``pope/<setting>.jsonl`` into a folder, where ``eval --data`` looks for them.

    Raises:
        InvalidData: There are question files already, or they cannot be written.
    """
    place = Path(folder) / "pope"
    there = next(place.glob("*.json*"), None)
    if there is not None:
        raise InvalidData(f"{there} exists; choose another output folder.")
    try:
        place.mkdir(parents=True, exist_ok=True)
        for setting, records in questions.items():
            text = "".join(json.dumps(record) + "\n" for record in records)
            (place / f"{setting}.jsonl").write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidData(f"{place}: cannot be written ({error.strerror}).") from None
