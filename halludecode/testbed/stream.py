"""Random draws in whole numbers only, so that scenes are equal bit for bit on every machine.

The bits are Philox 4x64 blocks, addressed by seed, purpose, scene and attempt: any scene can be
made alone. Floating-point logarithms, powers and sines differ in their last bit between maths
libraries, so nothing drawn here passes through them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_BUFFER = 64  # 64-bit words drawn at a time
_DICE, _FACES = 16, 97
SIGMA = 112  # standard deviation of `normals`: sqrt(16 * (97**2 - 1) / 12), exactly


class Stream:
    """A stream of integers that depends on its address alone.

    Args:
        seed: 0 to 2**64 - 1.
        purpose: 0 to 2**64 - 1; streams of different purposes never meet.
        index: Number of the scene.
        attempt: Number of the trial at this scene.
    """

    def __init__(self, seed: int, purpose: int, index: int = 0, attempt: int = 0) -> None:
        # The two low counter words stay free for the blocks of this stream.
        self._bits = np.random.Philox(
            counter=np.array([0, 0, attempt, index], np.uint64),
            key=np.array([seed, purpose], np.uint64),
        )
        self._words: list[int] = []

    def below(self, n: int) -> int:
        """Returns 0 to n - 1, for n up to 2**31."""
        if not self._words:
            self._words = self._bits.random_raw(_BUFFER).tolist()
        return (self._words.pop() >> 32) * n >> 32

    def between(self, low: int, high: int) -> int:
        """Returns ``low`` to ``high``, both included."""
        return low + self.below(high - low + 1)

    def chance(self, permille: int) -> bool:
        """Is true with a probability of ``permille`` / 1000."""
        return self.below(1000) < permille

    def pick(self, items: Sequence[T]) -> T:
        """Returns one item."""
        return items[self.below(len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[int]) -> T:
        """Returns one item, drawn in proportion to whole-number weights."""
        place = self.below(sum(weights))
        for item, weight in zip(items, weights, strict=True):
            place -= weight
            if place < 0:
                return item
        raise ValueError("weights must be positive")

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Returns the items in random order (Fisher-Yates)."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = (
                order[other],
                order[last],
            )
        return order

    def normal(self) -> int:
        """Returns one Gaussian draw with mean 0 and standard deviation `SIGMA`."""
        return int(_bell()[self.below(65536)])

    def normals(self, *shape: int) -> np.ndarray:
        """Returns Gaussian draws with mean 0 and standard deviation `SIGMA`, int32 of ``shape``."""
        count = int(np.prod(shape))
        words = self._bits.random_raw((count + 3) // 4).astype("<u8").view("<u2")
        return _bell()[words[:count]].reshape(shape)


@cache
def _bell() -> np.ndarray:
    # Sorted values of a sum of dice, each as often as its share of 65536: the Gaussian to within an
    # excess kurtosis of -0.08, cut at 4.1 standard deviations, counted in exact integers.
    ways = [1]
    for _ in range(_DICE):
        spread = [0] * (len(ways) + _FACES - 1)
        for value, count in enumerate(ways):
            for face in range(_FACES):
                spread[value + face] += count
        ways = spread
    total, below, ends = _FACES**_DICE, 0, [0]
    for count in ways:
        below += count
        ends.append((below * 65536 + total // 2) // total)
    middle = _DICE * (_FACES - 1) // 2
    return np.repeat(np.arange(-middle, middle + 1, dtype=np.int32), np.diff(ends))
