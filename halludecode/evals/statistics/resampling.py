"""How often each picture is drawn in the resamples of a bootstrap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

_CHUNK = 500  # resamples at a time: 500 x 1187 MME pictures of weights are 5 MB
_CACHED = 20_000  # draws at a time: counted in the processor's cache, five times as fast as outside
_PRODUCT = 1_000_000  # counts that are multiplied at a time
_KEPT = 100_000_000  # counts, a byte each, kept for the next comparison of the same pictures


def draws(
    strata: Sequence[str], resamples: int, seed: int = 0, kind: type = float
) -> Iterator[np.ndarray]:
    """How often each picture is drawn, ``[<= 500, pictures]`` at a time.

    Args:
        strata: Group of every picture; pictures are drawn within their group.
        resamples: Resamples in all.
        seed: Seed of the drawing.
        kind: Type of the counts.
    """
    numbers = {name: i for i, name in enumerate(dict.fromkeys(strata))}
    group = tuple(numbers[name] for name in strata)
    if len(group) * resamples > _KEPT:
        yield from _drawn(group, resamples, seed, kind)
        return
    for counts in _drawn_once(group, resamples, seed):
        for at in range(0, len(counts), step := max(1, _PRODUCT // len(group))):
            yield counts[at : at + step].astype(kind)


@lru_cache(maxsize=2)
def _drawn_once(group: tuple[int, ...], resamples: int, seed: int) -> tuple[np.ndarray, ...]:
    """All of `_drawn`: a comparison and each of its controls resample the same pictures."""
    try:
        return tuple(_drawn(group, resamples, seed, np.uint8))
    except OverflowError:  # a picture was drawn 256 times
        return tuple(_drawn(group, resamples, seed))


def _drawn(
    group: tuple[int, ...], resamples: int, seed: int, kind: type = float
) -> Iterator[np.ndarray]:
    strata, rng = np.array(group), np.random.default_rng(seed)
    groups = [np.flatnonzero(strata == number) for number in dict.fromkeys(group)]
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        weights = np.empty((rows, len(group)), kind)
        for members in groups:
            for at in range(0, rows, step := max(1, _CACHED // len(members))):
                counts = _counted(rng, min(step, rows - at), len(members))
                if kind is np.uint8 and counts.max() > 255:
                    raise OverflowError
                if len(groups) == 1:
                    weights[at : at + step] = counts
                else:
                    weights[at : at + step, members] = counts
        yield weights


def _counted(rng: np.random.Generator, rows: int, size: int) -> np.ndarray:
    """How often each of ``size`` members is drawn in ``size`` draws, ``[rows, size]``."""
    drawn = rng.integers(size, size=(rows, size))
    if rows == 1:
        return np.bincount(drawn[0], minlength=size)
    drawn += size * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
