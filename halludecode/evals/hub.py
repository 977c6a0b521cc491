"""POPE and MME as hub data sets, by id or as a folder in the hub's format.

Column names are those of ``lmms-lab/POPE`` and ``lmms-lab/MME``; others are named with a column
map. CHAIR has no hub form here: its ground truth comes from COCO files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData, MissingExtra
from halludecode.evals import mme
from halludecode.evals.data_sources import Entry, Pictures, Selection, in_turn, make_unit
from halludecode.evals.task import POPE_SPLITS, Picture, Unit

COLUMNS = ("question_id", "image", "question", "answer", "category", "image_source")
REQUIRED = ("question_id", "image", "question", "answer")


def hub_units(source: str, selection: Selection) -> list[Unit]:
    """Reads a hub data set and finds out from its categories whether it is POPE or MME.

    Args:
        source: ``owner/name``, ``owner/name@revision``, or a local folder in the hub's format.
        selection: Tasks, prompts, limits, column map.

    Raises:
        InvalidData: It cannot be loaded, a column is missing (the found ones are listed), or it is
            neither POPE nor MME.
        MissingExtra: ``datasets`` is not installed.
    """
    splits, revision = _load(source)
    local = Path(source).is_dir()
    data = Path(source).resolve().name if local else source.partition("@")[0]
    groups: dict[str, list[Entry]] = {}
    cells: dict[str, tuple[Any, int]] = {}  # picture name -> image column and row
    for split, rows in splits.items():
        columns = _columns(source, split, rows.column_names, selection.columns)
        encoded = _encoded(rows, columns["image"])
        for number, (category, entry) in enumerate(_entries(source, split, rows, columns)):
            groups.setdefault(category, []).append(entry)
            cells.setdefault(entry.image, (encoded, number))
    pictures = _pictures(cells)
    if set(groups) <= set(POPE_SPLITS):
        return _pope(data, groups, pictures, selection, revision)
    if set(groups) <= set(mme.SUBTASKS):
        if "mme" not in selection.tasks:
            return []
        entries = [entry for members in groups.values() for entry in members]
        return [make_unit("mme", data, None, in_turn(entries), pictures, selection, revision)]
    raise InvalidData(
        f"{source}: categories {', '.join(sorted(groups)[:5])} are neither POPE's "
        f"({', '.join(POPE_SPLITS)}) nor MME's subtasks; CHAIR needs COCO files "
        "(--images, --annotations)."
    )


def _pope(
    data: str,
    groups: Mapping[str, list[Entry]],
    pictures: Pictures,
    selection: Selection,
    revision: str | None,
) -> list[Unit]:
    if "pope" not in selection.tasks:
        return []
    missing = [name for name in selection.splits if name not in groups]
    if missing:
        raise InvalidData(f"{data}: no {missing[0]} split; found {', '.join(groups)}.")
    wanted = [n for n in POPE_SPLITS if n in groups and n in (selection.splits or POPE_SPLITS)]
    return [
        make_unit("pope", data, name, groups[name], pictures, selection, revision)
        for name in wanted
    ]


def _load(source: str) -> tuple[dict[str, Any], str | None]:
    """Data set splits by name, and the revision they are of."""
    try:
        import datasets
    except ImportError:
        raise MissingExtra(
            f'{source} needs the datasets package: pip install "halludecode[eval]".'
        ) from None
    name, _, revision = source.partition("@")
    try:
        folder = Path(name)
        if any((folder / mark).exists() for mark in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(name)
        else:
            revision = revision or ("" if folder.is_dir() else _head(name))
            loaded = datasets.load_dataset(name, revision=revision or None)
    except Exception as error:  # datasets, huggingface_hub and pyarrow each have their own families
        reason = " ".join(str(error).split())[:200]
        raise InvalidData(f"{source}: the data set cannot be loaded ({reason}).") from None
    splits = dict(loaded) if isinstance(loaded, dict) else {"test": loaded}
    if "test" in splits:
        splits = {"test": splits["test"]}
    return splits, revision or None


def _head(name: str) -> str:
    """The commit a hub data set stands at, so that the run can name it; "" when offline."""
    try:
        from huggingface_hub import HfApi

        return HfApi().dataset_info(name).sha or ""
    except Exception:  # offline with a cached copy is fine, and then datasets says what is wrong
        return ""


def _columns(source: str, split: str, found: list[str], given: Mapping[str, str]) -> dict[str, str]:
    unknown = [name for name in given if name not in COLUMNS]
    if unknown:
        raise InvalidData(
            f"Column map: {unknown[0]!r} is none of {', '.join(COLUMNS)}; map our names to the "
            "data set's."
        )
    columns = {name: given.get(name, name) for name in COLUMNS}
    for name in COLUMNS:
        if columns[name] not in found:
            if name in REQUIRED or name in given:
                raise InvalidData(
                    f"{source} ({split}): no column {columns[name]!r} for {name}; found "
                    f"{', '.join(found)}. Map it with columns={{{name!r}: ...}}."
                )
            del columns[name]
    return columns


def _entries(
    source: str, split: str, rows: Any, columns: Mapping[str, str]
) -> list[tuple[str, Entry]]:
    """(category, entry) of every row, in order."""
    words = rows.select_columns([c for name, c in columns.items() if name != "image"])
    asked: dict[str, int] = {}
    entries = []
    for number, row in enumerate(words):
        where = f"{source} ({split}), row {number}"
        value = {name: row[column] for name, column in columns.items() if name != "image"}
        label = str(value["answer"]).strip().lower()
        if label not in ("yes", "no"):
            raise InvalidData(f"{where}: answer {value['answer']!r} is neither yes nor no.")
        category, name = str(value.get("category", split)), str(value["question_id"])
        key: int | str = int(name) if name.isdigit() else name
        if category in POPE_SPLITS:
            image = value.get("image_source")
            name = f"{split} row {number}" if image is None else f"{image}.jpg"
        else:  # MME: one id for the two questions of a picture
            name = name if "/" in name else f"{category}/{name}"
            k = asked[name] = asked.get(name, 0) + 1
            key = f"{name}#{k}"
        entries.append((category, Entry(key, str(value["question"]), name, where, label=label)))
    return entries


def _encoded(rows: Any, column: str) -> Any:
    """The image column as ``{"bytes", "path"}``, so that pictures are hashed, not decoded."""
    from datasets import Image

    return rows.select_columns([column]).cast_column(column, Image(decode=False))


def _pictures(cells: Mapping[str, tuple[Any, int]]) -> Pictures:
    known: dict[str, Picture] = {}

    def find(name: str, where: str) -> Picture:
        if name not in known:
            encoded, row = cells[name]
            (column,) = encoded.column_names

            def read() -> bytes:
                value = encoded[row][column]
                if not value or (value["bytes"] is None and not value["path"]):
                    raise InvalidData(f"{where}: there is no picture.")
                return (
                    value["bytes"]
                    if value["bytes"] is not None
                    else Path(value["path"]).read_bytes()
                )

            known[name] = Picture(name, read, where, hashlib.sha256(read()).hexdigest()[:16])
        return known[name]

    return find
