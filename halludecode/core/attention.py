"""What `attend` sees of one layer: segments of keys, and verbs that read or edit attention.

An engine builds one `core.attention_block.AttentionBlock` per named row from its own tensors;
strategies see only `Attention`. Order in a layer: add_scores, scale_scores, mask -> softmax -> mass
-> scale_weights -> head_outputs -> scale_heads.

Shapes: R requests, H query heads, Q query rows of the block, N keys, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

from halludecode.core.attention_block import (
    IMAGE,
    NEG_INF,
    PAD,
    AttentionBlock,
    Queries,
)
from halludecode.core.attention_hooks import Hooks
from halludecode.core.errors import HookNeverFired, UnsupportedStrategy
from halludecode.core.row_view import RowView, Segment

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.model_info import ModelInfo

T = TypeVar("T")
SCORE_VERBS = frozenset(
    {
        *("open", "reposition", "add_scores", "scale_scores", "mask", "scale_weights"),
        "average_values",
        *("mass", "scores", "weights", "tally"),
    }
)
EDIT_VERBS = SCORE_VERBS - {"mass", "scores", "weights", "tally"} | {"scale_heads"}


class Attention(RowView):
    """One layer's attention as a strategy sees it; every verb is branch-free in values.

    ``rows=("main",)`` and ``queries="emitting"`` by default: "emitting" queries predict a token
    (p >= P-1), "generated" are p >= P, "prompt" p < P, "after_image" are text that sees an image,
    "all" is all.
    """

    def __init__(
        self,
        layer: int,
        m: ModelInfo,
        blocks: Mapping[str, AttentionBlock],
        hooks: Hooks,
        owner: str = "",
    ) -> None:
        self.layer = layer
        self.m = m
        self.state = hooks.state
        self.carry = hooks.carry
        self._blocks = blocks
        self._hooks = hooks
        self._owner = owner

    @property
    def confidence(self) -> Tensor:
        """float32 [R, Q]: largest probability of the raw scores that gave a query's token.

        1 for tokens of the prompt.
        """
        self._use("confidence", ("main",))
        return _need(self._hooks.confidence)()

    def key(self, name: str) -> Tensor:
        """float32 [R, .., N]: a `PerImageToken` of the state on the main row's image keys."""
        self._use("key", ("main",))
        mask, values = self._keys("main").kind == IMAGE, [own.values for own in self.state[name]]
        rows, count = mask.shape
        laid = mask.new_zeros((rows, *values[0].shape[:-1], count)).float()
        for request, own in enumerate(values):  # pictures differ in their token counts
            laid[request, ..., mask[request]] = own.to(laid)
        return laid

    def token_mask(self, name: str, fn: Callable[[Tensor], Tensor]) -> Segment:
        """Keys for which ``fn(x [T, D]) -> bool [T]`` holds on the residual entering this layer.

        Each prompt token is judged once per layer; generated tokens are False.
        """
        self._use("token_mask", ())
        return Segment(lambda row: self._hooks.token_mask(name, fn, row))

    def at_first_token(self, name: str, fn: Callable[[], Any]) -> Any:
        """``fn() -> [R, ...]``, evaluated in the forward that emits token 1 and kept, per layer."""
        self._use("at_first_token", ())
        return self._hooks.at_first_token(name, fn)

    def keys_at_first_token(self, name: str, fn: Callable[[], Tensor]) -> Tensor:
        """``fn() -> [R, .., N]`` of the main row's keys, kept likewise; 0 for later keys."""
        self._use("keys_at_first_token", ("main",))
        return _need(self._hooks.keys_at_first_token)(name, fn)

    def tally(self, name: str, x: Tensor, *, queries: Queries = "emitting") -> Tensor:
        """float32 [R, N]: numbers ``x`` [R, Q] of the main row's queries, summed at their own keys.

        Sums are over all layers for tokens of earlier forwards, over the layers so far for those of
        this one, and are kept for the whole answer; keys whose queries were never counted have 0.
        """
        self._use("tally", ("main",), queries)
        keys = self._keys("main")
        mine = self.own_key.of("main") & keys.queries(queries)[..., None]  # [R, Q, N]
        return _need(self._hooks.tally)(name, (mine * x[..., None]).sum(1), mine.any(1))

    def top_keys(
        self, seg: Segment, value: Tensor, k: int | Tensor, *, largest: bool = True
    ) -> Segment:
        """The k keys of a segment with the largest (smallest) ``value`` [R, N].

        k is one number or [R]. Chosen at once: a segment carried to later layers keeps this choice.
        """
        worst = NEG_INF if largest else float("inf")
        limit = k if isinstance(k, int) else k[:, None]
        chosen: dict[str, Tensor] = {}
        for row in self._blocks:
            mask = seg.of(row)
            masked = value.masked_fill(~mask, worst)
            order = masked.sort(dim=-1, descending=largest, stable=True).indices
            chosen[row] = (order.argsort(-1) < limit) & mask
        return Segment(lambda row: chosen[row])

    # Reads ----------------------------------------------------------------------------------------
    @overload
    def mass(self, seg: Segment, *, queries: Queries = "emitting") -> Tensor: ...

    @overload
    def mass(
        self, seg: Segment, second: Segment, /, *more: Segment, queries: Queries = "emitting"
    ) -> tuple[Tensor, ...]: ...

    def mass(
        self, seg: Segment, *more: Segment, queries: Queries = "emitting"
    ) -> Tensor | tuple[Tensor, ...]:
        """float32 [R, H, Q] attention mass of the main row on a segment, after the score edits.

        Several segments are read in one pass and give one tensor each.
        """
        import torch

        self._use("mass", ("main",), queries)
        weights = self._blocks["main"].weights()  # [R, H, Q, N]
        masks = torch.stack([segment.of("main") for segment in (seg, *more)], -1).to(weights.dtype)
        sums = (weights.flatten(1, 2) @ masks).reshape(*weights.shape[:3], -1)
        masses = torch.unbind(sums, -1)
        return masses if more else masses[0]

    def scores(self, seg: Segment, *, row: str = "main") -> Tensor:
        """float32 [R, H, Q, N] logits, -inf outside the segment; the last query emits a token."""
        self._use("scores", (row,), "emitting")
        return self._blocks[row].scores().masked_fill(~seg.of(row)[:, None, None], NEG_INF)

    def weights(self, seg: Segment, *, row: str = "main") -> Tensor:
        """float32 [R, H, Q, N] weights, 0 outside the segment; the last query emits a token."""
        self._use("weights", (row,), "emitting")
        return self._blocks[row].weights() * seg.of(row)[:, None, None]

    def head_outputs(self, row: str = "main") -> Tensor:
        """float32 [R, 1, H, d] head outputs of the last query, before o_proj."""
        self._use("head_outputs", (row,), "emitting")
        block = self._blocks[row]
        whole = block.output() if block.touched else block.base
        return whole[:, :, -1:].transpose(1, 2).float()

    def received(self, *, own: bool = True, of: Tensor | None = None) -> Tensor:
        """float32 [R, H, N]: attention that each key of the main row gets from all prompt queries.

        A sum over the queries, before any edit in this layer, with or without what a token pays
        itself; ``of`` [R, N] weighs a prompt token's query by the number at its own key. It reads
        the prompt's queries once more, block by block: ask within `at_first_token` or
        `keys_at_first_token` only.
        """
        self._use("received", ("main",))
        return _need(self._hooks.received)(own, of)

    def paid(self, seg: Segment) -> Tensor:
        """float32 [R, H, N]: attention that each prompt token pays a segment, at its own key.

        Like `received`: before any edit, in blocks, and only within what is kept.
        """
        self._use("paid", ("main",))
        return _need(self._hooks.paid)(seg.of("main"))

    # Edits ----------------------------------------------------------------------------------------
    def open(self, mask: Tensor, *, rows: tuple[str, ...] = ("main",)) -> None:
        """Let queries of the prompt see keys after them, bool [R, Q, N] of each row.

        It comes before all else, and the prompt then starts whole.
        """
        self._use("open", rows, "prompt")
        for row in self._present(rows):
            self._blocks[row].open(mask & (self._keys(row).kind != PAD)[:, None])

    def reposition(
        self,
        seg: Segment,
        queries_at: Tensor,
        keys_at: Tensor,
        *,
        rows: tuple[str, ...] = ("main",),
        queries: Queries = "all",
    ) -> None:
        """Scores of a segment as if queries stood at [R, Q] and its keys at [R, N].

        Rotary positions are turned on from where they are, so nothing in the cache changes.

        Raises:
            UnsupportedStrategy: The model's rotation is not known.
        """
        self._use("reposition", rows, queries)
        if not self.m.rope and self._hooks.trace is None:
            raise UnsupportedStrategy(
                f"{self._owner} moves positions, and the config of this model does not say by one "
                "fixed rotation how; use another model or strategy."
            )
        for row in self._present(rows):
            block, standing = self._blocks[row], self.standing(row)
            before = block.scores()
            turns = before.new_tensor(self.m.rope or (1.0,))
            by = queries_at.float() - block.keys.position.float()
            moved = block.elsewhere(by, keys_at.float() - standing, turns)
            chosen = block.keys.queries(queries)[:, None, :, None]
            on = chosen & seg.of(row)[:, None, None] & (before != NEG_INF)
            block.edit_scores(moved.where(on, before))

    def add_scores(
        self,
        seg: Segment,
        f: Callable[[Tensor], Tensor] | Tensor | float,
        *,
        rows: tuple[str, ...] = ("main",),
        queries: Queries = "emitting",
    ) -> None:
        """``s += f(s)`` on a segment, before softmax (renormalised)."""
        self._edit_scores(
            "add_scores", seg, lambda s: s + (f(s) if callable(f) else f), rows, queries
        )

    def scale_scores(
        self,
        seg: Segment,
        c: Any,
        *,
        rows: tuple[str, ...] = ("main",),
        queries: Queries = "emitting",
    ) -> None:
        """``s *= c`` on a segment, never in the shared cache."""
        self._edit_scores("scale_scores", seg, lambda s: s * c, rows, queries)

    def mask(
        self, seg: Segment, *, rows: tuple[str, ...] = ("main",), queries: Queries = "emitting"
    ) -> None:
        """``s = -inf`` on a segment."""
        self._edit_scores("mask", seg, lambda s: s.new_full((), NEG_INF), rows, queries)

    def scale_weights(
        self,
        seg: Segment,
        g: Tensor | float,
        *,
        where: Tensor | None = None,
        rows: tuple[str, ...] = ("main",),
        queries: Queries = "emitting",
    ) -> None:
        """``w *= g`` after softmax, g a number or [R, H, Q]; not renormalised."""
        self._use("scale_weights", rows, queries)
        for row in self._present(rows):
            block = self._blocks[row]
            weights, chosen = block.weights(), block.keys.queries(queries)[:, None]
            on = chosen if where is None else chosen & where
            unit = weights.new_ones(())
            factor = (unit * g if isinstance(g, float | int) else g).where(on, unit)  # [R, H, Q]
            laid = factor[..., None].where(seg.of(row)[:, None, None], unit)
            block.gains = laid if block.gains is None else block.gains * laid

    def average_values(
        self,
        seg: Segment,
        chosen: Tensor,
        *,
        rows: tuple[str, ...] = ("main",),
        queries: Queries = "emitting",
    ) -> None:
        """Chosen keys of a segment give a head its mean value, one number for all dimensions.

        Args:
            seg: The mean is over its keys and all dimensions.
            chosen: Bool [R, H, Q, N].
            rows: Their names.
            queries: For which.
        """
        self._use("average_values", rows, queries)
        for row in self._present(rows):
            block, over = self._blocks[row], seg.of(row)
            asked = block.keys.queries(queries)[:, None, :, None]
            block.average(chosen & asked & over[:, None, None], over)

    def scale_heads(
        self, g: Tensor, *, rows: tuple[str, ...] = ("main",), queries: Queries = "emitting"
    ) -> None:
        """Head outputs times g ([R, H] or [R, H, Q]), before o_proj."""
        self._use("scale_heads", rows, queries)
        wide = g if g.dim() == 3 else g[..., None]
        for row in self._present(rows):
            block = self._blocks[row]
            chosen = block.keys.queries(queries)
            laid = wide.where(chosen[:, None], wide.new_ones(()))
            block.head_gain = laid if block.head_gain is None else block.head_gain * laid

    def branch_off(self, weights: Tensor) -> None:
        """Carry the last query's head outputs under ``weights`` [R, H, N] to the last layer.

        They take no part in any other layer, and this one goes on as it would: `Step.branch` makes
        logits of them.
        """
        self._use("branch_off", ("main",))
        _need(self._hooks.branch)(self._blocks["main"].under(weights))

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
            on = chosen[:, None, :, None] & seg.of(row)[:, None, None] & (before != NEG_INF)
            after = f(before.masked_fill(~on, 0)).expand(before.shape).where(on, before)
            block.edit_scores(after)

    def _present(self, rows: tuple[str, ...]) -> list[str]:
        return [row for row in rows if row in self._blocks]

    def _use(self, verb: str, rows: tuple[str, ...], queries: Queries = "emitting") -> None:
        if self._hooks.allowed is not None and verb not in self._hooks.allowed:
            raise HookNeverFired(
                f"{self._owner}.attend used {verb!r} in layer {self.layer}, which tracing never "
                "met; make the call unconditional and choose with where=."
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


def _need(hook: T | None) -> T:
    """A hook that the engine lends."""
    if hook is None:
        raise HookNeverFired("attention: this engine does not lend a hook that `attend` called.")
    return hook
