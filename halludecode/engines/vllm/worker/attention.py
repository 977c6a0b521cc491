"""In a worker: attention edits: vLLM's kernel runs for everyone, then edited queries do again.

Only queries that some strategy edits are overwritten; all other output is the kernel's, bit for
bit. Keys and values come from the paged cache, which already holds those of this step. Where ranks
have a part of the heads each, edits are of all of them (see `tensor_parallel`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from halludecode.core.attention_block import AttentionBlock, RowKeys
from halludecode.core.errors import HookNeverFired, UnsupportedStrategy
from halludecode.core.tracing import TracedStrategy
from halludecode.engines.layer_edits import (
    BLOCK,
    AttentionLayer,
    Parts,
    edit_attention,
    judges_tokens,
    reached,
)
from halludecode.engines.vllm.worker import kv_cache as paged
from halludecode.engines.vllm.worker.edit_batch import EditBatch, acting
from halludecode.engines.vllm.worker.tensor_parallel import all_heads, own_heads

CHECK = 2e-2  # relative difference from the kernel above which the cache was read wrongly
AHEAD = 128  # written tokens for which `tally` makes room at once
FromEnd = tuple[int, int]  # queries from so many to so many tokens before every row's end


@dataclass
class Layer:
    """One attention layer of one forward.

    Args:
        number: Decoder layer.
        query: [tokens, h, d], heads of this rank.
        cache: The layer's paged cache.
        block_table: int [rows, n]; None where vLLM's backend keeps it to itself.
        scaling: Factor on q k^T.
        out: [tokens, h, d], the kernel's output, edited in place.
        x: [tokens, D], the residual entering the layer, where some token_mask needs it.
        window: Keys a query sees, its own the last; None for all. What the cache holds of those
            before is anything: vLLM gives their blocks to others, or none.
    """

    number: int
    query: Tensor
    cache: Tensor
    block_table: Tensor | None
    scaling: float
    out: Tensor
    x: Tensor | None = None
    window: int | None = None
    kv: dict[tuple[int, str], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def keys_values(self, batch: EditBatch, row: str) -> tuple[Tensor, Tensor]:
        """[R, G, N, d] of a row of a batch, N up to its last query."""
        which = (id(batch), row)
        if which not in self.kv:
            table = batch.blocks(row, self.table, self.cache.shape[2])
            keys, values = self.read(table, batch.reach(row))
            self.kv[which] = all_heads(keys, 1), all_heads(values, 1)
        return self.kv[which]

    @property
    def table(self) -> Tensor:
        """The block table.

        Raises:
            UnsupportedStrategy: The backend does not show it.
        """
        if self.block_table is None:
            raise UnsupportedStrategy(
                "This attention backend of vLLM does not show where a row's keys lie; start with "
                "attention_backend='FLASH_ATTN', or use engine='hf'."
            )
        return self.block_table

    def read(self, table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """[R, g, length, d]: keys and values in some blocks [R, n], heads of this rank."""
        return paged.read(self.cache, table, length, apart=self.cache.device.type == "cpu")


class Checked:
    """Layers whose cache was found to be read rightly, by comparing with the kernel once."""

    def __init__(self) -> None:
        self._done: set[int] = set()

    def check(self, layer: Layer, batch: EditBatch, row: str) -> None:
        """Compare one unedited query with the kernel's output.

        Raises:
            HookNeverFired: They differ, so edits would be wrong.
        """
        if layer.number in self._done:
            return
        keys, values = layer.keys_values(batch, row)
        span = batch.spans[row][0]
        at = span.flat.stop - 1
        want = all_heads(layer.out[at], 0).float()
        query = all_heads(layer.query[at], 0)
        have = paged.plain(query, keys[0], values[0], layer.scaling, span.stop, layer.window)
        gap = float((want - have).abs().max() / want.abs().max().clamp_min(1e-6))
        if not gap < CHECK:
            raise HookNeverFired(
                f"Attention of layer {layer.number} cannot be edited in this vLLM: recomputed from "
                f"its KV cache it differs from the kernel's by {gap:.0%}; use another dtype or "
                "attention backend, or engine='hf'."
            )
        self._done.add(layer.number)


def edit(layer: Layer, batch: EditBatch, checked: Checked) -> None:
    """Let every strategy of a batch's plan act on one layer."""
    edit_attention(BatchAttention(layer, batch, checked), acting(batch.plan, batch.plan.attending))


class BatchAttention(AttentionLayer[str, FromEnd]):
    """One layer of one batch, as `layer_edits` wants it shown.

    Rows of a batch have different lengths, so ranges of queries are counted from their ends, where
    the emitting ones lie side by side.

    Args:
        layer: The tensors of all batches.
        batch: Whose rows are edited.
        checked: Layers that were compared with the kernel.
    """

    rows: EditBatch

    def __init__(self, layer: Layer, batch: EditBatch, checked: Checked) -> None:
        self.number, self.rows = layer.number, batch
        self.layer, self.checked = layer, checked

    def query_blocks(self, parts: Parts) -> list[FromEnd]:
        """From the first query any of these may edit to the end, the same in every layer."""
        places = tuple(i for i, _ in parts)
        if places not in self.rows.query_blocks:
            self.rows.query_blocks[places] = self._query_blocks(parts)
        return self.rows.query_blocks[places]

    def _query_blocks(self, parts: Parts) -> list[FromEnd]:
        far, names = 0, set[str]()
        for row, queries in reached(self.rows, parts):
            names.add(row)
            used = queries.nonzero().flatten()
            if len(used):
                far = max(far, self.rows.width(row) - int(used[0]))
        if not names:
            return []
        if not far and self.rows.prompting and judges_tokens(parts):
            far = 1  # nothing to edit, but every prompt token must be judged
        if len(names) > 1 or far <= BLOCK:
            return [(far, 0)] if far else []
        return self.split((far, 0))

    def split(self, queries: FromEnd) -> list[FromEnd]:
        """From the first to the last."""
        far, near = queries
        return [(at, max(at - BLOCK, near)) for at in range(far, near, -BLOCK)]

    def all_queries(self) -> FromEnd:
        """As many as the longest row has."""
        return max(self.rows.width(row) for row in self.rows.spans), 0

    def _slice(self, row: str, queries: FromEnd) -> slice:
        width = self.rows.width(row)
        return slice(max(width - queries[0], 0), width - queries[1])

    def block(self, row: str, queries: FromEnd, *, scores: bool) -> AttentionBlock:
        """A row's tensors, all heads of them."""
        layer, place = self.layer, self._slice(row, queries)
        device = layer.out.device
        keys = self.rows.keys(row, place.start, place.stop, device)
        at = self.rows.flat(row, device)[:, place]
        base = all_heads(layer.out[at].transpose(1, 2), 1)
        if not scores:
            return AttentionBlock(keys, None, None, None, None, layer.scaling, base)
        self.checked.check(layer, self.rows, row)
        k, v = layer.keys_values(self.rows, row)
        window = layer.window
        visible = keys.cached(f"before, {window}", lambda keys: _before(keys, window))
        q = all_heads(layer.query[at].transpose(1, 2), 1)
        return AttentionBlock(keys, q, k, v, visible[:, None], layer.scaling, base)

    def put_output(self, row: str, queries: FromEnd, output: Tensor) -> None:
        """Write this rank's head outputs in the kernel's place."""
        out = self.layer.out
        at = self.rows.flat(row, out.device)[:, self._slice(row, queries)]
        out[at] = own_heads(output, 1).transpose(1, 2).to(out.dtype)

    def check_present(self, i: int, part: TracedStrategy, names: Collection[str]) -> None:
        """Rows that are edited by what another row shows must be computed in the same step."""
        metadata = self.rows.metadata[0]
        lives = dict(zip(metadata.rows, metadata.lives, strict=True))
        local = dict(metadata.local_names[i]) if metadata.local_names else {}
        for name in part.attend_rows:
            row = local.get(name)
            missing = name not in names and row is not None
            needed = self.rows.emits() or not self.rows.prompting
            if missing and needed and lives[row] == "answer":
                raise HookNeverFired(
                    f"{part.strategy.name}.attend needs row {name!r}, which vLLM did not compute "
                    "in the same step."
                )

    def token_mask(
        self,
        i: int,
        name: str,
        fn: Callable[[Tensor], Tensor],
        row: str,
        block: AttentionBlock,
    ) -> Tensor:
        """Bool [R, N]: judged once per prompt token, False for generated ones, kept."""
        layer, which = self.layer, (row, i, self.number, name)
        width = block.keys.kind.shape[1]
        masks: list[Tensor] = []
        for record, span in zip(self.rows.records, self.rows.spans[row], strict=True):
            mask = record.token_masks.get(which)
            have = 0 if mask is None else len(mask)
            want = min(span.stop, span.row.prompt)
            if have < want:
                if layer.x is None or have < span.start:
                    raise HookNeverFired(
                        f"The residual entering layer {self.number} never reached token_mask "
                        f"{name!r}."
                    )
                judged = fn(layer.x[span.flat][have - span.start :]).bool()
                mask = judged if mask is None else torch.cat([mask, judged])
                record.token_masks[which] = mask
            if mask is None:
                mask = torch.zeros(0, dtype=torch.bool, device=layer.out.device)
            masks.append(mask[:width])
        padded = pad_sequence(masks, batch_first=True)
        return pad(padded, (0, width - padded.shape[1]))

    def at_first_token(self, i: int, name: str, fn: Callable[[], Any]) -> Any:
        """``fn() -> [R, ...]``, evaluated in the forward that emits token 1 and kept."""
        which, records = (i, self.number, name), self.rows.records
        if any(which not in record.first_token for record in records):
            if not self.rows.emits():
                raise HookNeverFired(f"{name!r} was not found when the first token was written.")
            records[0].first_token[which] = fn()
        values = [record.first_token[which] for record in records]
        return values[0] if len(values) == 1 else torch.cat(values)

    def keys_at_first_token(self, i: int, name: str, fn: Callable[[], Tensor]) -> Tensor:
        """``fn() -> [R, .., N]``, kept likewise; 0 for keys that came later."""
        which, records = (i, self.number, name), self.rows.records
        if any(which not in record.first_keys for record in records):
            if not self.rows.emits():
                raise HookNeverFired(f"{name!r} was not found when the first token was written.")
            records[0].first_keys[which] = fn()[0]
        width = self.rows.reach(self.rows.named_rows(i)["main"])
        kept = [record.first_keys[which] for record in records]
        return torch.stack([pad(own, (0, width - own.shape[-1])) for own in kept])

    def tally(self, i: int, name: str, x: Tensor, mine: Tensor) -> Tensor:
        """float32 [R, N]: sums so far.

        Kept by layer, and written over: after preemption the same tokens are computed again.
        """
        sums, width = list[Tensor](), x.shape[-1]
        for record, told, here in zip(self.rows.records, x, mine, strict=True):
            kept = record.tallies.get((i, name))
            if kept is None:
                kept = x.new_zeros(self.rows.plan.parts[i].model_info.num_layers, 0)
            if kept.shape[-1] < width:
                kept = record.tallies[i, name] = pad(kept, (0, width + AHEAD - kept.shape[-1]))
            kept, so_far = kept[:, :width], kept[: self.number + 1, :width]
            kept[self.number] = told.where(here, kept[self.number])
            sums.append(so_far.sum(0).where(here | self.rows.prompting, kept.sum(0)))
        return torch.stack(sums)


def _before(keys: RowKeys, window: int | None) -> Tensor:
    """Bool [R, T, N]: keys that a query may see."""
    at = torch.arange(keys.kind.shape[1], device=keys.kind.device)
    position = keys.position[..., None]
    visible = at[None, None] <= position
    return visible if window is None else visible & (at[None, None] > position - window)
