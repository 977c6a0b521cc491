"""What there is to attend to and who asks: segments of keys, queries and places of each row.

Shapes: R requests, Q query rows of a block, N keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from halludecode.core.attention_block import (
    GENERATED,
    IMAGE,
    PAD,
    SYSTEM,
    TEXT,
    AttentionBlock,
    Queries,
    RowKeys,
)
from halludecode.core.errors import UnsupportedStrategy

if TYPE_CHECKING:
    from torch import Tensor


class Segment:
    """A set of keys for every row of a request; combine with ``&``, ``|`` and ``~``."""

    def __init__(self, make: Callable[[str], Tensor]) -> None:
        self._make = make
        self._cache: dict[str, Tensor] = {}

    def of(self, row: str) -> Tensor:
        """Bool [R, N]."""
        if row not in self._cache:
            self._cache[row] = self._make(row)
        return self._cache[row]

    def __and__(self, other: Segment) -> Segment:
        return Segment(lambda row: self.of(row) & other.of(row))

    def __or__(self, other: Segment) -> Segment:
        return Segment(lambda row: self.of(row) | other.of(row))

    def __invert__(self) -> Segment:
        return Segment(lambda row: ~self.of(row))


class RowView:
    """The reading half of `Attention`: nothing here looks at scores."""

    _blocks: Mapping[str, AttentionBlock]
    _owner: str

    def _use(self, verb: str, rows: tuple[str, ...], queries: Queries = "emitting") -> None:
        raise NotImplementedError

    @property
    def image(self) -> Segment:
        """Image keys."""
        return self._kinds("image", lambda keys: keys.kind == IMAGE)

    @property
    def images(self) -> list[Segment]:
        """Image keys of each picture."""
        count = max(int(b.keys.picture.max()) + 1 for b in self._blocks.values())
        return [Segment(lambda row, i=i: self._keys(row).picture == i) for i in range(count)]

    @property
    def system(self) -> Segment:
        """Keys before the first image."""
        return self._kinds("system", lambda keys: keys.kind == SYSTEM)

    @property
    def text(self) -> Segment:
        """Non-image keys after the first image: question and generated tokens."""
        return self._kinds("text", lambda keys: keys.kind >= TEXT)

    @property
    def generated(self) -> Segment:
        """Generated keys."""
        return self._kinds("generated keys", lambda keys: keys.kind == GENERATED)

    @property
    def first(self) -> Segment:
        """The first key that is not padding."""
        return self._kinds("first", lambda keys: _first(keys.kind != PAD))

    @property
    def place(self) -> tuple[Tensor, Tensor]:
        """float32 [R, Q] twice: a main query's place in its prompt, and prompt tokens after it."""
        keys = self._keys("main")
        return keys.position.float(), (keys.length[:, None] - 1 - keys.position).clamp_min(
            0
        ).float()

    @property
    def own_key(self) -> Segment:
        """Bool [R, Q, N] of a row: the key that each query's own token is."""
        return Segment(lambda row: self._keys(row).cached("own", RowKeys.own))

    @property
    def image_queries(self) -> Segment:
        """Bool [R, Q] of a row: queries that are image tokens."""
        return Segment(lambda row: self._keys(row).query_kind == IMAGE)

    @property
    def tokens(self) -> Segment:
        """Keys that are not padding."""
        return self._kinds("tokens", lambda keys: keys.kind != PAD)

    def square(self, row: str = "main") -> Tensor:
        """int64 [R, N, 4]: picture, row, column and side of each image key's square, else -1.

        Raises:
            UnsupportedStrategy: A picture's tokens form none.
        """
        self._use("square", (row,))
        return self._keys(row).cached("square", lambda keys: _square(keys, self._owner))

    def standing(self, row: str = "main") -> Tensor:
        """float32 [R, N]: place of each key among its row's tokens."""
        return self._keys(row).cached(
            "standing", lambda keys: ((keys.kind != PAD).cumsum(-1) - 1).clamp_min(0).float()
        )

    def _kinds(self, name: str, make: Callable[[RowKeys], Tensor]) -> Segment:
        return Segment(lambda row: self._keys(row).cached(name, make))

    def _keys(self, row: str) -> RowKeys:
        return self._blocks[row].keys


def _square(keys: RowKeys, owner: str) -> Tensor:
    import torch

    laid = keys.kind.new_full((*keys.kind.shape, 4), -1).long()
    for request, pictures in enumerate(keys.picture):
        for number in range(int(pictures.max()) + 1):
            at = (pictures == number).nonzero().flatten()
            side = math.isqrt(len(at))
            if side * side != len(at):
                raise UnsupportedStrategy(
                    f"{owner} needs pictures whose tokens form one square, and one here has "
                    f"{len(at)}; use a model with one square view a picture, such as LLaVA-1.5."
                )
            place = torch.arange(len(at), device=at.device)
            laid[request, at, 0], laid[request, at, 3] = number, side
            laid[request, at, 1], laid[request, at, 2] = place // side, place % side
    return laid


def _first(real: Tensor) -> Tensor:
    """Bool [R, N], True at the first True of each row."""
    return real & (real.cumsum(-1) == 1)
