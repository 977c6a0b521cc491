"""Keys and values come back from a paged cache as they were written, in both of vLLM's layouts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halludecode.engines.vllm.worker import kv_cache as paged


def written(keys, values, table, size, *, apart):
    """A cache [blocks, G, block, 2d] that holds keys and values [R, G, N, d] where a table says."""
    r, heads, length, d = keys.shape
    cache = torch.full((int(table.max()) + 2, heads, size, 2 * d), float("nan"))
    for row in range(r):
        for at in range(length):
            block, place = cache[int(table[row, at // size])], at % size
            if apart:  # keys [d, block], then values [block, d]
                flat = block.view(heads, 2, size * d)
                flat[:, 0].view(heads, d, size)[:, :, place] = keys[row, :, at]
                flat[:, 1].view(heads, size, d)[:, place] = values[row, :, at]
            else:
                block[:, place, :d], block[:, place, d:] = keys[row, :, at], values[row, :, at]
    return cache


@pytest.mark.parametrize("apart", [True, False], ids=["cpu", "gpu"])
@given(
    rows=st.integers(1, 3), heads=st.integers(1, 3), d=st.sampled_from([1, 4]),
    size=st.sampled_from([2, 4]), length=st.integers(1, 9), seed=st.integers(0, 99),
)  # fmt: skip
def test_what_was_written_is_read(apart, rows, heads, d, size, length, seed):
    rng = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, rows, heads, length, d, generator=rng)
    blocks = -(-length // size)
    table = torch.randperm(rows * blocks + 2, generator=rng)[: rows * blocks].view(rows, blocks)
    cache = written(keys, values, table, size, apart=apart)
    padded = torch.nn.functional.pad(table, (0, 2), value=-1)  # past a row's end
    found = paged.tables(padded, torch.arange(rows), length, size)
    back = paged.read(cache, found, length, apart=apart)
    assert torch.equal(back[0], keys) and torch.equal(back[1], values)
