"""Attention under an edit beside what an official forward gave on the same queries and keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from halludecode.core.attention import Attention, Hooks
from halludecode.core.attention_block import GENERATED, IMAGE, SYSTEM, TEXT, AttentionBlock
from halludecode.core.plan import typical_model_info
from halludecode.core.strategy import Strategy
from tests.core.test_attention import keys_of

OFFICIAL = json.loads(Path("tests/data/attention_official.json").read_text(encoding="utf-8"))
KINDS = [SYSTEM, SYSTEM, IMAGE, IMAGE, IMAGE, TEXT, GENERATED, GENERATED]
BASE, CASES = OFFICIAL["attention"]["base"], OFFICIAL["attention"]["cases"]


def official_block(queries: list[int]) -> AttentionBlock:
    """The block of some queries of the official example."""
    q, k, v = (torch.tensor([BASE[name]], dtype=torch.float64) for name in "qkv")
    scaling = q.shape[-1] ** -0.5
    visible = torch.ones(len(KINDS), len(KINDS)).tril().bool()[queries]
    scores = (q[:, :, queries] @ k.transpose(-1, -2) * scaling).masked_fill(~visible, -torch.inf)
    keys = keys_of(KINDS, queries, BASE["length"])
    base = scores.softmax(-1) @ v
    return AttentionBlock(keys, q[:, :, queries], k, v, visible, scaling, base, _scores=scores)


def outputs_of(
    strategy: Strategy,
    queries: list[int],
    state: dict[str, Any] | None = None,
    *,
    layer: int = 7,
    confidence: float = 1.0,
    **model: Any,
) -> torch.Tensor:
    """[queries, heads * d] after a strategy's edit in a layer of 32, by default the eighth."""
    from dataclasses import replace

    block = official_block(queries)
    hooks = Hooks(
        lambda *a: None,  # type: ignore[arg-type, return-value]
        lambda name, fn: fn(),
        state or {},
        confidence=lambda: torch.full((1, len(queries)), confidence, dtype=torch.float64),
    )
    m = replace(typical_model_info(), num_heads=3, num_kv_heads=3, **model)
    strategy.attend(Attention(layer, m, {"main": block}, hooks, strategy.name))
    return block.output()[0].transpose(0, 1).flatten(1)


def close(got: torch.Tensor, name: str, queries: list[int]) -> None:
    """Equal to the official outputs of these queries, whose softmax was in float32."""
    expected = torch.tensor(CASES[name]["out"], dtype=torch.float64)[queries]
    torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=0)
