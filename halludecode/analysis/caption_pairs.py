"""Captions that strategies are calibrated on: pairs, true and hallucinated, or labelled ones."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halludecode.core.calibration import CaptionPair, LabelledCaption
from halludecode.core.errors import InvalidData
from halludecode.engines.api import Request
from halludecode.evals.benchmarks.chair.word_list import reader_of
from halludecode.evals.data.entries import folder_pictures
from halludecode.evals.data.records import read_text
from halludecode.evals.data.run_files import read_lines

Paired = list[tuple[Request, CaptionPair]]
FORM = '{"image": NAME, "value": CAPTION, "h_value": HALLUCINATED CAPTION}'


def read_pairs(path: Path, images: Path, prompt: str, limit: int) -> Paired:
    """JSON lines of a picture's name and two captions, as VTI's authors published theirs.

    Args:
        path: Of the lines; each may have its own "question".
        images: Folder of the pictures.
        prompt: What is asked where a line does not say.
        limit: First N lines.

    Raises:
        InvalidData: A line is none, or its picture is not there.
    """
    find, pairs = folder_pictures(images), Paired()
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or len(pairs) == limit:
            continue
        where = f"{path}, line {number}"
        try:
            given = json.loads(line)
            name, asked = str(given["image"]), str(given.get("question") or prompt)
            pair = CaptionPair(str(given["value"]), str(given["h_value"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidData(f"{where}: not {FORM} ({error}).") from None
        pairs.append((Request(asked, (find(name, where).load(),)), pair))
    return pairs


def made_up(folder: Path, prompt: str, limit: int) -> Paired:
    """Each picture's first caption, and the same with one sentence more on a thing that is absent.

    Of the things that are not in a picture, the one that shares most pictures with those that are.

    Args:
        folder: With images/, annotations/captions*.json and annotations/instances*.json.
        prompt: What is asked.
        limit: First N pictures that have a caption.

    Raises:
        InvalidData: A file is missing or damaged.
    """
    told, seen = (_annotations(folder, kind) for kind in ("captions", "instances"))
    names = {each["id"]: str(each["name"]) for each in seen.get("categories", [])}
    things: dict[Any, set[str]] = {}
    for each in seen["annotations"]:
        things.setdefault(each["image_id"], set()).add(names[each["category_id"]])
    together = {
        name: Counter(other for own in things.values() if name in own for other in own)
        for name in names.values()
    }
    captions = {each["image_id"]: str(each["caption"]) for each in reversed(told["annotations"])}
    find, pairs = folder_pictures(folder / "images"), Paired()
    for image in told["images"]:
        caption, file = captions.get(image["id"]), str(image["file_name"])
        if caption is None or len(pairs) == limit or not (folder / "images" / file).is_file():
            continue
        own = things.get(image["id"], set())
        often = sum((together[name] for name in sorted(own)), Counter[str]())
        absent = max((n for n in names.values() if n not in own), key=lambda n: (often[n], n))
        pair = CaptionPair(caption, f"{caption} There is also {_a(absent)} in the picture.")
        pairs.append((Request(prompt, (find(file, str(folder)).load(),)), pair))
    return pairs


def read_labels(path: Path, images: Path, limit: int) -> list[tuple[Request, LabelledCaption]]:
    """A run's captions, with the objects that CHAIR reads in them and those that are not there.

    Args:
        path: ``samples.jsonl`` of a run of chair; of its strategies, the plain model counts.
        images: Folder of its pictures.
        limit: First N captions.

    Raises:
        InvalidData: The file holds none, or a picture is not there.
    """
    find, reader = folder_pictures(images), reader_of(None)
    told: list[tuple[Request, LabelledCaption]] = []
    for line in read_lines(path):
        if (line.get("task"), line.get("strategy")) != ("chair", "greedy") or len(told) == limit:
            continue
        there = {True: list[int](), False: list[int]()}
        for mention in reader.read(line["answer"]).mentions:
            there[mention.object in line["objects"]].append(mention.start)
        labelled = LabelledCaption(line["answer"], tuple(there[True]), tuple(there[False]))
        told.append((Request(line["prompt"], (find(line["image"], str(path)).load(),)), labelled))
    if not told:
        raise InvalidData(
            f"{path}: no caption of the plain model is in it; it is to be the samples.jsonl that "
            "`halludecode eval --tasks chair --strategy greedy --output RUN` wrote."
        )
    return told


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _annotations(folder: Path, kind: str) -> Mapping[str, Any]:
    path = min((folder / "annotations").glob(f"{kind}*.json"), default=None)
    if path is None:
        raise InvalidData(
            f"{folder}: no pairs of captions can be made of it; it needs "
            "annotations/captions*.json and annotations/instances*.json, with images/ beside, or "
            f"give --images and a file of lines {FORM} as --annotations."
        )
    try:
        content = json.loads(read_text(path))
        needed = {"captions": ("image_id", "caption"), "instances": ("image_id", "category_id")}
        lists = [(content["images"], ("id", "file_name")), (content["annotations"], needed[kind])]
        if kind == "instances":
            lists.append((content["categories"], ("id", "name")))
        for entries, keys in lists:
            for entry in entries:
                [entry[key] for key in keys]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidData(
            f"{path}: not a COCO {kind} file ({error} is missing or of another type)."
        ) from None
    return content
