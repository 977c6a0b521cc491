"""In a worker: vLLM's attention kernel runs for everyone, edited queries are computed again.

Only queries that some strategy edits are overwritten; all other output is the kernel's, bit for
bit. Keys and values come from the paged cache, which already holds those of this step. Where ranks
have a part of the heads each, edits are of all of them (see `tensor_parallel`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from halludecode.core.attention import Attention, Hooks
from halludecode.core.attention_block import AttentionBlock, RowKeys
from halludecode.core.errors import HookNeverFired, UnsupportedStrategy
from halludecode.core.tracing import TracedStrategy
from halludecode.engines.vllm.worker import kv_cache as paged
from halludecode.engines.vllm.worker.edit_batch import EditBatch, acting
from halludecode.engines.vllm.worker.tensor_parallel import all_heads, own_heads

BLOCK = 64  # query rows recomputed at a time: memory grows with the prompt, not with its square
CHECK = 2e-2  # relative difference from the kernel above which the cache was read wrongly


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
    """

    number: int
    query: Tensor
    cache: Tensor
    block_table: Tensor | None
    scaling: float
    out: Tensor
    x: Tensor | None = None
    kv: dict[tuple[int, str], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def keys_values(self, unit: EditBatch, row: str) -> tuple[Tensor, Tensor]:
        """[R, G, N, d] of a unit's row, N up to its last query."""
        which = (id(unit), row)
        if which not in self.kv:
            table = unit.blocks(row, self.table, self.cache.shape[2])
            keys, values = self.read(table, unit.reach(row))
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

    def check(self, layer: Layer, unit: EditBatch, row: str) -> None:
        """Compare one unedited query with the kernel's output.

        Raises:
            HookNeverFired: They differ, so edits would be wrong.
        """
        if layer.number in self._done:
            return
        keys, values = layer.keys_values(unit, row)
        span = unit.spans[row][0]
        at = span.flat.stop - 1
        want = all_heads(layer.out[at], 0).float()
        query = all_heads(layer.query[at], 0)
        have = paged.plain(query, keys[0], values[0], layer.scaling, span.stop)
        gap = float((want - have).abs().max() / want.abs().max().clamp_min(1e-6))
        if not gap < CHECK:
            raise HookNeverFired(
                f"Attention of layer {layer.number} cannot be edited in this vLLM: recomputed from "
                f"its KV cache it differs from the kernel's by {gap:.0%}; use another dtype or "
                "attention backend, or engine='hf'."
            )
        self._done.add(layer.number)


def edit(layer: Layer, unit: EditBatch, checked: Checked) -> None:
    """Let every part of a unit's plan act on one layer."""
    here = [
        (i, part)
        for i, part in acting(unit.plan, unit.plan.attending)
        if layer.number in part.layers
    ]
    scored = [(i, part) for i, part in here if part.phase == "scores"]
    plain = [(i, part) for i, part in here if part.phase == "outputs"]
    if scored:
        which = tuple(i for i, _ in scored)
        if which not in unit.cuts:  # the same in every layer
            unit.cuts[which] = _blocks(unit, scored)
        for far, near in unit.cuts[which]:
            _block(layer, unit, scored, far, near, checked)
    if plain:
        width = max(unit.width(row) for row in unit.spans)
        _block(layer, unit, plain, width, 0, checked)
    for i, _ in here:
        unit.fire("attend", i, layer.number)


def _blocks(unit: EditBatch, scored: list[tuple[int, TracedStrategy]]) -> list[tuple[int, int]]:
    """Query ranges, counted from the end of every row, that any part may edit; last one last."""
    device = torch.device("cpu")
    rows = {row for i, part in scored for n, row in unit.names(i).items() if n in part.attend_rows}
    if not rows:
        return []
    far = 0
    for i, part in scored:
        for name, row in unit.names(i).items():
            if name in part.attend_rows:
                width = unit.width(row)
                keys = unit.keys(row, 0, width, device)
                for which in part.queries:
                    used = keys.queries(which).any(0).nonzero().flatten()
                    if len(used):
                        far = max(far, width - int(used[0]))
    if not far and unit.prompting and any("token_mask" in part.verbs for _, part in scored):
        far = 1  # nothing to edit, but every prompt token must be judged
    if len(rows) > 1 or far <= BLOCK:
        return [(far, 0)] if far else []
    return [(at, max(at - BLOCK, 0)) for at in range(far, 0, -BLOCK)]


def _block(
    layer: Layer,
    unit: EditBatch,
    parts: list[tuple[int, TracedStrategy]],
    far: int,
    near: int,
    checked: Checked,
) -> None:
    """One block of queries: those from ``far`` to ``near`` tokens before a row's end."""
    made: dict[str, AttentionBlock] = {}
    places: dict[str, slice] = {}
    for i, part in parts:
        names = unit.names(i)
        blocks: dict[str, AttentionBlock] = {}
        for name in part.attend_rows:
            row = names.get(name)
            if row is None:
                continue
            if row not in made:
                width = unit.width(row)
                places[row] = slice(max(width - far, 0), width - near)
                made[row] = _row_block(layer, unit, row, places[row], part.phase, checked)
            blocks[name] = made[row]
        if not blocks:
            continue
        _check_together(unit, i, part, blocks.keys())
        hooks = _hooks(layer, unit, i, part, blocks, places)
        part.strategy.attend(
            Attention(layer.number, part.model_info, blocks, hooks, part.strategy.name)
        )
    for row, block in made.items():
        if block.touched:
            edited = block.edited()
            at = unit.flat(row, layer.out.device)[:, places[row]]
            made_here = own_heads(block.output(edited), 1)
            layer.out[at] = made_here.transpose(1, 2).to(layer.out.dtype)
            unit.note_change(edited.any(dim=-1))


def _row_block(
    layer: Layer, unit: EditBatch, row: str, place: slice, phase: str | None, checked: Checked
) -> AttentionBlock:
    device = layer.out.device
    keys = unit.keys(row, place.start, place.stop, device)
    at = unit.flat(row, device)[:, place]
    base = all_heads(layer.out[at].transpose(1, 2), 1)
    if phase != "scores":
        return AttentionBlock(keys, None, None, None, None, layer.scaling, base)
    checked.check(layer, unit, row)
    k, v = layer.keys_values(unit, row)
    seen = keys.cached("before", _before)
    q = all_heads(layer.query[at].transpose(1, 2), 1)
    return AttentionBlock(keys, q, k, v, seen[:, None], layer.scaling, base)


def _before(keys: RowKeys) -> Tensor:
    """Bool [R, T, N]: keys that a query may see."""
    at = torch.arange(keys.kind.shape[1], device=keys.kind.device)
    return at[None, None] <= keys.position[..., None]


def _check_together(unit: EditBatch, i: int, part: TracedStrategy, present: Any) -> None:
    """Rows that are edited by what another row shows must be computed in the same step."""
    tag = unit.tags[0]
    lives = dict(zip(tag.rows, tag.lives, strict=True))
    local = dict(tag.local_names[i]) if tag.local_names else {}
    for name in part.attend_rows:
        row = local.get(name)
        missing = name not in present and row is not None
        if missing and (unit.emits() or not unit.prompting) and lives[row] == "answer":
            raise HookNeverFired(
                f"{part.strategy.name}.attend needs row {name!r}, which vLLM did not compute in "
                "the same step."
            )


def _hooks(
    layer: Layer,
    unit: EditBatch,
    i: int,
    part: TracedStrategy,
    blocks: dict[str, AttentionBlock],
    places: dict[str, slice],
) -> Hooks:
    names = unit.names(i)

    def token_mask(name: str, fn: Callable[[Tensor], Tensor], row: str) -> Tensor:
        wide = blocks[row].keys.kind.shape[1]
        return _token_mask(layer, unit, (names[row], i, layer.number, name), fn, wide)

    def at_first_token(name: str, fn: Callable[[], Any]) -> Any:
        return _at_first_token(unit, (i, layer.number, name), fn)

    gone = frozenset(part.attend_rows) - blocks.keys()
    return Hooks(
        token_mask, at_first_token, unit.states[i], unit.carry[i], allowed=part.verbs, gone=gone
    )


def _token_mask(
    layer: Layer,
    unit: EditBatch,
    which: tuple[str, int, int, str],
    fn: Callable[[Tensor], Tensor],
    wide: int,
) -> Tensor:
    """Bool [R, N]: judged once per prompt token, False for generated ones, kept."""
    row, _, number, name = which
    judged: list[Tensor] = []
    for note, span in zip(unit.notes, unit.spans[row], strict=True):
        known = note.token_masks.get(which)
        have = 0 if known is None else len(known)
        want = min(span.stop, span.row.prompt)
        if have < want:
            if layer.x is None or have < span.start:
                raise HookNeverFired(
                    f"The residual entering layer {number} never reached token_mask {name!r}."
                )
            fresh = fn(layer.x[span.flat][have - span.start :]).bool()
            known = fresh if known is None else torch.cat([known, fresh])
            note.token_masks[which] = known
        if known is None:
            known = torch.zeros(0, dtype=torch.bool, device=layer.out.device)
        judged.append(known[:wide])
    found = pad_sequence(judged, batch_first=True)
    return pad(found, (0, wide - found.shape[1]))


def _at_first_token(unit: EditBatch, which: tuple[int, int, str], fn: Callable[[], Any]) -> Any:
    """[R, ...], evaluated in the forward that emits token 1 and kept."""
    if any(which not in note.first_token for note in unit.notes):
        if not unit.emits():
            raise HookNeverFired(f"{which[2]!r} was not found when the first token was written.")
        unit.notes[0].first_token[which] = fn()
    made = [note.first_token[which] for note in unit.notes]
    return made[0] if len(made) == 1 else torch.cat(made)
