"""Which columns of a table, or keys of a JSON line, mean what; and what a cell says."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.data.records import Record


@dataclass(frozen=True)
class Columns:
    """One kind of table (of JSON lines) that a benchmark reads.

    Args:
        needs: Our columns to the names they have in data sets, ours first.
        takes: The same for columns that may be absent.
        signs: Sets of columns, any of which gives the table away; without any, all of ``needs``.
        pictures: Our columns that hold a picture; what is read of them is its name.
        several: Whether they hold a list of pictures; what is read of them is a tuple of names.
        names: Columns that name a row's picture, the best first; without any, its content does. An
            id does so if every row has a picture of its own, or if it is written as a path (MME).
        single: Whether every row has a picture of its own.
        apart: Whether what belongs together may stand far apart, so that all rows must be read.
    """

    needs: Mapping[str, tuple[str, ...]]
    takes: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    signs: tuple[frozenset[str], ...] = ()
    pictures: tuple[str, ...] = ("image",)
    several: bool = False
    names: tuple[str, ...] = ()
    single: bool = False
    apart: bool = False

    def fits(self, found: Collection[str]) -> bool:
        """Whether a table with these columns is of this kind."""
        if self.signs:
            return any(sign <= set(found) for sign in self.signs)
        return self.lacks(found) == 0

    def lacks(self, found: Collection[str]) -> int:
        """How many needed columns are not among these."""
        return sum(set(found).isdisjoint({name, *names}) for name, names in self.needs.items())


def map_columns(
    columns: Columns, source: str, found: Sequence[str], given: Mapping[str, str]
) -> dict[str, str]:
    """Our names to the data set's.

    Args:
        columns: The kind of table.
        source: Name of the data set and its split, for messages.
        found: Its columns.
        given: Column map, which goes before the known names.

    Raises:
        InvalidData: A column is missing (the found ones are listed), or the map has a name that is
            none of ours.
    """
    wanted = {**columns.needs, **columns.takes}
    unknown = [name for name in given if name not in wanted]
    if unknown:
        raise InvalidData(
            f"Column map: {unknown[0]!r} is none of {', '.join(wanted)}; map our names to the "
            "data set's."
        )
    mapped = {}
    for name, accepted in wanted.items():
        theirs = [given[name]] if name in given else accepted
        there = next((column for column in theirs if column in found), None)
        if there is not None:
            mapped[name] = there
        elif name in columns.needs or name in given:
            raise InvalidData(
                f"{source}: no column {' or '.join(map(repr, theirs))} for {name}; found "
                f"{', '.join(found)}. Map it with --columns {name}=THEIRS."
            )
    return mapped


def cells_of(columns: Columns, names: Mapping[str, str], record: Record) -> dict[str, Any]:
    """A line's cells under our names.

    Args:
        columns: The kind of table.
        names: Our names to the file's, as its first line has them.
        record: The line.

    Raises:
        InvalidData: A cell that is needed is missing or null, or a picture is no name of a file.
    """
    for ours in columns.needs:
        if columns.several and ours in columns.pictures:
            given = record.get(names[ours], kind=list, what="a list of file names")
            if not given or not all(isinstance(name, str) for name in given):
                raise InvalidData(f"{record.where}: {names[ours]} is no list of file names.")
        elif ours in columns.pictures or names[ours] not in record.fields:
            record.get(names[ours], kind=str, what="a file name")
    cells = {ours: record.fields[n] for ours, n in names.items() if n in record.fields}
    refuse_null(columns, cells, record.where)
    return cells


def refuse_null(columns: Columns, cells: Mapping[str, Any], where: str) -> None:
    """Refuses a row that has nothing in a cell that is needed: it would be asked as ``None``."""
    for name in columns.needs:
        if name in cells and cells[name] is None:
            raise InvalidData(f"{where}: {name} is empty; every row needs it.")


def said(value: Any) -> str:
    """A cell as text; whole numbers may have become floats in a table."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def read_id(value: Any) -> int | str:
    """A cell as an id: a whole number where it is written as one."""
    text = said(value)
    return int(text) if text.isdecimal() else text


def yes_or_no(value: Any, where: str) -> str:
    """A cell as ``yes`` or ``no``.

    Raises:
        InvalidData: It is neither.
    """
    label = said(value).strip().lower()
    if label not in ("yes", "no"):
        raise InvalidData(f"{where}: answer {value!r} is neither yes nor no.")
    return label


def words_of(value: Any, where: str) -> list[str]:
    """A cell as a list of words, which may be written as JSON.

    Raises:
        InvalidData: It is no such list.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise InvalidData(f"{where}: expected a list of words.")
    return value


def nearest(kinds: Iterable[Columns], found: Collection[str]) -> Columns | None:
    """The kind of table that misses least; None of none."""
    return min(kinds, key=lambda kind: kind.lacks(found), default=None)
