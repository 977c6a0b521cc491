"""SPIN: the published vector, its ranking in loops, whole runs written out slowly, fixed heads."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch

import halludecode as hd
from halludecode.core.attention_block import IMAGE, SYSTEM, TEXT, AttentionBlock
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from tests.core.test_attention import CASES, attention, block_of, close, keys_of
from tests.engines.hf.test_naive_parity import N, check
from tests.support import families, naive

CASE = CASES["spin"]


def scaled(block: AttentionBlock) -> list[float]:
    """What the last query's head outputs were multiplied by."""
    return [1.0] * block.base.shape[1] if block.head_gain is None else block.head_gain[0, :, -1]


def test_the_vector():
    q = torch.tensor([CASE["q"]], dtype=torch.float64)[:, :, None]
    k = torch.tensor([CASE["k_image"]], dtype=torch.float64)
    keys = keys_of([IMAGE, IMAGE, IMAGE], [2], 3)
    visible = torch.ones(1, 1, dtype=torch.bool)
    block = AttentionBlock(keys, q, k, k, visible, 2**-0.5, torch.ones(1, 4, 1, 2))
    close(block.scores().sum(-1)[0, :, 0], CASE["score"])
    get("spin", r=CASE["r"], alpha=CASE["alpha"]).attend(attention(block))
    close(scaled(block), CASE["head_output_scale"])
    gate = (torch.tensor(CASE["score"]) / torch.tensor(CASE["score"]).std()).softmax(-1)
    close(gate, CASE["gate"])
    order = torch.tensor(CASE["score"]).argsort(descending=True)
    assert gate.argsort(descending=True).equal(order), "the official gate ranks alike"


def quiet_heads(scores, image, r):
    """Heads that are scaled down, by counting how many heads beat each."""
    z = [sum(s for j, s in enumerate(head) if j in image and s > -math.inf) for head in scores]
    most = math.floor(r * len(z) + 1e-9)
    beaten = [
        sum(other > own or (other == own and i < h) for i, other in enumerate(z))
        for h, own in enumerate(z)
    ]
    return [rank >= most for rank in beaten]


@pytest.mark.parametrize("r", [0.0, 0.25, 0.3, 0.5, 0.95, 1.0])
def test_the_ranking_in_loops(r):
    rng = torch.Generator().manual_seed(3)
    for _ in range(20):
        scores = torch.randn(5, 1, 6, generator=rng).round(decimals=1)
        block = block_of(
            scores.tolist(),
            torch.ones(5, 6, 2).tolist(),
            [SYSTEM, IMAGE, IMAGE, TEXT, IMAGE, TEXT],
            [5],
            6,
        )
        get("spin", r=r, alpha=0.25).attend(attention(block))
        wanted = quiet_heads(scores[:, 0].tolist(), {1, 2, 4}, r)
        assert torch.as_tensor(scaled(block)).tolist() == [0.25 if q else 1.0 for q in wanted]


def test_a_share_of_heads_is_not_lost_to_rounding():
    """0.95 of 20 heads is 19, though the product of floats may fall short of it."""
    block = block_of(
        torch.randn(20, 1, 3).tolist(), torch.ones(20, 3, 1).tolist(), [IMAGE, IMAGE, TEXT], [2], 3
    )
    get("spin", r=0.95, alpha=0.0).attend(attention(block))
    assert float(torch.as_tensor(scaled(block)).sum()) == 19


def test_only_emitting_queries_and_visible_pictures():
    inf = -math.inf
    hidden = [[[inf, inf, 0.5, 0.1]], [[inf, inf, 1.0, 2.0]]]
    block = block_of(hidden, torch.ones(2, 4, 1).tolist(), [IMAGE, IMAGE, TEXT, TEXT], [3], 4)
    get("spin", r=0.0, alpha=0.0).attend(attention(block))
    assert not block.edited().any(), "no image key is visible in this layer"
    scores = torch.randn(2, 3, 4).tolist()
    block = block_of(scores, torch.ones(2, 4, 1).tolist(), [IMAGE, IMAGE, TEXT, TEXT], [1, 2, 3], 4)
    get("spin", r=0.0, alpha=0.0).attend(attention(block))
    assert block.edited().tolist() == [[False, False, True]]


def test_depth_scales_and_off_is_off():
    plan = compile_plan("spin(depth=20)", typical_model_info())
    assert plan.parts[0].layers == frozenset(range(20))
    assert plan.rows == ("main",)
    assert plan.reusable
    assert compile_plan("spin(alpha=1)", typical_model_info()).parts == ()


@contextmanager
def suppressed(model, image, length, r, alpha):
    """Every layer's attention by hand; scores are kept head by head."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    def function(module, query, key, value, attention_mask=None, **kwargs):
        q, k, v = query[0], key[0], value[0]
        group = [h * len(k) // len(q) for h in range(len(q))]
        scores = [q[h] @ k[g].T * kwargs["scaling"] + attention_mask[0, 0] for h, g in
                  enumerate(group)]  # fmt: skip
        out = torch.stack([s.softmax(-1) @ v[g] for s, g in zip(scores, group, strict=True)])
        for row in range(length - 1, out.shape[1]):
            quiet = quiet_heads([s[row].tolist() for s in scores], image, r)
            for head, off in enumerate(quiet):
                out[head, row] *= alpha if off else 1.0
        return out.transpose(0, 1)[None].contiguous(), None

    AttentionInterface.register("test_spin", function)
    AttentionMaskInterface.register("test_spin", eager_mask)
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation({"text_config": "test_spin"})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": before})


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize(("r", "alpha"), [(0.5, 0.08), (0.95, 0.0)])
def test_a_whole_run(family_engine, family, r, alpha):
    engine, row = family_engine(family), families.FAMILIES[family]
    model, image = engine.model, families.pictures()[1]
    main = naive.inputs_of(engine.processor, row.prompt("What is this?"), [image])
    prompt = main["input_ids"][0].tolist()
    images = {i for i, token in enumerate(prompt) if token == model.config.image_token_id}

    def step(ids, t):
        with suppressed(model, images, len(prompt), r, alpha):
            return naive.next_logits(model, main, ids)

    check(engine, f"spin(r={r},alpha={alpha})", naive.write(step, N, ()), image)


def test_it_composes_with_a_contrast(family_engine):
    engine, picture = family_engine("llava"), families.pictures()[1]
    one = hd.Sampling(max_new_tokens=1, logprobs=engine.model_info.vocab_size)

    def scores(spec):
        output = engine.generate([hd.Request("What is this?", [picture])], spec, one)[0]
        top = output.logprobs[0].top
        return torch.tensor([top[i] for i in sorted(top)])

    alone, both = scores("spin(r=0.5)"), scores("spin(r=0.5)+m3id(lam=0.5,gate=1)")
    assert (both - scores("m3id(lam=0.5,gate=1)")).abs().max() > 1e-3
    assert (both - alone).abs().max() > 1e-3
