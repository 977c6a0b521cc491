"""What `attend` sees of one layer: segments of keys, and verbs that read or edit attention.

The arithmetic is explicit and exact, but only ever on a block of query rows, so no
[queries, keys] map of a whole prompt exists. An engine builds one `RowBlock` per named row from its own
tensors; strategies see only `Attention`. Order in a layer:
add/scale/hide -> softmax -> mass -> gain -> out -> heads.

Shapes: R requests, H query heads, G key/value heads, Q query rows of the block, N keys, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from halludecode.core.errors import HookNeverFired, UnsupportedStrategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.strategy import Facts

Queries = Literal["emitting", "generated", "after_image", "all"]
PAD, SYSTEM, IMAGE, TEXT, GENERATED = range(5)  # kinds of keys, see `RowKeys`
SCORE_VERBS = frozenset({"add", "scale", "hide", "gain", "mass", "scores", "weights"})
EDIT_VERBS = frozenset({"add", "scale", "hide", "gain", "heads"})
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

    def queries(self, which: Queries) -> Tensor:
        """bool [R, Q]: the queries a verb acts on, defined by position, never by chunk."""
        real = self.position >= 0
        if which == "all":
            return real
        if which == "emitting":
            return real & (self.position >= self.length[:, None] - 1)
        if which == "generated":
            return real & (self.position >= self.length[:, None])
        return real & (self.query_kind >= TEXT) & (self.kind == IMAGE).any(-1, keepdim=True)


@dataclass
class RowBlock:
    """Working tensors of one row in one layer for a block of queries; scores are made on demand."""

    keys: RowKeys
    q: Tensor | None  # [R, H, Q, d]
    k: Tensor | None  # [R, G, N, d]
    v: Tensor | None  # [R, G, N, d]
    visible: Tensor | None  # bool, broadcastable to [R, 1, Q, N]
    scaling: float
    base: Tensor | None = None  # [R, H, Q, d] output of the stock kernel
    _scores: Tensor | None = None
    _weights: Tensor | None = None
    gains: Tensor | None = None  # [R, H, Q, N]
    head_gain: Tensor | None = None  # [R, H, Q]
    edited: Tensor | None = None  # bool [R, Q]
    changed: Tensor | None = None  # bool [R]

    def scores(self) -> Tensor:
        """float32 [R, H, Q, N] scaled, masked logits."""
        if self._scores is None:
            assert_tensors(self)
            q, k = self.q.float(), self.k.float()  # type: ignore[union-attr]
            r, h, n_q, d = q.shape
            g = k.shape[1]
            raw = q.reshape(r, g, h // g * n_q, d) @ k.transpose(-1, -2)
            raw = raw.reshape(r, h, n_q, -1) * self.scaling
            self._scores = raw.masked_fill(~self.visible, NEG_INF)  # type: ignore[operator]
        return self._scores

    def edit_scores(self, scores: Tensor) -> None:
        """Replace the logits; weights are recomputed from them."""
        self._scores, self._weights = scores, None

    def weights(self) -> Tensor:
        """float32 [R, H, Q, N] softmax of the logits; rows that see nothing are 0."""
        if self._weights is None:
            scores = self.scores()
            blind = (scores == NEG_INF).all(-1, keepdim=True)
            self._weights = scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
        return self._weights

    def output(self) -> Tensor:
        """[R, H, Q, d] output after every edit; queries nothing edited keep the stock kernel's."""
        if self.base is None or self.edited is None:
            raise HookNeverFired("attention: output asked for before any verb was used")
        out = self.base
        if self._scores is not None:
            weights = self.weights() if self.gains is None else self.weights() * self.gains
            r, h, n_q, n = weights.shape
            value = self.v.to(weights.dtype)  # type: ignore[union-attr]
            g = value.shape[1]
            out = (weights.reshape(r, g, h // g * n_q, n) @ value).reshape(r, h, n_q, -1)
        if self.head_gain is not None:
            out = out.float() * self.head_gain[..., None]
        return out.to(self.base.dtype).where(self.edited[:, None, :, None], self.base)

    def mark(self, queries: Tensor, differs: Tensor) -> None:
        """Remember which queries were edited and which requests really changed."""
        self.edited = queries if self.edited is None else self.edited | queries
        self.changed = differs if self.changed is None else self.changed | differs


def assert_tensors(block: RowBlock) -> None:
    """A verb that needs scores met a layer for which none were traced."""
    if block.q is None or block.k is None or block.visible is None:
        raise HookNeverFired("attention: this verb needs scores, which tracing did not foresee")


class Segment:
    """A set of keys for every row of a request; combine with ``&``, ``|`` and ``~``."""

    def __init__(self, of: Callable[[str], Tensor]) -> None:
        self._of = of

    def mask(self, row: str) -> Tensor:
        """bool [R, N]."""
        return self._of(row)

    def __and__(self, other: Segment) -> Segment:
        return Segment(lambda row: self.mask(row) & other.mask(row))

    def __or__(self, other: Segment) -> Segment:
        return Segment(lambda row: self.mask(row) | other.mask(row))

    def __invert__(self) -> Segment:
        return Segment(lambda row: ~self.mask(row))


@dataclass
class Trace:
    """Verbs, rows and queries a strategy used; the plan is built from it."""

    verbs: set[str] = field(default_factory=set[str])
    rows: set[str] = field(default_factory=set[str])
    queries: set[Queries] = field(default_factory=set[Queries])


@dataclass
class Hooks:
    """What the engine lends to one strategy in one layer of one forward.

    Args:
        flag: ``(name, fn, row) -> bool [R, N]``, computed from the residual entering the layer, kept.
        once: ``(name, fn) -> value``, computed in the forward that emits token 1, kept per layer.
        state: What `prepare` returned, stacked over requests.
        carry: From layer to later layer within one forward.
        trace: While compiling, where verbs are written down.
        allowed: Verbs found by tracing; any other raises.
        gone: Rows dropped after the first token; edits to them are skipped.
    """

    flag: Callable[[str, Callable[[Tensor], Tensor], str], Tensor]
    once: Callable[[str, Callable[[], Any]], Any]
    state: Mapping[str, Any] = field(default_factory=dict[str, Any])
    carry: dict[str, Any] = field(default_factory=dict[str, Any])
    trace: Trace | None = None
    allowed: frozenset[str] | None = None
    gone: frozenset[str] = frozenset()


class Attention:
    """One layer's attention as a strategy sees it; every verb is branch-free in values.

    ``rows=("main",)`` and ``queries="emitting"`` by default: "emitting" queries predict a token
    (p >= P-1), "generated" are p >= P, "after_image" are text that sees an image, "all" is all.
    """

    def __init__(
        self, layer: int, m: Facts, blocks: Mapping[str, RowBlock], hooks: Hooks, owner: str = ""
    ) -> None:
        self.layer = layer
        self.m = m
        self.state = hooks.state
        self.carry = hooks.carry
        self._blocks = blocks
        self._hooks = hooks
        self._owner = owner

    # Segments -------------------------------------------------------------------------------------
    @property
    def image(self) -> Segment:
        """Image keys."""
        return Segment(lambda row: self._keys(row).kind == IMAGE)

    @property
    def images(self) -> list[Segment]:
        """Image keys of each picture."""
        count = max(int(b.keys.picture.max()) + 1 for b in self._blocks.values())
        return [Segment(lambda row, i=i: self._keys(row).picture == i) for i in range(count)]

    @property
    def system(self) -> Segment:
        """Keys before the first image."""
        return Segment(lambda row: self._keys(row).kind == SYSTEM)

    @property
    def text(self) -> Segment:
        """Non-image keys after the first image: question and generated tokens."""
        return Segment(lambda row: self._keys(row).kind >= TEXT)

    @property
    def generated(self) -> Segment:
        """Generated keys."""
        return Segment(lambda row: self._keys(row).kind == GENERATED)

    @property
    def first(self) -> Segment:
        """The first key that is not padding."""
        return Segment(lambda row: _first(self._keys(row).kind != PAD))

    def key(self, name: str) -> Tensor:
        """float32 [R, N]: a `PerImageToken` of the state laid onto the main row's image keys."""
        self._use("key", ("main",))
        mask = self._keys("main").kind == IMAGE
        values = self.state[name].to(mask.device).float()
        laid = values.new_zeros(mask.shape)
        laid[mask] = values[values.isfinite()]
        return laid

    def flag(self, name: str, fn: Callable[[Tensor], Tensor]) -> Segment:
        """Keys for which ``fn(x [T, D]) -> bool [T]`` holds on the residual entering this layer.

        Each prompt token is judged once per layer; generated tokens are False.
        """
        self._use("flag", ())
        return Segment(lambda row: self._hooks.flag(name, fn, row))

    def once(self, name: str, fn: Callable[[], Any]) -> Any:
        """``fn() -> [R, ...]``, evaluated in the forward that emits token 1 and kept, per layer."""
        self._use("once", ())
        return self._hooks.once(name, fn)

    def pick(self, seg: Segment, value: Tensor, k: int, *, largest: bool = True) -> Segment:
        """The k keys of a segment with the largest (smallest) ``value`` [R, N]."""

        def chosen(row: str) -> Tensor:
            mask = seg.mask(row)
            fill = NEG_INF if largest else float("inf")
            top = value.masked_fill(~mask, fill).topk(
                min(k, mask.shape[-1]), dim=-1, largest=largest
            )
            return mask.new_zeros(mask.shape).scatter(-1, top.indices, value=True) & mask

        return Segment(chosen)

    # Reads ----------------------------------------------------------------------------------------
    def mass(self, seg: Segment, *, queries: Queries = "emitting") -> Tensor:
        """float32 [R, H, Q] attention mass of the main row on a segment, after the score edits."""
        self._use("mass", ("main",), queries)
        weights = self._blocks["main"].weights()
        return (weights * seg.mask("main")[:, None, None]).sum(-1)

    def scores(self, seg: Segment, *, row: str = "main") -> Tensor:
        """float32 [R, H, Q, N] logits of emitting queries, -inf outside the segment."""
        self._use("scores", (row,), "emitting")
        return self._blocks[row].scores().masked_fill(~seg.mask(row)[:, None, None], NEG_INF)

    def weights(self, seg: Segment, *, row: str = "main") -> Tensor:
        """float32 [R, H, Q, N] softmax weights of emitting queries, 0 outside the segment."""
        self._use("weights", (row,), "emitting")
        return self._blocks[row].weights() * seg.mask(row)[:, None, None]

    def out(self, row: str = "main") -> Tensor:
        """float32 [R, E, H, d] head outputs of the E emitting queries of this forward, before o_proj."""
        self._use("out", (row,), "emitting")
        block = self._blocks[row]
        whole = block.base if block.edited is None else block.output()
        return whole[:, :, -1:].transpose(1, 2).float()  # type: ignore[index]

    # Edits ----------------------------------------------------------------------------------------
    def add(
        self,
        seg: Segment,
        f: Callable[[Tensor], Tensor] | Tensor | float,
        *,
        rows: tuple[str, ...] = ("main",),
        queries: Queries = "emitting",
    ) -> None:
        """``s += f(s)`` on a segment, before softmax (renormalised)."""
        self._edit_scores("add", seg, lambda s: s + (f(s) if callable(f) else f), rows, queries)

    def scale(
        self,
        seg: Segment,
        c: Any,
        *,
        rows: tuple[str, ...] = ("main",),
        queries: Queries = "emitting",
    ) -> None:
        """``s *= c`` on a segment, never in the shared cache."""
        self._edit_scores("scale", seg, lambda s: s * c, rows, queries)

    def hide(
        self, seg: Segment, *, rows: tuple[str, ...] = ("main",), queries: Queries = "emitting"
    ) -> None:
        """``s = -inf`` on a segment."""
        self._edit_scores("hide", seg, lambda s: s.new_full((), NEG_INF), rows, queries)

    def gain(
        self,
        seg: Segment,
        g: Tensor | float,
        *,
        where: Tensor | None = None,
        rows: tuple[str, ...] = ("main",),
        queries: Queries = "emitting",
    ) -> None:
        """``w *= g`` after softmax, g >= 0 a number or [R, H, Q]; not renormalised."""
        self._use("gain", rows, queries)
        for row in self._present(rows):
            block = self._blocks[row]
            weights, chosen = block.weights(), block.keys.queries(queries)
            factor = weights.new_tensor(g) if isinstance(g, float | int) else g
            factor = factor.expand(weights.shape[:-1])
            on = chosen[:, None] if where is None else chosen[:, None] & where
            on = on.expand(factor.shape) & (factor != 1)
            laid = factor.where(on, factor.new_ones(()))[..., None]
            laid = laid.where(seg.mask(row)[:, None, None], laid.new_ones(()))
            block.gains = laid if block.gains is None else block.gains * laid
            touched = on[..., None] & seg.mask(row)[:, None, None] & (weights > 0)
            block.mark(chosen, touched.flatten(1).any(-1))

    def heads(
        self, g: Tensor, *, rows: tuple[str, ...] = ("main",), queries: Queries = "emitting"
    ) -> None:
        """Head outputs times g ([R, H] or [R, H, Q]), before o_proj."""
        self._use("heads", rows, queries)
        wide = g if g.dim() == 3 else g[..., None]
        for row in self._present(rows):
            block = self._blocks[row]
            chosen = block.keys.queries(queries)
            laid = wide.where(chosen[:, None], wide.new_ones(()))
            block.head_gain = laid if block.head_gain is None else block.head_gain * laid
            block.mark(chosen, (laid != 1).flatten(1).any(-1))

    def _edit_scores(
        self,
        verb: str,
        seg: Segment,
        f: Callable[[Tensor], Tensor],
        rows: tuple[str, ...],
        queries: Queries,
    ) -> None:
        self._use(verb, rows, queries)
        for row in self._present(rows):
            block = self._blocks[row]
            before, chosen = block.scores(), block.keys.queries(queries)
            on = chosen[:, None, :, None] & seg.mask(row)[:, None, None] & (before != NEG_INF)
            after = f(before.masked_fill(~on, 0)).expand(before.shape).where(on, before)
            block.edit_scores(after)
            block.mark(chosen, (after != before).flatten(1).any(-1))

    def _present(self, rows: tuple[str, ...]) -> list[str]:
        return [row for row in rows if row in self._blocks]

    def _keys(self, row: str) -> RowKeys:
        return self._blocks[row].keys

    def _use(self, verb: str, rows: tuple[str, ...], queries: Queries = "emitting") -> None:
        if self._hooks.allowed is not None and verb not in self._hooks.allowed:
            raise HookNeverFired(
                f"{self._owner}.attend used {verb!r} in layer {self.layer}, which tracing never met; "
                "make the call unconditional and choose with where=."
            )
        if self._hooks.trace is not None:
            self._hooks.trace.verbs.add(verb)
            self._hooks.trace.rows.update(rows)
            if verb in SCORE_VERBS | EDIT_VERBS:
                self._hooks.trace.queries.add(queries)
        missing = [row for row in rows if row not in self._blocks and row not in self._hooks.gone]
        if missing:
            raise UnsupportedStrategy(
                f"{self._owner}.attend names row {missing[0]!r}, which its branches do not make."
            )


def _first(real: Tensor) -> Tensor:
    """bool [R, N], True at the first True of each row."""
    return real & (real.cumsum(-1) == 1)
