"""IMCCD: a whole run beside a plain model whose attention is written out in loops.

What the official code gave is in tests/data/official, see tests/benchmarks/test_parity.py.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from halludecode.core.attention_block import AttentionBlock
from halludecode.core.errors import UnsupportedStrategy
from halludecode.core.plan import compile_plan, typical_model_info
from tests.core.test_attention import keys_of
from tests.engines.hf.test_naive_parity import N, check
from tests.support import families, naive

IMAGE = families.pictures()[1]
NOW: dict[str, object] = {}  # image tokens, rotary base, and whether values are levelled


def turned(x, by):
    """One vector moved on by some positions, pair by pair."""
    half, out = len(x) // 2, list(x)
    for i in range(half):
        angle = by * NOW["theta"] ** (-i / half)
        a, b = x[i], x[half + i]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[half + i] = b * math.cos(angle) + a * math.sin(angle)
    return out


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def loops(module, query, key, value, attention_mask=None, **more):
    """[1, T, H, d]: every query by itself; text behind the picture sees it drawn together."""
    image, scaling = NOW["image"], more["scaling"]
    times = query.shape[1] // key.shape[1]
    q, k, v = query[0].tolist(), key[0].tolist(), value[0].tolist()
    nearer = [j - sum(i < j for i in image) * 2 / 3 for j in range(query.shape[2])]
    moved = [{j: turned(rows[j], nearer[j] - j) for j in image} for rows in k]
    out = torch.zeros(query.shape[2], query.shape[1], query.shape[3])
    for t in range(query.shape[2]):
        asks = t > max(image)
        scores = []
        for h in range(query.shape[1]):
            row = [dot(q[h][t], k[h // times][j]) * scaling for j in range(t + 1)]
            if asks:
                own = turned(q[h][t], nearer[t] - t)
                for j in image:
                    row[j] = dot(own, moved[h // times][j]) * scaling
            scores.append(row)
        mean = sum(row[j] for row in scores for j in image if j <= t) / len(image) / len(scores)
        for h, row in enumerate(scores):
            values = v[h // times]
            flat = [x for j in image for x in values[j]]
            level = [sum(flat) / len(flat)] * len(values[0])
            weights = torch.tensor(row).softmax(-1).tolist()
            for j, w in enumerate(weights):
                hit = NOW["levelled"] and asks and j in image and row[j] > mean
                out[t, h] += w * torch.tensor(level if hit else values[j])
    return out[None], None


AttentionInterface.register("halludecode_test_imccd", loops)
AttentionMaskInterface.register("halludecode_test_imccd", eager_mask)


def test_a_whole_run(family_engine):
    engine, family = family_engine("llava"), families.FAMILIES["llava"]
    inputs = naive.inputs_of(engine.processor, family.prompt("What is this?"), [IMAGE])
    image = (inputs["input_ids"][0] == engine.row_builder.inputs.image_token).nonzero()[:, 0]
    theta = engine.model.config.text_config.rope_parameters["rope_theta"]
    NOW.update(image=set(image.tolist()), theta=theta)
    other = copy.deepcopy(engine.model)
    other.set_attn_implementation({"text_config": "halludecode_test_imccd"})

    def step(ids, t):
        rows = []
        for levelled in (False, True):
            NOW["levelled"] = levelled
            rows.append(naive.next_logits(other, inputs, ids).tolist())
        return torch.tensor(naive.combine_vcd(*rows, 1.0, 0.2))

    check(engine, "imccd", naive.write(step, N, ()), IMAGE)


def test_chosen_keys_give_the_mean_value():
    """Of two key-value heads for four query heads."""
    rng = torch.Generator().manual_seed(0)
    q, base = torch.randn(2, 1, 4, 1, 3, generator=rng)
    k, v = torch.randn(2, 1, 2, 5, 3, generator=rng)
    over = torch.tensor([[False, True, True, True, False]])
    chosen = torch.zeros(1, 4, 1, 5).bool()
    chosen[0, 1, 0, 2] = chosen[0, 3, 0, 3] = True
    keys = keys_of([1, 2, 2, 2, 3], [4], 5)
    block = AttentionBlock(keys, q, k, v, torch.ones(1, 1, 1, 5).bool(), 1.0, base)
    block.average(chosen, over)
    weights = block.weights()[0, :, 0]
    for head in range(4):
        values = v[0, head // 2].clone()
        for key in chosen[0, head, 0].nonzero()[:, 0].tolist():
            values[key] = v[0, head // 2, 1:4].mean()
        wanted = weights[head] @ values if head in (1, 3) else None
        if wanted is not None:
            torch.testing.assert_close(block.output()[0, head, 0], wanted)
    assert block.edited().all()


def test_needs_rows_and_where_it_is_refused(family_engine):
    plan = compile_plan("imccd", typical_model_info())
    assert {"rows", "reposition", "scores", "average_values"} <= plan.needs
    assert plan.rows == ("main", "levelled") and plan.whole and not plan.can_wait
    with pytest.raises(UnsupportedStrategy, match="three dimensions"):
        family_engine("qwen2_5_vl").plan("imccd")
