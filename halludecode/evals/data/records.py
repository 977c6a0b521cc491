"""Reads evaluation files record by record, so that every complaint can name file and line."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData


@dataclass(frozen=True)
class Record:
    """One JSON object of a file, or one row of a table, and where it stands.

    Args:
        where: ``file:line`` of its first character, or the row of a data set, for messages.
        fields: The object itself.
        line: The line, counted from 1.
        split: Name of the data set's split, or of the file.
    """

    where: str
    fields: Mapping[str, Any]
    line: int = 0
    split: str = ""

    def get(self, *names: str, kind: type | tuple[type, ...], what: str) -> Any:
        """The value under the first of ``names`` that is present.

        Args:
            names: Accepted keys, the contract's own first.
            kind: Accepted type or types of the value; bool never passes for int.
            what: Words for the type, used in the error.

        Raises:
            InvalidData: No such key, or a value of another type.
        """
        for name in names:
            if name in self.fields:
                value = self.fields[name]
                if not isinstance(value, kind) or isinstance(value, bool):
                    raise InvalidData(f'{self.where}: "{name}" is {value!r}; it must be {what}.')
                return value
        wanted = " or ".join(f'"{name}"' for name in names)
        found = ", ".join(f'"{key}"' for key in self.fields) or "none"
        raise InvalidData(f"{self.where}: key {wanted} is missing; the keys found are {found}.")


def read_text(path: Path | str) -> str:
    """The text of a file, gzip or plain, with a byte-order mark and CRLF line ends removed.

    Raises:
        InvalidData: The file is absent, unreadable or not UTF-8.
    """
    path = Path(path)
    if path.is_dir():
        raise InvalidData(f"{path} is a folder; give the path of a file.")
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise InvalidData(f"{path} does not exist; check the path.") from None
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InvalidData(f"{path}:{line}: not UTF-8 text; save the file as UTF-8.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidData(f"{path} cannot be read ({error}).") from None


def read_records(path: Path | str) -> list[Record]:
    """All JSON objects of a file: JSON lines, or one array however it is laid out; rows of a .csv.

    Blank lines between objects are skipped.

    Raises:
        InvalidData: The file is unreadable, empty, not JSON, or holds something else than objects.
    """
    path = Path(path)
    text = read_text(path)
    items = _items(path, text)
    records = []
    for line, value in items:
        if not isinstance(value, dict):
            raise InvalidData(
                f"{path}:{line}: expected a JSON object, found {type(value).__name__}; "
                "write one object a line."
            )
        records.append(Record(f"{path}:{line}", value, line))
    if not records:
        raise InvalidData(f"{path} holds no records; write one JSON object a line.")
    return records


def first_fields(path: Path | str) -> Mapping[str, Any]:
    """The first JSON object of a file, or the only one; to tell what the file holds.

    Returns:
        {} for a folder and for what is no JSON: whoever reads the file says what is wrong with it.

    Raises:
        InvalidData: The file is absent, unreadable or not UTF-8.
    """
    path = Path(path)
    if path.is_dir():
        return {}
    text = read_text(path)
    try:
        try:
            _, value = next(_items(path, text), (0, {}))
        except InvalidData:
            value = json.loads(text)  # an object over several lines
    except (InvalidData, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _items(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(line, object) of every one, by what the file looks like."""
    if path.name.removesuffix(".gz").endswith(".csv"):
        return _rows(path, text)
    return _array(path, text) if text.lstrip().startswith("[") else _lines(path, text)


def _rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    rows = csv.reader(text.splitlines(keepends=True), strict=True)
    header, line = None, 1
    try:
        for cells in rows:
            if cells and header is None:
                header = cells
            elif cells and header is not None:
                if len(cells) != len(header):
                    raise InvalidData(
                        f"{path}:{line}: {len(cells)} cells, and the first line has {len(header)}."
                    )
                yield line, dict(zip(header, cells, strict=True))
            line = rows.line_num + 1
    except csv.Error as error:
        raise InvalidData(f"{path}:{line}: not a table we can read ({error}).") from None


def _lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    # Only the line feed ends a line: other Unicode separators may stand inside a JSON string.
    for line, row in enumerate(text.split("\n"), start=1):
        if row.strip():
            try:
                yield line, json.loads(row)
            except json.JSONDecodeError as error:
                raise InvalidData(
                    f"{path}:{line}: not JSON ({error.msg} at column {error.colno}); "
                    "write one JSON object a line."
                ) from None
            except (ValueError, RecursionError) as error:
                raise InvalidData(f"{path}:{line}: not JSON we can read ({error}).") from None


def _array(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    decoder = json.JSONDecoder()
    at, line, counted = _skip(text, text.index("[") + 1), 1, 0
    while text[at : at + 1] != "]":
        line += text.count("\n", counted, at)
        counted = at
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise InvalidData(f"{path}:{error.lineno}: not JSON ({error.msg}).") from None
        except (ValueError, RecursionError) as error:
            raise InvalidData(f"{path}:{line}: not JSON we can read ({error}).") from None
        yield line, value
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            at_line = text.count("\n", 0, at) + 1
            raise InvalidData(f"{path}:{at_line}: not JSON (expected ',' or ']' in the array).")
    rest = _skip(text, at + 1)
    if rest < len(text):
        at_line = text.count("\n", 0, rest) + 1
        raise InvalidData(f"{path}:{at_line}: text after the closing ']' of the array.")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
