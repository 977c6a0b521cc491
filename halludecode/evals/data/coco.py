"""Reads COCO files, with a sentence for what is wrong in them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from halludecode.core.errors import InvalidData, MissingExtra
from halludecode.evals.data.records import read_text

# What the entries of a COCO file must have, by the list they stand in.
INSTANCES = {"images": ("id",), "annotations": ("image_id", "category_id"), "categories": ("name",)}
REFERENCES = {"images": ("id",), "annotations": ("image_id", "caption")}


def read_coco(path: Path | str, needs: Mapping[str, Sequence[str]]) -> Any:
    """A COCO file as pycocotools' object.

    Args:
        path: The file.
        needs: Lists it must have, such as `INSTANCES`, and the keys of their entries.

    Raises:
        InvalidData: Unreadable or not COCO.
        MissingExtra: pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
    except ImportError:
        raise MissingExtra(
            'COCO files are read with pycocotools; pip install "halludecode[eval]".'
        ) from None
    try:
        data = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InvalidData(f"{path}:{error.lineno}: not JSON ({error.msg}).") from None
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{path}: not JSON we can read ({error}).") from None
    for part, keys in needs.items():
        if not isinstance(data, dict) or part not in data:
            raise InvalidData(f'{path}: not a COCO file, "{part}" is missing at its top level.')
        _check_entries(path, part, data[part], keys)
    _same_ids(path, data)
    coco = COCO()
    coco.dataset = data
    try:
        _index(coco)
    except (KeyError, TypeError) as error:
        raise InvalidData(f"{path}: not a COCO file, an entry lacks {error}.") from None
    if "categories" in needs:
        _check_categories(path, coco)
    return coco


def _check_entries(path: Path | str, part: str, entries: Any, keys: Sequence[str]) -> None:
    if not isinstance(entries, list):
        raise InvalidData(f'{path}: not a COCO file, "{part}" is no list.')
    for number, entry in enumerate(entries):
        lack = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if lack:
            raise InvalidData(f"{path}: not a COCO file, {part}[{number}] lacks {lack[0]!r}.")


_REFERENCES = {"image_id": "images", "category_id": "categories"}


def _same_ids(path: Path | str, data: dict[str, Any]) -> None:
    """Makes whole numbers of ids that are written as text, and refuses ids that name nothing.

    pycocotools takes 1 and "1" for two pictures, and a picture without annotations for an empty
    one.
    """
    ids = {part: _numbers(data.get(part, ()), "id") for part in ("images", "categories")}
    for key, part in _REFERENCES.items():
        named = _numbers(data["annotations"], key)
        if part == "images" and named and ids[part] and not named & ids[part]:
            raise InvalidData(
                f"{path}: no annotation is of one of its {part}: {key} {next(iter(named))!r} is "
                f"the first, and {part} have ids such as {next(iter(ids[part]))!r}."
            )


def _numbers(entries: Sequence[dict[str, Any]], key: str) -> set[Any]:
    """The ids under a key, made whole numbers in place where they are written as such."""
    found = set()
    for entry in entries:
        if key not in entry:
            continue
        value = entry[key]
        if isinstance(value, str) and value.isdecimal():
            value = entry[key] = int(value)
        if isinstance(value, int | str):
            found.add(value)
    return found


def file_name(image: Mapping[str, Any]) -> str | None:
    """A picture's file name; where only its address is told, as in LVIS, the end of that."""
    name = image.get("file_name") or PurePosixPath(str(image.get("coco_url") or "")).name
    return str(name) or None


def _index(coco: Any) -> None:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco.createIndex()


def _check_categories(path: Path | str, coco: Any) -> None:
    for annotation in coco.anns.values():
        if annotation["category_id"] not in coco.cats:
            raise InvalidData(
                f"{path}: annotation {annotation['id']} is of category "
                f"{annotation['category_id']!r}, which the file does not list."
            )
