"""Answers made elsewhere: read by id, refused where they do not belong, hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from halludecode.core.errors import InvalidData
from halludecode.evals.data.records import read_records
from halludecode.evals.statistics.score import Id


def load_answers(
    path: Path | str,
    keys: str | tuple[str, ...] = "question_id",
    names: tuple[str, ...] = ("answer", "text"),
) -> dict[Id, str]:
    """Reads predictions such as ``{"question_id": int, "answer": str}``.

    Args:
        path: The file.
        keys: Name of the id, or accepted names.
        names: Accepted names of the answer.

    Raises:
        InvalidData: A key is missing or of the wrong type, or an id occurs twice.
    """
    keys = (keys,) if isinstance(keys, str) else keys
    answers: dict[Id, str] = {}
    lines: dict[Id, int] = {}
    for record in read_records(path):
        name = record.get(*keys, kind=(int, str), what="an integer")
        if name in lines:
            key = next(key for key in keys if key in record.fields)
            raise InvalidData(
                f"{record.where}: {key} {name} was already answered on line {lines[name]}; "
                "give one answer per question."
            )
        lines[name] = record.line
        answers[name] = record.get(*names, kind=str, what="the answer as a string")
    return answers


def refuse_strangers(
    path: Path | str,
    given: Iterable[Id],
    known: Collection[Id],
    what: str,
    keys: str | tuple[str, ...] = "question_id",
) -> None:
    """Refuses answers to what was not asked, naming the line of the first.

    Args:
        path: The file they are in.
        given: Ids answered.
        known: Ids asked.
        what: What an id should be of.
        keys: Name of the id, or accepted names.

    Raises:
        InvalidData: There is one.
    """
    keys = (keys,) if isinstance(keys, str) else keys
    extra = {i for i in given if i not in known}
    if not extra:
        return
    for record in read_records(path):
        key = next((key for key in keys if key in record.fields), None)
        if key is not None and record.fields[key] in extra:
            raise InvalidData(
                f"{record.where}: {key} {record.fields[key]!r} is no {what} ({len(extra)} such "
                "answers); check that both are of the same set."
            )


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Puts the file's name before what is wrong in it."""
    try:
        yield
    except InvalidData as error:
        text = str(error)
        raise InvalidData(text if str(path) in text else f"{path}: {text}") from None


def digest(path: Path | str) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's text and JSON files."""
    path = Path(path)
    total = hashlib.sha256()
    inner = (file for kind in ("*.txt", "*.json*") for file in path.rglob(kind))
    for file in [path] if path.is_file() else sorted(inner):
        if file != path:
            total.update(file.relative_to(path).as_posix().encode())
        total.update(file.read_bytes())
    return total.hexdigest()
