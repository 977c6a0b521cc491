"""Rows of a data set, wherever they lie: stored by `datasets`, streamed, or in VLMEvalKit's table.

Words and pictures are read apart, so that a picture is fetched only if a question about it is
asked: a streamed data set of Parquet files is first read without its picture column, then as far
as the last picture that is wanted.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

from halludecode.core.errors import InvalidData

_PATH = 1024  # longer texts are pictures
Read = Callable[[int], bytes]  # row -> encoded picture


class Rows(Protocol):
    """A table: one split of a data set.

    Attributes:
        name: Name of the split.
        columns: Names of its columns.
        folder: What paths of pictures start from; None is the current one.
    """

    name: str
    columns: Sequence[str]
    folder: Path | None

    def where(self, number: int) -> str:
        """Place of a row, counted from 0, for messages."""
        ...

    def words(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """These columns of every row in order; pictures are not decoded."""
        ...

    def pictures(self, column: str, numbers: Collection[int]) -> Read:
        """Reads pictures of these rows.

        Raises:
            InvalidData: Now or when a row is read: there is no picture.
        """
        ...


def encoded(cell: Any, where: str, folder: Path | None = None) -> bytes:
    """A picture's bytes from what a data set holds of it.

    Args:
        cell: Bytes, ``{"bytes", "path"}``, a path, a data URL, or base64.
        where: Its place, for messages.
        folder: What a path starts from, or its ``images``.

    Raises:
        InvalidData: There is no picture in it.
    """
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes) and cell:
        return cell
    if not isinstance(cell, str) or not cell:
        raise InvalidData(f"{where}: there is no picture.")
    try:
        for place in (folder or Path(), (folder or Path()) / "images"):
            if len(cell) < _PATH and (place / cell).is_file():
                return (place / cell).read_bytes()
        if len(cell) < _PATH and "://" in cell:  # a streamed file of the hub
            import fsspec

            with fsspec.open(cell, "rb") as file:
                return bytes(file.read())
        if len(cell) > 64:  # shorter ones are paths
            return base64.b64decode(cell.rpartition("base64,")[2], validate=True)
    except (binascii.Error, ValueError, OSError):
        pass
    named = cell if len(cell) < _PATH else f"{cell[:80]}..."  # a path is told to its end
    raise InvalidData(f"{where}: picture {named!r} does not exist or cannot be read.")


def name_of(cell: Any, where: str, folder: Path | None = None) -> str:
    """A name for a picture without one: its path, if it has one, else made of its content.

    Args:
        cell: As for `encoded`.
        where: Its place, for messages.
        folder: What a path starts from.
    """
    path = cell.get("path") if isinstance(cell, Mapping) and not cell.get("bytes") else cell
    if isinstance(path, str) and len(path) < _PATH and not path.startswith("data:"):
        inside = folder is not None and Path(path).is_relative_to(folder.resolve())
        return Path(path).relative_to(folder.resolve()).as_posix() if inside and folder else path
    return hashlib.sha256(encoded(cell, where, folder)).hexdigest()[:12]


@dataclass
class Stored:
    """A split that `datasets` keeps on disk.

    Args:
        name: Name of the split.
        rows: The ``Dataset``.
        where: Place of a row.
        folder: What paths of pictures start from.
    """

    name: str
    rows: Any
    where: Callable[[int], str]
    folder: Path | None = None

    @property
    def columns(self) -> Sequence[str]:
        """Names of its columns."""
        return list(self.rows.column_names)

    def words(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """See `Rows`."""
        return iter(_undecoded(self.rows.select_columns(list(columns))))

    def pictures(self, column: str, numbers: Collection[int]) -> Read:
        """See `Rows`; every picture is read when it is needed."""
        cells = _undecoded(self.rows.select_columns([column]))
        return lambda n: encoded(cells[n][column], self.where(n), self.folder)


@dataclass
class Streamed:
    """A split that is read from its source row by row.

    Args:
        name: Name of the split.
        stream: Columns wanted (None is all) to a fresh ``IterableDataset``.
        where: Place of a row.
        folder: What paths of pictures start from.
    """

    name: str
    stream: Callable[[Sequence[str] | None], Any]
    where: Callable[[int], str]
    folder: Path | None = None
    columns: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        rows = self.stream(None)
        self.columns = list(rows.column_names or next(iter(rows), {}))

    def words(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """See `Rows`."""
        for row in self._read(columns):
            yield {name: row.get(name) for name in columns}

    def pictures(self, column: str, numbers: Collection[int]) -> Read:
        """See `Rows`; the pictures are read now, and no row behind the last of them."""
        wanted, last, found = set(numbers), max(numbers, default=-1), dict[int, bytes]()
        if not wanted:
            return found.__getitem__
        for number, row in enumerate(self._read([column])):
            if number in wanted:
                found[number] = encoded(row.get(column), self.where(number), self.folder)
            if number == last:
                break
        return found.__getitem__

    def _read(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        number = 0
        try:
            for row in _undecoded(self.stream(columns)):
                yield row
                number += 1
        except InvalidData:
            raise
        except Exception as error:  # pyarrow, JSON and the network each have their own families
            reason = " ".join(str(error).split())[:200]
            raise InvalidData(f"{self.where(number)}: cannot be read ({reason}).") from None


def _undecoded(rows: Any) -> Any:
    """The rows with pictures as ``{"bytes", "path"}``: they are hashed, not decoded."""
    from datasets import Image

    for name, feature in (rows.features or {}).items():
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(decode=False))
    return rows


# VLMEvalKit -------------------------------------------------------------------------------------

PATH = "image_path"  # names a picture; made from its content where the table has no such column


class Table:
    """A VLMEvalKit table (TSV), its pictures in base64.

    A picture that several rows share may stand in one of them, and its index in the others.

    Args:
        path: The file.

    Raises:
        InvalidData: It has no header.
    """

    def __init__(self, path: Path) -> None:
        csv.field_size_limit(sys.maxsize)  # a cell holds a picture
        self.path, self.name, self.folder = path, "test", path.parent
        self._starts: list[tuple[int, int]] = []  # byte and line where each row starts
        self._rows: dict[str, int] = {}  # index -> row, of rows that hold a picture themselves
        with path.open("rb") as file:
            self._header = next(csv.reader(_lines(file, path), delimiter="\t"), [])
            self._body = file.tell()
        if not self._header:
            raise InvalidData(f"{path} is empty; it must begin with a line of column names.")
        self.columns = [*self._header, *([] if PATH in self._header else [PATH])]

    def where(self, number: int) -> str:
        """See `Rows`."""
        return f"{self.path}:{self._starts[number][1]}"

    def words(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """See `Rows`."""
        names: dict[str, str] = {}  # index -> name made of its picture
        self._starts.clear()
        with self.path.open("rb") as file:
            file.seek(self._body)
            line = _Count(2)
            for number, (at, first, cells) in enumerate(self._parse(file, line)):
                self._starts.append((at, first))
                row = self._row(number, cells)
                index, picture = row.get("index", ""), row.get("image", "")
                if len(picture) > 64:
                    self._rows.setdefault(index, number)
                if PATH in columns and PATH not in self._header:
                    made = hashlib.sha256(picture.encode()).hexdigest()[:12]
                    own = len(picture) > 64
                    row[PATH] = names.setdefault(index, made) if own else names.get(picture, made)
                yield {name: row[name] for name in columns}

    def pictures(self, column: str, numbers: Collection[int]) -> Read:
        """See `Rows`; every picture is read when it is needed."""
        return partial(self._picture, column)

    def _picture(self, column: str, number: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self._starts[number][0])
            _, _, cells = next(self._parse(file, _Count(self._starts[number][1])))
        cell = self._row(number, cells)[column]
        if len(cell) <= 64 and self._rows.get(cell, number) != number:
            return self._picture(column, self._rows[cell])
        return encoded(cell, self.where(number), self.path.parent)

    def _parse(self, file: IO[bytes], line: _Count) -> Iterator[tuple[int, int, list[str]]]:
        """(byte, line, cells) of every row from where the file stands."""
        reader = csv.reader(_lines(file, self.path, line), delimiter="\t")
        while True:
            at, first = file.tell(), line.at
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise InvalidData(f"{self.path}:{first}: not a table ({error}).") from None
            if cells is None:
                return
            if cells:
                yield at, first, cells

    def _row(self, number: int, cells: list[str]) -> dict[str, str]:
        if len(cells) != len(self._header):
            raise InvalidData(
                f"{self.where(number)}: {len(cells)} columns separated by tabs, the first line has "
                f"{len(self._header)}."
            )
        return dict(zip(self._header, cells, strict=True))


@dataclass
class _Count:
    """Line the next one read is, from 1."""

    at: int = 1


def _lines(file: IO[bytes], path: Path, line: _Count | None = None) -> Iterator[str]:
    """Text lines, read one by one, so that the file stands where the next begins."""
    line = line or _Count()
    while raw := file.readline():
        line.at += 1
        try:
            yield raw.decode("utf-8-sig" if file.tell() == len(raw) else "utf-8")
        except UnicodeDecodeError:
            raise InvalidData(f"{path}:{line.at - 1}: not UTF-8 text.") from None
