"""The run folder: what a run was, every answer, every failure, and the results. Append-only.

``samples.jsonl`` and ``errors.jsonl`` grow by whole lines, flushed and synced once a batch, so a
run killed at any moment loses at most the batch it was working on; a line torn by the kill is cut
off when the folder is opened again and its sample is asked anew. ``run.json`` and ``results.json``
are replaced in one step. A line's key is (task, data, split, strategy, id). A resumed run ends with
the results of an unbroken one, apart from the times (``ms`` of a line; ``seconds`` and
``tokens_per_second`` of a result), which tell how long the work took where and when it was done.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from halludecode.core.errors import InvalidData
from halludecode.evals.data.run_files import SCHEMA, Key, key_of, read_json, read_lines, write_json

MOMENT = ("started", "versions", "hardware")  # of ``run.json``: true of one call only
FILES = ("run.json", "samples.jsonl", "errors.jsonl", "results.json")


class RunStore:
    """A run folder opened for writing; use as a context manager.

    Args:
        path: The folder; made if absent.
        identity: What all answers of the folder must share (model, seed, prompts ...). A mapping
            among the values is compared on the keys both sides have, so a later call may add a
            task.
        recipe: The rest of ``run.json``; mappings are merged into what is there.
        fresh: Delete an earlier run's files first.
        check: Given the earlier answers, raises to refuse them; only then is anything written.

    Raises:
        InvalidData: The folder holds another run, is being written by another process, is damaged
            or cannot be written to.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        recipe: Mapping[str, Any],
        fresh: bool = False,
        check: Callable[[Mapping[Key, Mapping[str, Any]]], None] | None = None,
    ) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidData(f"{path}: cannot be made a run folder ({error.strerror}).") from None
        self._lock = _lock(self.path)
        try:
            with writing(self.path):
                if fresh:
                    for name in FILES:
                        (self.path / name).unlink(missing_ok=True)
                old = self._old(identity)
                self.done = self._read("samples.jsonl")
                self.failures = self._read("errors.jsonl")
                if check is not None:
                    check(self.done)
                self._adopt(old, dict(identity), dict(recipe))
                self._samples = (self.path / "samples.jsonl").open("ab")
                self._errors = (self.path / "errors.jsonl").open("ab")
        except BaseException:
            _release(self._lock)
            raise

    def _read(self, name: str) -> dict[Key, dict[str, Any]]:
        return {key_of(line): line for line in read_lines(self.path / name, repair=True)}

    def _old(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """An earlier call's ``run.json``, checked against this one; {} without."""
        file = self.path / "run.json"
        if not file.exists():
            if (self.path / "samples.jsonl").exists():
                raise InvalidData(
                    f"{self.path} has answers but no run.json; start over with --fresh."
                )
            return {}
        old = read_json(file)
        if "answers" in identity:  # runs of before there was a choice took them as written
            old.setdefault("answers", "as_written")
        for name in (*identity, "shard"):  # which a whole run has not
            _same(self.path, name, old.get(name), identity.get(name))
        return old

    def _adopt(self, old: dict[str, Any], identity: dict[str, Any], recipe: dict[str, Any]) -> None:
        """Writes the union of an earlier call's ``run.json`` and this one's."""
        if not old:
            self.run = {"schema": SCHEMA, **identity, **recipe}
        else:
            self.run = _merged(old, {**identity, **recipe})
            now = {name: recipe[name] for name in MOMENT if name in recipe}
            if now:  # the first call's stay where they are
                self.run |= {name: old[name] for name in now if name in old}
                self.run["resumed"] = [*old.get("resumed", ()), now]
        write_json(self.path / "run.json", self.run)

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Adds answers that are not there yet: whole lines, one write, flushed and synced."""
        with writing(self.path):
            _append(self._samples, self.done, lines)

    def append_errors(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Adds failures that are not there yet."""
        with writing(self.path):
            _append(self._errors, self.failures, lines)

    def write_results(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Replaces ``results.json``; results of earlier calls that are not renewed stay.

        Returns:
            What was written.
        """
        file = self.path / "results.json"
        try:
            old = read_json(file) if file.exists() else {}
        except InvalidData:  # cut short: answers are the record, and are scored whenever asked for
            old = {}
            if {key[:4] for key in self.done} - {_scored(entry) for entry in results["runs"]}:
                warnings.warn(
                    f"{file} was damaged and is made anew; results of tasks and strategies that "
                    "this call did not ask for come back when they are asked for.",
                    stacklevel=2,
                )
        merged = dict(results)
        for part in ("runs", "differences"):
            renewed = {_named(entry) for entry in results[part]}
            kept = [entry for entry in old.get(part, []) if _named(entry) not in renewed]
            merged[part] = [*kept, *results[part]]
        with writing(self.path):
            write_json(file, merged)
        return merged

    def close(self) -> None:
        """Releases the folder."""
        for file in (self._samples, self._errors):
            with suppress(OSError):  # what could not be written was said when it was tried
                file.close()
        _release(self._lock)

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_folder(path: Path) -> None:
    """Refuse a folder that could not be made or written to, before anything slow is done for it.

    Raises:
        InvalidData: The sentence names what is in the way.
    """
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not there.is_dir():
        raise InvalidData(f"{path}: cannot be made a run folder ({there} is a file).")
    if not os.access(there, os.W_OK):
        raise InvalidData(f"{path}: cannot be written (no permission in {there}).")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Says in one sentence that a folder cannot be written to."""
    try:
        yield
    except OSError as error:
        raise InvalidData(
            f"{error.filename or folder}: cannot be written ({error.strerror}); make room there or "
            "choose another output folder."
        ) from None


def _scored(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(entry.get(k) for k in ("task", "data", "split", "strategy"))


def _named(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(entry.get(k) for k in ("task", "data", "split", "strategy", "baseline"))


def _append(
    file: IO[bytes], known: dict[Key, dict[str, Any]], lines: Iterable[Mapping[str, Any]]
) -> None:
    new = [dict(line) for line in lines if key_of(line) not in known]
    if not new:
        return
    encode = json.JSONEncoder(ensure_ascii=False).encode
    file.write("".join(f"{encode(line)}\n" for line in new).encode("utf-8"))
    file.flush()
    os.fsync(file.fileno())
    known.update((key_of(line), line) for line in new)


def _same(path: Path, name: str, old: Any, new: Any) -> None:
    if isinstance(old, dict) and isinstance(new, Mapping):
        for part in (part for part in new if part in old):
            _same(path, f"{name}.{part}", old[part], new[part])
    elif old != new and not (old is None and isinstance(new, Mapping)):
        raise InvalidData(
            f"{path} holds a run with {name} {old!r}, not {new!r}: choose another output folder "
            "or start over with --fresh."
        )


def _merged(old: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for name, value in new.items():
        both = isinstance(value, Mapping) and isinstance(old.get(name), dict)
        merged[name] = {**old[name], **value} if both else value
    return merged


def _lock(folder: Path) -> int | None:
    """Holds a folder for one process; None where the system has no advisory locks (Windows)."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise InvalidData(
            f"{folder} is being written by another process; wait for it or choose another folder."
        ) from None
    return handle


def _release(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)
