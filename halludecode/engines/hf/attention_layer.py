"""One layer's attention in one forward of a batch, as `layer_edits` wants it shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from halludecode.core.attention_block import GENERATED, PAD, AttentionBlock
from halludecode.core.errors import HookNeverFired
from halludecode.engines.hf.attention_metadata import AttentionMetadata, RowPlacement
from halludecode.engines.layer_edits import BLOCK, AttentionLayer, Parts, judges_tokens, reached

if TYPE_CHECKING:
    from halludecode.engines.hf.forward_context import ForwardContext

AHEAD = 128  # generated tokens for which token masks are laid out at once
Columns = tuple[int, int]  # first query and the one after the last, among those of the forward


class HFAttentionLayer(AttentionLayer[RowPlacement, Columns]):
    """The tensors of transformers' attention function.

    Args:
        context: Of the forward.
        metadata: Where its keys and queries lie.
        number: Decoder layer.
        q: [rows, H, Q, d].
        k: [rows, G, N, d].
        v: [rows, G, N, d].
        mask: Bool [rows or 1, 1, Q, N] of visible keys; None where attention is causal.
        scaling: Factor on q k^T.
        out: [rows, Q, H, d], the kernel's output, edited in place.
    """

    rows: ForwardContext

    def __init__(
        self,
        context: ForwardContext,
        metadata: AttentionMetadata,
        number: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scaling: float,
        out: Tensor,
        cap: float | None,
    ) -> None:
        self.rows, self.metadata, self.number = context, metadata, number
        self.q, self.k, self.v, self.mask = q, k, v, mask
        self.scaling, self.out, self.cap = scaling, out, cap

    def query_blocks(self, parts: Parts) -> Iterator[Columns]:
        """From the first to the last query any of these may edit, found once per forward."""
        places = tuple(i for i, _ in parts)
        if places not in self.rows.columns:
            self.rows.columns[places] = self._edited_columns(parts)
        yield from self.split(self.rows.columns[places])

    def split(self, queries: Columns) -> Iterator[Columns]:
        """From the first to the last."""
        start, stop = queries
        for at in range(start, stop, BLOCK):
            yield at, min(at + BLOCK, stop)

    def _edited_columns(self, parts: Parts) -> Columns:
        width = self.metadata.width
        used = torch.zeros(width, dtype=torch.bool, device=self.metadata.kind.device)
        for _, queries in reached(self.rows, parts):
            used |= queries
        columns = used.nonzero().flatten().tolist()
        if not columns and judges_tokens(parts):
            columns = [width - 1]
        return (columns[0], columns[-1] + 1) if columns else (0, 0)

    def all_queries(self) -> Columns:
        """Every query of this forward."""
        return 0, self.q.shape[2]

    def block(self, row: RowPlacement, queries: Columns, *, scores: bool) -> AttentionBlock:
        """A row's tensors, of all requests that have it."""
        start, stop = queries
        keys = self.rows.row_keys(row, start, stop)
        base = self.out[row.at, start:stop].transpose(1, 2)
        if not scores:
            return AttentionBlock(keys, None, None, None, None, self.scaling, base)
        return AttentionBlock(
            keys,
            self.q[row.at][:, :, start:stop],
            self.k[row.at],
            self.v[row.at],
            self._visible(row, start, stop),
            self.scaling,
            base,
            self.cap,
        )

    def put_output(self, row: RowPlacement, queries: Columns, output: Tensor) -> None:
        """Write head outputs in the kernel's place."""
        start, stop = queries
        self.out[row.at, start:stop] = output.transpose(1, 2)

    def _visible(self, row: RowPlacement, start: int, stop: int) -> Tensor:
        n = self.k.shape[2]
        if self.mask is not None:
            return row.of_mask(self.mask)[:, :, start:stop, :n]
        causal = self.rows.causal
        if (start, stop, n) not in causal:
            at = torch.arange(n, device=self.metadata.kind.device)
            first = n - self.metadata.width + start
            causal[start, stop, n] = at <= at[first : first + stop - start, None]
        return causal[start, stop, n][None, None]

    def token_mask(
        self,
        i: int,
        name: str,
        fn: Callable[[Tensor], Tensor],
        row: RowPlacement,
        block: AttentionBlock,
    ) -> Tensor:
        """Bool [R, N]: judged once per prompt token, False for generated ones, kept."""
        return self._token_mask(i, name, fn)[row.at]

    def _token_mask(self, i: int, name: str, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """The same for all batch rows."""
        masks, metadata = self.rows.token_masks, self.metadata
        width = metadata.kind.shape[1]
        mask = masks.get((i, self.number, name))
        if mask is None or mask.shape[1] < width:
            have = 0 if mask is None else mask.shape[1]
            kind = metadata.kind[:, have:]
            if metadata.prompting:
                x = self.rows.inputs.get(self.number)
                if x is None:
                    raise HookNeverFired(
                        f"The residual entering layer {self.number} never reached token_mask "
                        f"{name!r}."
                    )
                judged = fn(x.reshape(-1, x.shape[-1])).reshape(x.shape[:2]).bool()
                judged = judged & (kind != GENERATED) & (kind != PAD)
            else:  # generated tokens are False, for some steps ahead
                judged = kind.new_zeros(len(kind), width - have + AHEAD, dtype=torch.bool)
            mask = judged if mask is None else torch.cat([mask, judged], 1)
            masks[i, self.number, name] = mask
        return mask[:, :width]

    def at_first_token(self, i: int, name: str, fn: Callable[[], Any]) -> Any:
        """``fn() -> [R, ...]``, evaluated in the forward that emits token 1 and kept."""
        kept, which = self.rows.first_token, (i, self.number, name)
        if which not in kept:
            kept[which] = fn()
        return kept[which]

    def keys_at_first_token(self, i: int, name: str, fn: Callable[[], Tensor]) -> Tensor:
        """``fn() -> [R, .., N]``, kept likewise; 0 for keys that came later."""
        kept, which = self.rows.first_keys, (i, self.number, name)
        if which not in kept:
            kept[which] = fn()
        return pad(kept[which], (0, self.metadata.kind.shape[1] - kept[which].shape[-1]))

    def tally(self, i: int, name: str, x: Tensor, mine: Tensor) -> Tensor:
        """float32 [R, N]: sums so far; a forward has each layer once."""
        kept = self.rows.tallies.get((i, name))
        known = x if kept is None else pad(kept, (0, x.shape[-1] - kept.shape[-1])) + x
        self.rows.tallies[i, name] = known
        return known
