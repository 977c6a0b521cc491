"""Looking where a word points: some heads learn to look at the thing that is asked about.

Nothing else would teach them: whether a dog is there, and of what colour, can nearly be told from
the mean of all patches, which is what attention begins with, while of places that mean says
nothing, so that neither the heads that would find a thing nor those that would tell its place get
a gradient. So `HEADS` heads are told where to look: from the last word of a thing's name in a
question (in the layers `NAMING`), and from where the answer to a question about one thing begins
(`ANSWERING`), if the picture shows it. Where it shows none, they are told nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halludecode.testbed.categories import NAMES
from halludecode.testbed.phrases import plural

NAMING, ANSWERING, HEADS = (1, 3), (3,), 2
WEIGHT = 0.3  # of this loss beside that on answers
_LEAST = 1e-6


class Gaze:
    """Where the named things of a batch are, and how far the heads look elsewhere.

    Args:
        tokens: int64 [k, 3]: row, place behind the prefix, and 1 where an answer begins, else 0.
        cells: bool [k, 100]: the patches that show the thing.
        first: Tokens before the picture.
    """

    def __init__(self, tokens: Tensor, cells: Tensor, first: int) -> None:
        self._tokens, self._cells = tokens, cells
        self._first, self._losses = first, list[Tensor]()

    def watch(self, layer: int, weights: Tensor) -> None:
        """Takes one layer's attention, [rows, heads, tokens, keys], behind the prefix."""
        answering = self._tokens[:, 2] == 1
        told = (answering & (layer in ANSWERING)) | (~answering & (layer in NAMING))
        if not told.any():
            return
        rows, places, _ = self._tokens[told].unbind(1)
        picture = slice(self._first, self._first + self._cells.shape[1])
        seen = weights[rows, :HEADS, places, picture].float()
        found = (seen * self._cells[told][:, None]).sum(-1)
        self._losses.append(-found.clamp_min(_LEAST).log().mean())

    def loss(self) -> Tensor | float:
        """Mean over layers of minus the log of the share of attention on the thing."""
        return sum(self._losses) / len(self._losses) if self._losses else 0.0


class Names:
    """Finds the names of things in questions.

    Args:
        encode: Text to token ids.
    """

    def __init__(self, encode: Any) -> None:
        self._codes: dict[tuple[int, ...], int] = {}
        for code, name in enumerate(NAMES):
            for words in (name, plural(name)):
                self._codes[tuple(encode(words))] = code
        self._longest = max(map(len, self._codes))

    def found(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Place of the last token, and category, of each name; "hot dog" is no dog."""
        start = 0
        while start < len(ids):
            for length in range(self._longest, 0, -1):
                code = self._codes.get(tuple(ids[start : start + length]))
                if code is not None:
                    yield start + length - 1, code
                    break
            start += length


def aimed(rows: Sequence[Any], kinds: np.ndarray, first: int) -> Gaze:
    """What the names in rows about one picture each point at.

    Args:
        rows: `rows.TrainingRow`s.
        kinds: uint8 [rows, 100], category of every patch.
        first: Tokens before the picture.
    """
    tokens, cells = [], []
    for number, (row, patches) in enumerate(zip(rows, kinds, strict=True)):
        for place, code, answers in row.named:
            if (patches == code).any():
                tokens.append((number, place - row.prefix, answers))
                cells.append(patches == code)
    if not tokens:
        return Gaze(torch.empty(0, 3, dtype=torch.long), torch.empty(0, 100), first)
    return Gaze(torch.tensor(tokens), torch.from_numpy(np.stack(cells)), first)
