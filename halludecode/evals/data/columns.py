"""From rows of a data set to entries: which columns mean what, and to which task a row belongs.

Names are those of the data sets on the hub and of VLMEvalKit's tables:

- questions (POPE, MME, AMBER): question_id | index | id, image, question | text, answer | label;
  category (POPE's splits, also several by commas, MME's subtasks, AMBER's types; without it the
  split's name is POPE's), image_source | image_path
- captions (CHAIR): image, image_id | file_name | question_id | id (COCO's id, alone or as COCO's
  file name), objects | gt_object (a list, also as JSON; without it the shipped sets of COCO 2014)
- AMBER's descriptions: question_id | id | index, image, truth, hallu
- HallusionBench: category, subcategory, set_id, figure_id, question_id, visual_input, question,
  gt_answer, image, filename; or VLMEvalKit's index, category, l2-category, question, answer, image

Another data set's names are mapped to the first of each with a column map.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks import folder_tasks as benchmarks
from halludecode.evals.benchmarks.amber import scoring as amber
from halludecode.evals.benchmarks.chair import scoring as chair
from halludecode.evals.benchmarks.chair.object_words import vocabulary
from halludecode.evals.benchmarks.hallusionbench import scoring as hallusion
from halludecode.evals.benchmarks.mme import scoring as mme
from halludecode.evals.data.entries import Entry
from halludecode.evals.data.records import Record
from halludecode.evals.presets import POPE_SPLITS

DESCRIBE = "Describe this image."  # AMBER's query for all its descriptions
Key = tuple[str, str | None]  # task and split
# (our names to cells, place, name of the picture, split of the data set) -> entries of units
Reader = Callable[[Mapping[str, Any], str, str, str], Iterable[tuple[Key, Entry]]]


@dataclass(frozen=True)
class Shape:
    """One kind of table.

    Args:
        tasks: The tasks its rows can belong to.
        signs: Sets of columns, any of which gives it away.
        needs: Our columns to their names in data sets, ours first.
        takes: The same for columns that may be absent.
        names: Columns that name a picture, the best first; without any, its content does. An id
            does so if every row has a picture of its own, or if it is written as a path (MME).
        read: Makes entries of a row.
        single: Whether every row has a picture of its own.
        apart: Whether what belongs together may stand far apart, so that all rows must be read.
    """

    tasks: tuple[str, ...]
    signs: tuple[frozenset[str], ...]
    needs: Mapping[str, tuple[str, ...]]
    takes: Mapping[str, tuple[str, ...]]
    names: tuple[str, ...]
    read: Reader
    single: bool = False
    apart: bool = False


def shape_of(columns: Iterable[str], tasks: Sequence[str], given: Mapping[str, str]) -> Shape:
    """The kind of table that columns make; without a sign of any, that of the first task.

    Args:
        columns: The columns found.
        tasks: The tasks asked for.
        given: Column map, our names to the data set's.
    """
    known = {*columns, *given}
    fits = [shape for shape in SHAPES if any(sign <= known for sign in shape.signs)]
    wanted = [shape for task in tasks for shape in SHAPES if task in shape.tasks]
    return next((s for s in fits if s in wanted), fits[0] if fits else _nearest(wanted, known))


def _nearest(shapes: Sequence[Shape], columns: set[str]) -> Shape:
    """The shape that misses least."""
    return min(shapes, key=lambda s: sum(columns.isdisjoint(a) for a in s.needs.values()))


def map_columns(
    shape: Shape, source: str, found: Sequence[str], given: Mapping[str, str]
) -> dict[str, str]:
    """Our names to the data set's.

    Args:
        shape: The kind of table.
        source: Name of the data set and its split, for messages.
        found: Its columns.
        given: Column map, which goes before the known names.

    Raises:
        InvalidData: A column is missing (the found ones are listed), or the map has a name that is
            none of ours.
    """
    wanted = {**shape.needs, **shape.takes}
    unknown = [name for name in given if name not in wanted]
    if unknown:
        raise InvalidData(
            f"Column map: {unknown[0]!r} is none of {', '.join(wanted)}; map our names to the "
            "data set's."
        )
    columns = {}
    for name, accepted in wanted.items():
        theirs = [given[name]] if name in given else accepted
        there = next((column for column in theirs if column in found), None)
        if there is not None:
            columns[name] = there
        elif name in shape.needs or name in given:
            raise InvalidData(
                f"{source}: no column {' or '.join(map(repr, theirs))} for {name}; found "
                f"{', '.join(found)}. Map it with --columns {name}=THEIRS."
            )
    return columns


def _said(value: Any) -> str:
    """A cell as text; whole numbers may have become floats in a table."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _id(value: Any) -> int | str:
    text = _said(value)
    return int(text) if text.isdecimal() else text


# Questions --------------------------------------------------------------------------------------


def _question(
    cells: Mapping[str, Any], where: str, picture: str, split: str
) -> Iterable[tuple[Key, Entry]]:
    label = _said(cells["answer"]).strip().lower()
    if label not in ("yes", "no"):
        raise InvalidData(f"{where}: answer {cells['answer']!r} is neither yes nor no.")
    name, text = _id(cells["question_id"]), _said(cells["question"])
    own = next((name for name in POPE_SPLITS if name in split), split)
    categories = _said(cells["category"]).split(",") if "category" in cells else [own]
    for category in map(str.strip, categories):
        if category in mme.SUBTASKS:
            named = str(name) if "/" in str(name) else picture
            file = f"{category}/{PurePosixPath(named).name}"
            yield ("mme", None), Entry(file, text, file, where, label)
        elif category in amber.TYPES:
            facts = {"type": category}
            yield ("amber", None), Entry(name, text, picture, where, label, facts=facts)
        elif category in POPE_SPLITS or "category" not in cells:
            yield ("pope", category), Entry(name, text, picture, where, label)
        else:
            raise InvalidData(
                f"{where}: category {category!r} is neither POPE's ({', '.join(POPE_SPLITS)}) nor "
                "one of MME's subtasks or AMBER's types."
            )


# Captions ---------------------------------------------------------------------------------------


@cache
def _shipped() -> Mapping[int, frozenset[str]]:
    return chair.load_truth()


def _caption(
    cells: Mapping[str, Any], where: str, picture: str, split: str
) -> Iterable[tuple[Key, Entry]]:
    given = _said(cells["image_id"])
    digits = re.fullmatch(r"(?:COCO_\w+_)?(\d+)(?:\.jpg)?", given)
    if digits is None:
        raise InvalidData(f"{where}: image id {given!r} is neither a number nor COCO's file name.")
    name = int(digits[1])
    if "objects" in cells:
        objects = _listed(cells["objects"], where)
        foreign = [thing for thing in objects if thing not in set(vocabulary().values())]
        if foreign:
            raise InvalidData(
                f"{where}: object {foreign[0]!r} is not among CHAIR's 80 COCO categories."
            )
    elif name in _shipped():
        objects = list(_shipped()[name])
    else:
        raise InvalidData(
            f"{where}: image id {name} is none of COCO 2014, whose objects are known; give a "
            "column of objects."
        )
    yield ("chair", None), Entry(name, "", picture, where, objects=tuple(sorted(set(objects))))


def _listed(value: Any, where: str) -> list[str]:
    """A list of words, which may be written as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise InvalidData(f"{where}: expected a list of words.")
    return value


# AMBER and HallusionBench -----------------------------------------------------------------------


def _description(
    cells: Mapping[str, Any], where: str, picture: str, split: str
) -> Iterable[tuple[Key, Entry]]:
    lists = {name: _listed(cells[name], where) for name in ("truth", "hallu")}
    fields = {"id": _id(cells["question_id"]), "type": "generative", **lists}
    item = amber.make_item(Record(where, fields))
    yield ("amber", None), benchmarks.amber_entry(replace(item, query=DESCRIBE, image=picture))


def _hallusion(
    cells: Mapping[str, Any], where: str, picture: str, split: str
) -> Iterable[tuple[Key, Entry]]:
    fields = {name: value if value is None else _said(value) for name, value in cells.items()}
    fields.setdefault("visual_input", None)
    if "index" in fields:  # VLMEvalKit's: its last three parts are set, figure and question
        parts = str(fields["index"]).rsplit("_", 3)
        if len(parts) != 4:
            raise InvalidData(f"{where}: index {fields['index']!r} does not end in three numbers.")
        fields |= dict(zip(("set_id", "figure_id", "question_id"), parts[1:], strict=True))
    answer = str(fields["gt_answer"])
    fields["gt_answer"] = {"yes": "1", "no": "0"}.get(answer.strip().lower(), answer)
    question = replace(hallusion.make_question(Record(where, fields)), image=picture or None)
    yield ("hallusionbench", None), benchmarks.hallusion_entry(question)


# Shapes -----------------------------------------------------------------------------------------

_ID = {"question_id": ("question_id", "index", "id")}
_SHOWN = {"image": ("image",)}
SHAPES: tuple[Shape, ...] = (
    Shape(
        ("hallusionbench",),
        (frozenset({"set_id", "figure_id", "gt_answer"}),),
        {
            **{name: (name,) for name in ("category", "subcategory", "set_id", "figure_id")},
            **{name: (name,) for name in ("question_id", "question", "gt_answer")},
        },
        {"visual_input": ("visual_input",), "filename": ("filename",), **_SHOWN},
        ("filename",),
        _hallusion,
        apart=True,
    ),
    Shape(
        ("hallusionbench",),
        (frozenset({"index", "l2-category"}),),
        {
            **{"index": ("index",), "category": ("category",), "subcategory": ("l2-category",)},
            **{"question": ("question",), "gt_answer": ("answer",), **_SHOWN},
        },
        {"filename": ("image_path",)},
        ("filename",),
        _hallusion,
        apart=True,
    ),
    Shape(
        ("amber",),
        (frozenset({"truth", "hallu"}),),
        {**_ID, **_SHOWN, "truth": ("truth",), "hallu": ("hallu",)},
        {"image_source": ("image_source", "image_path")},
        ("image_source", "question_id"),
        _description,
        single=True,
    ),
    Shape(
        ("chair",),
        tuple(frozenset({name}) for name in ("objects", "gt_object", "file_name", "coco_url")),
        {"image_id": ("image_id", "file_name", "question_id", "id"), **_SHOWN},
        {"objects": ("objects", "gt_object"), "image_source": ("file_name", "image_path")},
        ("image_source", "image_id"),
        _caption,
        single=True,
    ),
    Shape(
        ("pope", "mme", "amber"),
        (frozenset({"question", "answer"}), frozenset({"text", "label"})),
        {**_ID, **_SHOWN, "question": ("question", "text"), "answer": ("answer", "label")},
        {"category": ("category",), "image_source": ("image_source", "image_path")},
        ("image_source", "question_id"),
        _question,
    ),
)
