"""In a worker: reading one row's keys and values back from vLLM's paged cache."""

from __future__ import annotations

import torch
from torch import Tensor


def read(cache: Tensor, table: Tensor, length: int, *, apart: bool) -> tuple[Tensor, Tensor]:
    """Keys and values [R, G, length, d] of rows, in the cache's dtype.

    Args:
        cache: A layer's cache, [blocks, G, block, 2d]. On a CPU a block of a head holds its keys
            transposed, [d, block], then its values, [block, d] (layouts "vec" and "vec16");
            elsewhere every token holds its key, then its value.
        table: int [R, n], blocks of each row in order; entries past a row's end may be anything
            inside the cache.
        length: Tokens wanted of every row, those past a row's end being arbitrary.
        apart: Whether a block is as on a CPU.
    """
    _, heads, size, width = cache.shape
    d = width // 2
    r, n = table.shape
    row, head = table.long()[:, None], torch.arange(heads, device=cache.device)[:, None]
    if apart:  # all is copied once, to its place, in pieces as long as can be
        half = 2 * (row * heads + head)  # [R, G, n]: place of a block's keys, then of its values
        values = cache.view(-1, size * d).index_select(0, half.flatten() + 1)
        number = half[:, :, None] * d + torch.arange(d)[:, None]  # [R, G, d, n]
        keys = cache.view(-1, size).index_select(0, number.flatten())
        keys = keys.view(r, heads, d, n * size).transpose(-1, -2)
        values = values.view(r, heads, n * size, d)
    else:
        keys, values = cache[row, head].flatten(2, 3).split(d, -1)
    return keys[:, :, :length], values[:, :, :length]


def tables(block_table: Tensor, rows: Tensor, length: int, size: int) -> Tensor:
    """Int [R, n]: the blocks of some rows of the batch, enough for ``length`` tokens."""
    return block_table[rows, : -(-length // size)].clamp_min(0)


def plain(
    q: Tensor, keys: Tensor, values: Tensor, scaling: float, seen: int, window: int | None = None
) -> Tensor:
    """float32 [H, d]: unedited attention of one query [H, d] over the first ``seen`` keys.

    Where a layer slides, over the last ``window`` of these.
    """
    heads, groups = q.shape[0], keys.shape[0]
    near = slice(max(seen - window, 0) if window else 0, seen)
    k = keys[:, near].float().repeat_interleave(heads // groups, 0)
    v = values[:, near].float().repeat_interleave(heads // groups, 0)
    weights = (torch.einsum("hd,hnd->hn", q.float(), k) * scaling).softmax(-1)
    return torch.einsum("hn,hnd->hd", weights, v)
