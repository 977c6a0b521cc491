"""Files of a run folder as anybody may read them: lines, JSON objects, and the key of a line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from halludecode.core.errors import InvalidData

SCHEMA = 1
# What run.json tells of a run itself; beside it stand benchmarks, under their names.
RUN_FACTS = ("schema", "model", "model_digest", "model_facts", "engine", "dtype", "seed", "prompts")
RUN_FACTS += ("sampling", "strategies", "data", "limit", "hardware", "versions", "started")
RUN_FACTS += ("resumed", "answers", "imported", "calls")
# What samples.jsonl tells of every answer; beside it stand a benchmark's own facts of a question.
LINE_FACTS = frozenset({"id", "task", "data", "split", "strategy", "prompt", "image", "data_hash"})
LINE_FACTS |= {"answer", "parsed", "score", "label", "objects", "margin", "tokens", "ms", "effect"}
LINE_FACTS |= {"finish", "warnings", "group", "group_size", "decided"}

SAMPLES = "samples.jsonl"
OF_ANSWER: Mapping[str, type | tuple[type, ...]] = {
    "answer": str,
    "data_hash": str,
    "tokens": (int, NoneType),  # None of answers made elsewhere, as below
    "ms": (int, float, NoneType),
}

Key = tuple[str, str, str | None, str, int | str]


def key_of(line: Mapping[str, Any]) -> Key:
    """The key of a line of ``samples.jsonl`` or ``errors.jsonl``."""
    return (line["task"], line["data"], line["split"], line["strategy"], line["id"])


def _check_answer(line: Mapping[str, Any]) -> None:
    """Raises KeyError or TypeError where what every answer has is not there."""
    for name, kind in OF_ANSWER.items():
        if not isinstance(line[name], kind):
            raise TypeError(f"{name} is {line[name]!r}")


def _lacking(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it lacks {error.args[0]!r}"
    return "no JSON object" if isinstance(error, ValueError) else str(error)


def read_lines(path: Path, repair: bool = False) -> list[dict[str, Any]]:
    """Reads JSON lines; a last line without its newline was torn by a kill and is left out.

    Args:
        path: The file; an absent one is empty.
        repair: Also cut the torn line off the file.

    Raises:
        InvalidData: A whole line is no JSON object or lacks part of the key.
    """
    if not path.exists():
        return []
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if repair and len(whole) < len(raw):
        with path.open("r+b") as file:
            file.truncate(len(whole))
            os.fsync(file.fileno())
    lines = []
    for number, text in enumerate(whole.splitlines(), start=1):
        try:
            line = json.loads(text)
            key_of(line)
            if path.name == SAMPLES:
                _check_answer(line)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidData(
                f"{path}:{number}: not a line this version wrote ({_lacking(error)}); restore the "
                "file, delete the line, or start over with --fresh."
            ) from None
        lines.append(line)
    return lines


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InvalidData: The file is absent or is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidData(
            f"{path}: cannot be read ({error.strerror}); is this a run folder?"
        ) from None
    except ValueError as error:
        raise InvalidData(f"{path}: not JSON ({error}); restore the file.") from None
    if not isinstance(value, dict):
        raise InvalidData(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replaces ``path`` by ``value`` in one step: a reader sees the old file or the new one."""
    beside = path.with_name(path.name + ".new")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
