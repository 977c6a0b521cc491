"""AMBER's files: annotations, word lists and queries.

Of junyangwang0410/AMBER (Apache-2.0), folder ``data``; they are read from a path. Only the word
lists are shipped, for descriptions that come from the hub without them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.data.records import Record, read_records, read_text

# Types of the annotation file, by the part of the table they are counted in.
TYPES: Mapping[str, str] = MappingProxyType(
    {
        "generative": "generative",
        "discriminative-hallucination": "existence",
        "discriminative-attribute-state": "state",
        "discriminative-attribute-number": "number",
        "discriminative-attribute-action": "action",
        "discriminative-relation": "relation",
        "relation": "relation",
    }
)
ATTRIBUTES = ("state", "number", "action")
WORDS = Path(__file__).parent / "data"
DIMENSIONS = ("generative", "existence", "attribute", "relation")  # one query file each


@dataclass(frozen=True)
class AmberItem:
    """One thing asked for: a description, or the answer to a question.

    Args:
        id: Id in the annotation file.
        type: A key of `TYPES`.
        label: ``yes`` or ``no``; None for descriptions.
        truth: Objects in the picture (descriptions only); a repeated one counts each time.
        hallu: Absent objects that people might think of (descriptions only).
        image: File name of the picture; None where no query file names it.
        query: What the model is asked; None as ``image``.
        where: ``file:line`` of the query, else of the annotation.
    """

    id: int
    type: str
    label: str | None = None
    truth: tuple[str, ...] = ()
    hallu: tuple[str, ...] = ()
    image: str | None = None
    query: str | None = None
    where: str = field(default="", compare=False, repr=False)

    @property
    def part(self) -> str:
        """``generative``, ``existence``, ``state``, ``number``, ``action`` or ``relation``."""
        return TYPES[self.type]

    @property
    def dimension(self) -> str:
        """One of `DIMENSIONS`."""
        return "attribute" if self.part in ATTRIBUTES else self.part


@dataclass(frozen=True)
class Lexicon:
    """The words AMBER knows.

    Args:
        relation: Object to words that stand for it; every other word of a description is ignored.
        safe: Words that are never a hallucination, but count as words.
    """

    relation: Mapping[str, Sequence[str]]
    safe: Collection[str]

    @cached_property
    def words(self) -> frozenset[str]:
        """All words that count."""
        return frozenset(self.relation).union(*self.relation.values())


# Reading -----------------------------------------------------------------------------------------


def load_items(path: Path | str) -> list[AmberItem]:
    """Reads AMBER's annotations, and from the query files which picture an item is about.

    Args:
        path: The ``data`` folder of AMBER's repository, or its ``annotations.json``. Query files
            are ``query/query_*.json`` beside it, or ``query_*.json``; without any, items are taken
            to be of different pictures.

    Raises:
        InvalidData: Unreadable, a key is missing or has an impossible value, or an id occurs twice.
    """
    file = _beside(path, "annotations.json")
    queries = _queries(file.parent)
    items: dict[int, AmberItem] = {}
    for record in read_records(file):
        item = make_item(record)
        if item.id in items:
            raise InvalidData(f"{record.where}: id {item.id} occurs a second time; list it once.")
        items[item.id] = replace(item, **queries.pop(item.id, {}))
    if queries:
        name, query = next(iter(queries.items()))
        raise InvalidData(f"{query['where']}: id {name} is not in {file}.")
    return list(items.values())


def load_lexicon(path: Path | str = WORDS) -> Lexicon:
    """Reads ``relation.json`` and ``safe_words.txt`` from the folder of the annotations.

    Args:
        path: The folder, or the ``annotations.json`` in it; by default the shipped ones.

    Raises:
        InvalidData: A file is absent, or ``relation.json`` is not words by object.
    """
    file = _beside(path, "relation.json")
    try:
        relation = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise InvalidData(f"{file}:{error.lineno}: not JSON ({error.msg}).") from None
    if not isinstance(relation, dict) or not all(map(_words, relation.values())):
        raise InvalidData(f"{file}: expected an object that maps every word to a list of words.")
    safe = read_text(_beside(path, "safe_words.txt")).split("\n")
    return Lexicon(relation, frozenset(safe))


def files(path: Path | str) -> dict[str, Path]:
    """The annotation files that are there, by name: ``annotations``, ``relation``, ``safe_words``.

    Args:
        path: As `load_items`.
    """
    names = ("annotations.json", "relation.json", "safe_words.txt")
    found = [_beside(path, name) for name in names]
    return {Path(name).stem: f for name, f in zip(names, found, strict=True) if f.is_file()}


def _beside(path: Path | str, name: str) -> Path:
    path = Path(path)
    if path.is_dir():
        return path / name
    return path if name == "annotations.json" else path.parent / name


def _queries(folder: Path) -> dict[int, dict[str, str]]:
    """Picture, words and place of every query, by id."""
    queries: dict[int, dict[str, str]] = {}
    for file in sorted([*folder.glob("query_*.json"), *folder.glob("query/query_*.json")]):
        for record in read_records(file):
            name = record.get("id", kind=int, what="a whole number")
            query = {
                "image": record.get("image", kind=str, what="a file name"),
                "query": record.get("query", kind=str, what="the question"),
                "where": record.where,
            }
            known = queries.setdefault(name, query)  # query_all.json repeats the others
            if (known["image"], known["query"]) != (query["image"], query["query"]):
                raise InvalidData(
                    f"{record.where}: id {name} is asked differently at {known['where']}."
                )
    return queries


def make_item(record: Record) -> AmberItem:
    """One annotation: ``id``, ``type``, ``truth`` and, for descriptions, ``hallu``.

    Raises:
        InvalidData: A key is missing or has an impossible value.
    """
    where = record.where
    name = record.get("id", kind=int, what="a whole number")
    kind = record.get("type", kind=str, what="a string")
    if kind not in TYPES:
        raise InvalidData(f"{where}: type {kind!r} of id {name} is none of {', '.join(TYPES)}.")
    if kind == "generative":
        lists = [record.get(key, kind=list, what="a list of words") for key in ("truth", "hallu")]
        if not all(map(_words, lists)):
            raise InvalidData(f"{where}: truth and hallu of id {name} must list words.")
        return AmberItem(name, kind, None, tuple(lists[0]), tuple(lists[1]), where=where)
    label = record.get("truth", kind=str, what='"yes" or "no"')
    if label not in ("yes", "no"):
        raise InvalidData(f'{where}: truth of id {name} is {label!r}, not "yes" or "no".')
    return AmberItem(name, kind, label, where=where)


def _words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)
