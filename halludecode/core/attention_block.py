"""Working tensors of one row in one layer: keys, queries, scores, weights, output.

The arithmetic is explicit and exact, but only ever on a block of query rows, so no [queries, keys]
map of a whole prompt exists. Engines build a `AttentionBlock` per named row from their own tensors;
`core.attention` edits it.

Shapes: R requests, H query heads, G key/value heads, Q query rows of the block, N keys, d head
size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from halludecode.core.errors import HookNeverFired

if TYPE_CHECKING:
    from torch import Tensor

Queries = Literal["emitting", "generated", "prompt", "after_image", "all"]
PAD, SYSTEM, IMAGE, TEXT, GENERATED = range(5)  # kinds of keys, see `RowKeys`
NEG_INF = float("-inf")


@dataclass(frozen=True)
class RowKeys:
    """What an engine knows about the keys and queries of one row, for all requests of a batch.

    Args:
        kind: int8 [R, N]: PAD, SYSTEM (before the first image), IMAGE, TEXT (after it), GENERATED.
        picture: int16 [R, N]: index of the picture an image key belongs to, else -1.
        position: int64 [R, Q]: position of each query in its prompt, -1 for padding.
        query_kind: int8 [R, Q]: kind of each query token.
        length: int64 [R]: prompt length P.
    """

    kind: Tensor
    picture: Tensor
    position: Tensor
    query_kind: Tensor
    length: Tensor
    _cache: dict[str, Tensor] = field(default_factory=dict[str, "Tensor"], compare=False)

    def queries(self, which: Queries) -> Tensor:
        """Bool [R, Q]: the queries a verb acts on, defined by position, never by chunk."""
        if which not in self._cache:
            self._cache[which] = self._queries(which)
        return self._cache[which]

    def cached(self, name: str, make: Callable[[RowKeys], Tensor]) -> Tensor:
        """A set of keys, bool [R, N], or what else is the same in all layers of a forward."""
        if name not in self._cache:
            self._cache[name] = make(self)
        return self._cache[name]

    def own(self) -> Tensor:
        """Bool [R, Q, N]: the key that a query's own token is."""
        real = self.kind != PAD
        rank = (real.cumsum(-1) - 1).where(real, -2)  # padding has position -1 among the queries
        return rank[:, None] == self.position[..., None]

    def _queries(self, which: Queries) -> Tensor:
        real = self.position >= 0
        if which == "all":
            return real
        if which == "emitting":
            return real & (self.position >= self.length[:, None] - 1)
        if which == "generated":
            return real & (self.position >= self.length[:, None])
        if which == "prompt":
            return real & (self.position < self.length[:, None])
        return real & (self.query_kind >= TEXT) & (self.kind == IMAGE).any(-1, keepdim=True)


@dataclass
class AttentionBlock:
    """Tensors of one row in one layer for a block of queries; scores are made on demand.

    Args:
        keys: Where its keys and queries lie.
        q: [R, H, Q, d]; None, like k, v and visible, where only head outputs are edited.
        k: [R, G, N, d].
        v: [R, G, N, d].
        visible: Bool, broadcastable to [R, 1, Q, N].
        scaling: Factor on q k^T.
        base: [R, H, Q, d], output of the stock kernel.
        cap: Bound of the logits, c tanh(x / c), of models that have one.
        gains: [R, H, Q, N], factors on the weights.
        head_gain: [R, H, Q], factors on the head outputs.
        averaged: [R, H, Q], what keys give that have the mean value, see `average`.
    """

    keys: RowKeys
    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    visible: Tensor | None
    scaling: float
    base: Tensor
    cap: float | None = None
    gains: Tensor | None = None
    head_gain: Tensor | None = None
    averaged: Tensor | None = None
    _plain: Tensor | None = None  # the logits before any edit
    _scores: Tensor | None = None
    _weights: Tensor | None = None

    def scores(self) -> Tensor:
        """float32 [R, H, Q, N] scaled, masked logits."""
        if self._scores is None:
            raw = self._products(_need(self.q), _need(self.k))
            self._scores = raw.where(_need(self.visible), NEG_INF)
        return self._scores

    def open(self, mask: Tensor) -> None:
        """Let queries see keys (bool [R, Q, N]) that lie after them."""
        visible = _need(self.visible)
        before, shut = self.scores(), mask[:, None] & ~visible
        self.edit_scores(self._products(_need(self.q), _need(self.k)).where(shut, before))
        self.visible = visible | mask[:, None]

    def elsewhere(self, queries: Tensor, keys: Tensor, frequencies: Tensor) -> Tensor:
        """float32 [R, H, Q, N]: logits before any mask, with rotary positions moved on.

        Args:
            queries: float32 [R, Q], how far each is moved.
            keys: float32 [R, N], likewise.
            frequencies: float32 [d / 2 or fewer], turns of each pair of dimensions a position.
        """
        q = turned(_need(self.q).float(), queries, frequencies)
        return self._products(q, turned(_need(self.k).float(), keys, frequencies))

    def _products(self, q: Tensor, k: Tensor) -> Tensor:
        r, h, n_q, d = q.shape
        g = k.shape[1]
        grouped = (q.float() * self.scaling).reshape(r, g, h // g * n_q, d)
        made = (grouped @ k.float().transpose(-1, -2)).reshape(r, h, n_q, -1)
        return made if self.cap is None else self.cap * (made / self.cap).tanh()

    def average(self, chosen: Tensor, over: Tensor) -> None:
        """Chosen keys (bool [R, H, Q, N]) give the mean value over keys ``over`` (bool [R, N])."""
        weights, value = self.weights(), _need(self.v).float()
        count = over.sum(-1).clamp_min(1)[:, None] * value.shape[-1]
        mean = (value * over[:, None, :, None]).sum((-2, -1)) / count  # [R, G]
        mean = mean.repeat_interleave(weights.shape[1] // mean.shape[1], 1)
        given = (weights * chosen).sum(-1) * mean[..., None]
        self.averaged = given if self.averaged is None else self.averaged + given
        left = (~chosen).to(weights.dtype)
        self.gains = left if self.gains is None else self.gains * left

    def edit_scores(self, scores: Tensor) -> None:
        """Replace the logits; weights are recomputed from them."""
        self._plain = self.scores() if self._plain is None else self._plain
        self._scores, self._weights = scores, None

    def weights(self) -> Tensor:
        """float32 [R, H, Q, N] softmax of the logits; rows that see nothing are 0."""
        if self._weights is None:
            scores = self.scores()
            weights = scores.softmax(-1)
            # A token being generated sees itself; padding, or a row hidden whole, sees nothing.
            blind = scores.shape[2] > 1 or self._plain is not None
            self._weights = weights.nan_to_num(0.0) if blind else weights
        return self._weights

    def received(self, *, own: bool, of: Tensor | None = None) -> Tensor:
        """float32 [R, H, N]: sum over these prompt queries of the weights before any edit.

        ``of`` [R, N] weighs each by the number at its own key.
        """
        mine = self.keys.own()  # [R, Q, N]
        counted = self.keys.queries("prompt")[..., None]  # [R, Q, 1]
        counted = counted if own else counted & ~mine
        weights = self._unedited()
        if of is not None:
            counted = counted * (mine * of[:, None]).sum(-1, keepdim=True)
        return (weights * counted[:, None]).sum(2)

    def paid(self, seg: Tensor) -> Tensor:
        """float32 [R, H, N]: their weights on keys ``seg`` (bool [R, N]), at each one's own key."""
        weights = self._unedited()
        mass = weights @ seg[:, None, :, None].to(weights.dtype)  # [R, H, Q, 1]
        own = self.keys.own() & self.keys.queries("prompt")[..., None]
        return (mass * own[:, None]).sum(2)

    def under(self, weights: Tensor) -> Tensor:
        """float32 [R, H, d]: head outputs of one query under other weights [R, H, N]."""
        value = _need(self.v).to(weights.dtype)
        r, h, n = weights.shape
        g = value.shape[1]
        return (weights.reshape(r, g, h // g, n) @ value).reshape(r, h, -1)

    def _unedited(self) -> Tensor:
        scores = self.scores() if self._plain is None else self._plain
        return scores.softmax(-1).nan_to_num(0.0)

    @property
    def touched(self) -> bool:
        """Whether any verb was used, effective or not."""
        return any(x is not None for x in (self._plain, self.gains, self.head_gain))

    def edited(self) -> Tensor:
        """Bool [R, Q]: queries whose output a verb really changed."""
        edited: Tensor | None = None
        if self._plain is not None:
            edited = (self.scores() != self._plain).any(dim=-1).any(dim=1)
        if self.gains is not None:
            moved = ((self.gains != 1) & (self.weights() > 0)).any(dim=-1).any(dim=1)
            edited = moved if edited is None else edited | moved
        if self.head_gain is not None:
            scaled = (self.head_gain != 1).any(dim=1)
            edited = scaled if edited is None else edited | scaled
        if edited is None:
            raise HookNeverFired("attention: output asked for before any verb was used")
        return edited

    def output(self, edited: Tensor | None = None) -> Tensor:
        """[R, H, Q, d] output after every edit; queries nothing changed keep the stock kernel's."""
        edited = self.edited() if edited is None else edited
        out = self.base
        if self._plain is not None or self.gains is not None:
            weights = self.weights() if self.gains is None else self.weights() * self.gains
            r, h, n_q, n = weights.shape
            value = _need(self.v).to(weights.dtype)
            g = value.shape[1]
            out = (weights.reshape(r, g, h // g * n_q, n) @ value).reshape(r, h, n_q, -1)
            out = out if self.averaged is None else out + self.averaged[..., None]
        if self.head_gain is not None:
            out = out.float() * self.head_gain[..., None]
        return out.to(self.base.dtype).where(edited[:, None, :, None], self.base)


def turned(x: Tensor, by: Tensor, frequencies: Tensor) -> Tensor:
    """[R, h, T, d]: queries or keys moved ``by`` [R, T] positions; pairs lie half a head apart."""
    import torch

    angles = (by[..., None] * frequencies)[:, None]  # [R, 1, T, d / 2]
    cos, sin = angles.cos(), angles.sin()
    half = len(frequencies)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def _need(tensor: Tensor | None) -> Tensor:
    """A verb that needs scores met a layer for which none were traced."""
    if tensor is None:
        raise HookNeverFired("attention: this verb needs scores, which tracing did not foresee")
    return tensor
