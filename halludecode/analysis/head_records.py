"""Sums per head of one sample each, one line a sample; means and intervals are made from the file.

A killed run loses at most the batch it was working on: lines are appended whole and synced, a torn
last line is cut off, and samples that are there are not read again. Memory does not grow with the
number of samples: what is kept is one sum per head and resample.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from halludecode.core.errors import InvalidData
from halludecode.evals.statistics.intervals import draws

DIGITS = 7  # of a number in the file; float32 has no more
Formula = Callable[[Mapping[str, ndarray]], dict[str, ndarray]]


@dataclass(frozen=True)
class Part:
    """What a sample adds to one map or number.

    Args:
        count: How many values.
        total: Their sum, [L, H] or [].
    """

    count: int
    total: ndarray


@dataclass(frozen=True)
class HeadRecord:
    """One sample.

    Args:
        id: Digest of prompt, pictures and truth.
        picture: Digest of its pictures: samples that share it are not independent.
        parts: By name.
        shown: What else a reader of the file may want: answer, T-VHD of every token.
    """

    id: str
    picture: str
    parts: Mapping[str, Part]
    shown: Mapping[str, Any]


class Records:
    """The file of one metric.

    Args:
        path: The file; made if absent.
        identity: What its lines must share: model, metric, how it was measured.
        fresh: Begin anew.

    Raises:
        InvalidData: It belongs to another model or was measured otherwise, or cannot be used.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.path, self.identity = path, json.loads(json.dumps(identity))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if fresh or not path.exists() or not self._mend():
                self._begin()
        except OSError as error:
            raise InvalidData(
                f"{error.filename or path}: cannot be written ({error.strerror})."
            ) from None
        self._check()
        self.done = {line["id"] for line in self}

    def append(self, records: Sequence[HeadRecord]) -> None:
        """Add lines, whole and synced."""
        text = "".join(json.dumps(_line(record)) + "\n" for record in records)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.done |= {record.id for record in records}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Lines in file order, the first left out."""
        with self.path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, start=1):
                if number > 1:
                    yield self._parsed(number, text)

    def _parsed(self, number: int, text: str) -> dict[str, Any]:
        try:
            line = json.loads(text)
            if not (isinstance(line["id"], str) and isinstance(line["parts"], dict)):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise InvalidData(
                f"{self.path}:{number}: not a line this version wrote; restore the file or start "
                "over with --fresh."
            ) from None
        return line

    def _mend(self) -> bool:
        """Cut off a torn last line; whether a first line is left."""
        raw = self.path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        if whole < len(raw):
            with self.path.open("r+b") as file:
                file.truncate(whole)
        return whole > 0

    def _begin(self) -> None:
        self.path.write_text(json.dumps(self.identity) + "\n", encoding="utf-8")

    def _check(self) -> None:
        with self.path.open(encoding="utf-8") as file:
            try:
                saved = json.loads(file.readline())
                if not isinstance(saved, dict) or "model_digest" not in saved:
                    raise ValueError
            except ValueError:
                raise InvalidData(
                    f"{self.path}: not a file this version wrote; name another folder or start "
                    "over with --fresh."
                ) from None
        differing = next((k for k in self.identity if saved.get(k) != self.identity[k]), None)
        if differing == "model_digest" or differing == "model":
            raise InvalidData(
                f"{self.path} belongs to another model ({saved.get('model')}, weights "
                f"{saved['model_digest'][:8]}; here {self.identity['model']}, "
                f"{self.identity['model_digest'][:8]}); name another folder or start over with "
                "--fresh."
            )
        if differing is not None:
            raise InvalidData(
                f"{self.path} was measured otherwise ({differing} is {saved.get(differing)!r}, "
                f"here {self.identity[differing]!r}); name another folder or start over with "
                "--fresh."
            )


@dataclass(frozen=True)
class Summary:
    """Means over samples.

    Args:
        samples: How many.
        pictures: How many different ones.
        means: By name, [L, H] or [].
        low: Lower ends of 95 % bootstrap intervals over pictures.
        high: Upper ends.
        halves: The means of every second picture, and of the others; None for one picture.
    """

    samples: int
    pictures: int
    means: Mapping[str, ndarray]
    low: Mapping[str, ndarray]
    high: Mapping[str, ndarray]
    halves: tuple[Mapping[str, ndarray], Mapping[str, ndarray]] | None


def summarise(
    records: Records,
    ids: Collection[str],
    formula: Formula,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Summary:
    """Means, intervals and halves of the samples with these ids; others in the file are left out.

    Args:
        records: The file, read once for the means and once per 500 resamples.
        ids: Of the samples that count.
        formula: From the means of the parts ([..., L, H], nan where a part never occurred) to what
            is reported.
        resamples: Bootstrap resamples of the pictures.
        seed: Seed of the resampling.
    """
    place: dict[str, int] = {}
    count = 0
    for line in records:
        if line["id"] in ids:
            place.setdefault(line["picture"], len(place))
            count += 1
    single = np.ones((1, len(place)))
    parity = np.arange(len(place)) % 2
    part_means = _means(records, ids, place, np.concatenate([single, [1 - parity, parity]]))
    means = {name: value[0] for name, value in formula(part_means).items()}
    pieces = [
        formula(_means(records, ids, place, weights))
        for weights in draws([""] * len(place), resamples, seed)
    ]
    drawn = {name: np.concatenate([piece[name] for piece in pieces]) for name in means}
    ends = {name: _ends(value) for name, value in drawn.items()}
    halves = tuple({n: v[i] for n, v in formula(part_means).items()} for i in (1, 2))
    return Summary(
        count,
        len(place),
        means,
        {name: low for name, (low, _) in ends.items()},
        {name: high for name, (_, high) in ends.items()},
        halves if len(place) > 1 else None,  # type: ignore[arg-type]
    )


def _means(
    records: Records, ids: Collection[str], place: Mapping[str, int], weights: ndarray
) -> dict[str, ndarray]:
    """Per part [K, ...]: means with each picture counted ``weights`` [K, pictures] times."""
    counts: dict[str, ndarray] = {}
    sums: dict[str, ndarray] = {}
    for line in records:
        if line["id"] not in ids:
            continue
        times = weights[:, place[line["picture"]]]
        for name, part in line["parts"].items():
            total = np.asarray(part["sum"], dtype=np.float64)
            if name not in sums:
                counts[name] = np.zeros(len(weights))
                sums[name] = np.zeros((len(weights), *total.shape))
            counts[name] += times * part["n"]
            sums[name] += times.reshape(-1, *[1] * total.ndim) * total
    with np.errstate(invalid="ignore"):
        return {n: s / counts[n].reshape(-1, *[1] * (s.ndim - 1)) for n, s in sums.items()}


def _ends(drawn: ndarray, level: float = 0.95) -> tuple[ndarray, ndarray]:
    """Percentiles over the first axis; resamples in which a part never occurred are left out."""
    complete = drawn[np.isfinite(drawn).reshape(len(drawn), -1).all(1)]
    if not len(complete):
        empty = np.full(drawn.shape[1:], np.nan)
        return empty, empty
    low, high = np.percentile(complete, [50 * (1 - level), 50 * (1 + level)], axis=0)
    return low, high


def _line(record: HeadRecord) -> dict[str, Any]:
    parts = {
        name: {"n": part.count, "sum": _rounded(part.total)} for name, part in record.parts.items()
    }
    return {"id": record.id, "picture": record.picture, **record.shown, "parts": parts}


def _rounded(value: ndarray) -> Any:
    if value.ndim:
        return [_rounded(each) for each in value]
    return float(f"{float(value):.{DIGITS}g}")
