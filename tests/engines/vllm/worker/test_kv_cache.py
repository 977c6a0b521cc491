"""Keys and values come back from a paged cache as they were written, in both of vLLM's layouts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halludecode.core.attention_block import RowKeys
from halludecode.engines.vllm.worker import kv_cache as paged
from halludecode.engines.vllm.worker.attention import _before


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


def test_a_query_of_a_layer_that_slides_sees_its_window():
    """What lies before is anything: vLLM gives its blocks to others."""
    q, keys, values = torch.randn(2, 4), torch.randn(1, 9, 4), torch.randn(1, 9, 4)
    rubbish = [torch.cat([torch.full((1, 3, 4), 1e9), x[:, 3:]], 1) for x in (keys, values)]
    wanted = paged.plain(q, keys[:, 3:], values[:, 3:], 0.5, 5)
    assert torch.equal(paged.plain(q, *rubbish, 0.5, 8, 5), wanted)
    assert torch.equal(
        paged.plain(q, keys, values, 0.5, 8, 20), paged.plain(q, keys, values, 0.5, 8)
    )


def test_edited_queries_see_their_windows():
    kinds = torch.zeros(1, 6, dtype=torch.int8)
    keys = RowKeys(kinds, kinds.short(), torch.tensor([[4, 5]]), kinds[:, 4:], torch.tensor([4]))
    assert _before(keys, None).int().tolist() == [[[1, 1, 1, 1, 1, 0], [1] * 6]]
    assert _before(keys, 3).int().tolist() == [[[0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]]]
