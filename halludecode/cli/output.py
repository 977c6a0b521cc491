"""Where words go: results to standard output, everything else to standard error."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from halludecode.core.errors import OutOfMemory


def note(text: str) -> None:
    """One line on standard error."""
    sys.stderr.write(" ".join(text.split()) + "\n")


def fail(text: str) -> None:
    """One line on standard error about what went wrong."""
    note(f"error: {text}")


def show(*renderables: Any) -> None:
    """Print tables or text; plain text where standard output is not a terminal."""
    from rich.console import Console

    # Captured first: Rich ends the process itself when the reader of a pipe has gone.
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False)
    with console.capture() as captured:
        for renderable in renderables:
            console.print(renderable, markup=False)
    lines = captured.get().splitlines()
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines))


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Spares the search for circles among millions of objects that a comparison keeps anyway.

    Of two files of 5,000 captions it takes a quarter of the time. What is there at the end is set
    aside, or the next object made would start the search after all.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            if "torch" not in sys.modules:  # beside it, libraries complain of what is set aside
                gc.freeze()
            gc.enable()


@contextlib.contextmanager
def json_document(as_json: bool) -> Iterator[list[Any]]:
    """Keep standard output for one JSON document.

    Args:
        as_json: False does nothing at all.

    Yields:
        A list; its first element is printed at the end. Whatever libraries print meanwhile goes to
        standard error.
    """
    documents: list[Any] = []
    if not as_json:
        yield documents
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield documents
    text = json.dumps(plain(documents[0]), indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(text + "\n")


def plain(value: Any) -> Any:
    """The value in types JSON knows; NaN and infinities become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist())
    return str(value)


@contextlib.contextmanager
def memory_advice(batch_size: int | None) -> Iterator[None]:
    """Turn running out of memory into a sentence that names a batch size to try.

    Raises:
        OutOfMemory: In place of torch's own error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        is_memory_error = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
        if not is_memory_error and "allocate memory" not in text and "out of memory" not in text:
            raise
        if batch_size is not None and batch_size > 1:
            cure = f"ran out with --batch-size {batch_size}; try --batch-size {batch_size // 2}"
        elif batch_size is None:
            cure = "ran out; try --batch-size 1"
        else:
            cure = "ran out with one request; try --dtype bfloat16 or smaller pictures"
        raise OutOfMemory(f"Memory {cure}.") from error


def two_columns(values: dict[str, Any]) -> Any:
    """A table of names and values."""
    return columns_table({"": list(values), " ": list(values.values())}, header=False)


def columns_table(columns: dict[str, list[Any]], header: bool = True) -> Any:
    """A table of columns by their headings."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    rows = [list(columns)] if header else []
    for row in [*rows, *zip(*columns.values(), strict=True)]:
        table.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row))
    return table
