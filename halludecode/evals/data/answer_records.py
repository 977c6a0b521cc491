"""Files of answers, whatever kit wrote them, as records with flat columns.

Read are JSON lines, a JSON array, one object that holds a list of objects (CHAIR's own output has
``sentences``) or answers by id, and tables (``.tsv``, ``.csv``, ``.xlsx``), each also ``.gz``.
lmms-eval's nested cells become columns: ``doc.question`` is the question inside ``doc``.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData, MissingExtra
from halludecode.evals.data.columns import said
from halludecode.evals.data.records import Record, read_records, read_text

TABLES = {".tsv": "\t", ".csv": ","}
SHEETS = (".xlsx", ".xlsm")
_PLAIN = frozenset({str, int, float, bool, type(None)})  # cells that hold nothing else
KINDS = (".jsonl", ".json", *TABLES, *SHEETS)  # what `answer_files` takes from a folder


def answer_files(folder: Path) -> list[Path]:
    """The files of a folder that may hold answers, in the order of their names.

    What a system keeps beside them (``._x.jsonl``, ``.DS_Store``) is none.
    """
    files = (file for file in folder.iterdir() if file.is_file() and file.name[0] not in ".~")
    return sorted(file for file in files if _suffix(file) in KINDS)


def stem_of(path: Path) -> str:
    """The name of a file without the endings of its kind: ``llava-1.5_vcd`` of .jsonl.gz."""
    name = path.name.removesuffix(".gz")
    return next((name[: -len(k)] for k in KINDS if name.lower().endswith(k)), name)


def read_answer_records(path: Path) -> list[Record]:
    """All records of a file of answers, nested cells made columns of their own.

    Raises:
        InvalidData: It is absent, unreadable, empty or holds no records; file and line are named.
        MissingExtra: It is a workbook and openpyxl is not installed.
    """
    suffix = _suffix(path)
    if suffix in TABLES:
        return _table(path, TABLES[suffix])
    if suffix in SHEETS:
        return _sheet(path)
    stem = path.stem
    return [Record(r.where, flat(r.fields), r.line, stem) for r in _json(path)]


def _suffix(path: Path) -> str:
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    return suffixes[-1] if suffixes else ""


def flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the cells of nested objects as ``outer.inner``, and lists of one as that one.

    Columns of the record itself go before those of what is nested in it.
    """
    if _PLAIN.issuperset(map(type, fields.values())):
        return dict(fields)
    out = {name: _single(value) for name, value in fields.items() if not isinstance(value, dict)}
    for outer, value in fields.items():
        if isinstance(value, dict):
            out |= {f"{outer}.{k}": _single(v) for k, v in value.items() if _simple(v)}
    return out


def _simple(value: Any) -> bool:
    return isinstance(_single(value), str | int | float | bool)


def _single(value: Any) -> Any:
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


# JSON -------------------------------------------------------------------------------------------


def _json(path: Path) -> list[Record]:
    text = read_text(path)
    start = text.lstrip()[:1]
    whole = _object(text) if start == "{" else None
    if whole is None:
        return read_records(path)
    if not whole:
        raise InvalidData(f"{path} holds no records; write one JSON object a line.")
    lists = {k: v for k, v in whole.items() if _objects(v)}
    if len(lists) == 1:
        ((name, rows),) = lists.items()
        return _rows(path, ((f"{name}[{i}]", row) for i, row in enumerate(rows)))
    if len(lists) > 1:
        raise InvalidData(
            f"{path}: {' and '.join(map(repr, lists))} are both lists of objects; keep the one "
            "that holds the answers."
        )
    values = list(whole.values())
    if all(isinstance(value, dict) for value in values):
        return _rows(path, ((repr(k), {"id": k, **v}) for k, v in whole.items()))
    if len(values) > 1 and all(isinstance(v, str) and k.isdecimal() for k, v in whole.items()):
        return _rows(path, ((repr(k), {"id": k, "answer": v}) for k, v in whole.items()))
    return [Record(f"{path}:1", whole, 1)]


def _object(text: str) -> dict[str, Any] | None:
    """The object, if the file is one and no line of several."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None  # JSON lines, or damaged: `read_records` says where
    return value if isinstance(value, dict) else None


def _objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _rows(path: Path, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Record]:
    return [Record(f"{path}: {name}", row, i) for i, (name, row) in enumerate(rows, start=1)]


# Tables -----------------------------------------------------------------------------------------


def _table(path: Path, delimiter: str) -> list[Record]:
    csv.field_size_limit(sys.maxsize)  # a cell may hold a picture
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    return _cells(path, ((reader.line_num, row) for row in reader), f"{path}:{{}}")


def _sheet(path: Path) -> list[Record]:
    try:
        import openpyxl
    except ImportError:
        raise MissingExtra(
            f'{path}: workbooks are read with openpyxl; pip install "halludecode[eval]", or save '
            "the table as .tsv."
        ) from None
    if not path.is_file():
        raise InvalidData(f"{path} does not exist; check the path.")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        book = openpyxl.load_workbook(io.BytesIO(raw), read_only=True, data_only=True)
        rows = [list(row) for row in book.worksheets[0].iter_rows(values_only=True)]
    except Exception as error:  # a damaged zip, XML or style each raises its own kind
        raise InvalidData(f"{path} cannot be read as a workbook ({error}).") from None
    return _cells(path, enumerate(rows, start=1), f"{path}: row {{}}")


def _cells(path: Path, rows: Iterable[tuple[int, Sequence[Any]]], where: str) -> list[Record]:
    """Records of rows whose first names the columns; an empty cell is an empty text."""
    filled: Iterator[tuple[int, Sequence[Any]]] = (
        (line, row) for line, row in rows if any(cell not in (None, "") for cell in row)
    )
    try:
        _, header = next(filled, (0, ()))
        names = [said(name).strip() if name is not None else "" for name in header]
        if len(set(filter(None, names))) < len([name for name in names if name]):
            raise InvalidData(f"{path}: two columns of one name; rename one.")
        records = []
        for line, row in filled:
            if len(row) != len(names):
                raise InvalidData(
                    f"{where.format(line)}: {len(row)} columns, the first line has {len(names)}."
                )
            cells = zip(names, row, strict=True)
            fields = {name: "" if cell is None else cell for name, cell in cells if name}
            records.append(Record(where.format(line), fields, line, path.stem))
    except csv.Error as error:
        raise InvalidData(f"{path}: not a table ({error}).") from None
    if not records:
        raise InvalidData(f"{path} holds no records below a line of column names.")
    return records
