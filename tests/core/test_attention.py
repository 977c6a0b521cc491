"""The verbs of `Attention` against published golden values and loop-level sums."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from halludecode.core.attention import Attention
from halludecode.core.attention_block import (
    GENERATED,
    IMAGE,
    PAD,
    SYSTEM,
    TEXT,
    AttentionBlock,
    RowKeys,
)
from halludecode.core.attention_hooks import Hooks
from halludecode.core.errors import HookNeverFired, UnsupportedStrategy
from halludecode.core.plan import typical_model_info
from halludecode.core.sinks import is_sink, magnitude
from halludecode.core.spec import get
from halludecode.strategies.vhr import choose

CASES = json.loads((Path(__file__).parents[1] / "data" / "attention.json").read_text())["cases"]
COMMON = CASES["common"]


def keys_of(kinds: list[int], positions: list[int], length: int) -> RowKeys:
    kind = torch.tensor([kinds], dtype=torch.int8)
    position = torch.tensor([positions])
    return RowKeys(
        kind,
        (kind == IMAGE).to(torch.int16) - 1,
        position,
        kind[:, positions],
        torch.tensor([length]),
    )


def block_of(scores, values, kinds, positions, length) -> AttentionBlock:
    """A block whose logits are given, [H][Q][N]; masked entries are -inf already."""
    made = torch.tensor([scores], dtype=torch.float64)
    v = torch.tensor([values], dtype=torch.float64)
    visible = made > -torch.inf
    out = made.softmax(-1).nan_to_num() @ v
    keys = keys_of(kinds, positions, length)
    return AttentionBlock(keys, made, made, v, visible, 1.0, out, _scores=made)


def common_block() -> AttentionBlock:
    mask = torch.tensor(COMMON["causal_mask"])
    scores = torch.tensor(COMMON["scores"]).masked_fill(~mask, -torch.inf).tolist()
    return block_of(
        scores, COMMON["values"], [SYSTEM, IMAGE, IMAGE, IMAGE, TEXT, TEXT], [3, 4, 5], 6
    )


def attention(block: AttentionBlock, marked=(), allowed=None) -> Attention:
    def token_mask(name, fn, row):
        mask = torch.zeros_like(block.keys.kind, dtype=torch.bool)
        mask[:, list(marked)] = True
        return mask

    kept: dict = {}

    def at_first_token(name, fn):
        if name not in kept:
            kept[name] = fn()
        return kept[name]

    hooks = Hooks(token_mask, at_first_token, allowed=allowed)
    return Attention(2, typical_model_info(), {"main": block}, hooks, "test")


def weights_after(block: AttentionBlock) -> torch.Tensor:
    return (block.weights() if block.gains is None else block.weights() * block.gains)[0]


def close(got, expected) -> None:
    torch.testing.assert_close(
        got.double(), torch.tensor(expected, dtype=torch.float64), atol=2e-6, rtol=0
    )


@pytest.mark.parametrize("variant", CASES["var"]["variants"], ids=lambda v: v["variant"])
def test_var(variant):
    if variant["sink_keep_factor"] != pytest.approx(1 - variant["p"]) or "rho" not in variant:
        # the official code's inverted p and rho, in our terms
        values = {"p": 1 - variant["sink_keep_factor"], "rho": 1 - variant["rho"]}
    else:
        values = {"p": variant["p"], "rho": variant["rho"]}
    block = common_block()
    get("var", dims=(0,), **values).attend(attention(block, [0, 2]))
    close(weights_after(block), variant["weights"])
    torch.testing.assert_close(weights_after(block).sum(-1), torch.ones(2, 3, dtype=torch.float64))
    assert not block.edited()[0, 0], "an image token's own row is left alone"
    if "outputs" in variant:
        close(block.output()[0], variant["outputs"])


def test_var_with_two_images():
    case = CASES["var_two_images"]
    kinds = [SYSTEM, IMAGE, TEXT, IMAGE, TEXT, TEXT]
    scores = torch.tensor(COMMON["scores"]).masked_fill(
        ~torch.tensor(COMMON["causal_mask"]), -torch.inf
    )
    block = block_of(scores.tolist(), COMMON["values"], kinds, [3, 4, 5], 6)
    get("var", dims=(0,), p=case["p"], rho=case["rho"]).attend(attention(block, [0, 3]))
    close(weights_after(block), case["weights"])


def test_var_where_no_image_is_visible():
    case = CASES["var_no_visible_image"]
    scores = [
        [[-torch.inf if x == "-inf" else x for x in row] for row in head] for head in case["scores"]
    ]
    block = block_of(
        scores, COMMON["values"][:1], [SYSTEM, IMAGE, IMAGE, IMAGE, TEXT, TEXT], [5], 6
    )
    get("var", dims=(0,)).attend(attention(block, [0, 2]))
    close(weights_after(block), case["weights"])
    assert not block.edited().any()


def test_var_under_grouped_queries():
    case = CASES["gqa_decode_var"]
    q = torch.tensor([case["q"]], dtype=torch.float64)[:, :, None]
    k, v = (torch.tensor([case[name]], dtype=torch.float64) for name in ("k", "v"))
    keys = keys_of([SYSTEM, IMAGE, IMAGE, IMAGE, TEXT, TEXT], [5], 6)
    base = torch.tensor(case["outputs"], dtype=torch.float64)[None, :, None]
    block = AttentionBlock(keys, q, k, v, torch.ones(1, 1, dtype=torch.bool), 2**-0.5, base)
    close(block.scores()[0, :, 0], case["scores"])
    get("var", dims=(0,), rho=0.65).attend(attention(block, [0, 2]))
    close(weights_after(block)[:, 0], case["weights_var"])
    close(block.output()[0, :, 0], case["outputs_var"])


def test_sink_detection():
    case = CASES["var_sink_detection"]
    x = torch.tensor(case["hidden"])
    close(magnitude(x)[:, case["sink_dims"]].amax(-1), case["phi"])
    assert is_sink(x, dims=tuple(case["sink_dims"]), tau=case["tau"]).tolist() == case["is_sink"]
    assert not is_sink(x, dims=(), tau=0.1).any()


def test_vhr_choice():
    case = CASES["vhr"]
    seen, blind = (torch.tensor([case[f"head_out_{s}_image"]]) for s in ("with", "without"))
    assert choose(seen, blind)[0].tolist() == case["ddof0"]["selected"]


def test_add_is_pai():
    case = CASES["pai_attention"]
    block = common_block()
    a = attention(block)
    a.add_scores(a.image, lambda s: case["alpha"] * s.abs())
    close(weights_after(block), case["weights"])
    close(block.output()[0], case["outputs"])


def test_gain_and_hide_are_adhh_and_zerotuning():
    block = common_block()
    a = attention(block)
    gated = a.mass(a.text) > 0.3
    a.scale_weights(a.text, 0.0, where=gated)
    variant = next(v for v in CASES["adhh"]["variants"] if v["tau"] == 0.3)
    close(weights_after(block)[:, -1], variant["weights_last_row"])
    for variant in CASES["zerotuning"]["variants"]:
        block = common_block()
        a = attention(block)
        a.add_scores(a.first, float(torch.tensor(variant["gamma"]).log()), queries="all")
        close(weights_after(block), variant["weights"])
    block = common_block()
    a = attention(block)
    a.mask(a.image, queries="all")
    assert float(weights_after(block)[:, :, 1:4].sum()) == 0
    torch.testing.assert_close(weights_after(block).sum(-1), torch.ones(2, 3, dtype=torch.float64))


def test_scale_is_vaf():
    case = CASES["vaf"]
    block = common_block()
    a = attention(block)
    a.scale_scores(a.image, case["image_factor"], queries="after_image")
    a.scale_scores(a.system, case["system_factor"], queries="after_image")
    close(weights_after(block), case["weights"])


def test_masses_partition_one():
    a = attention(common_block())
    total = sum(a.mass(seg, queries="all") for seg in (a.system, a.image, a.text))
    torch.testing.assert_close(total, torch.ones(1, 2, 3, dtype=torch.float64))
    both = a.mass(a.image | a.text, queries="all")
    torch.testing.assert_close(both, a.mass(~a.system, queries="all"))
    assert float(a.mass(a.image & a.text, queries="all").sum()) == 0


def test_heads_scale_after_gain_and_only_chosen_queries():
    block = common_block()
    plain = block.base.clone()
    a = attention(block)
    a.scale_heads(torch.tensor([[2.0, 1.0]], dtype=torch.float64))
    out = block.output()
    torch.testing.assert_close(out[0, 0, -1], 2 * plain[0, 0, -1])
    assert torch.equal(out[:, :, :-1], plain[:, :, :-1])
    assert block.edited().any(-1).tolist() == [True]


def test_pick_takes_the_least_attended():
    block = common_block()
    a = attention(block)
    value = block.weights()[:, :, -1].mean(1)
    least = a.top_keys(a.image, value, 1, largest=False).of("main")
    image = value[0, 1:4]
    assert least.nonzero().tolist() == [[0, 1 + int(image.argmin())]]


def test_queries_follow_positions_not_chunks():
    keys = keys_of([SYSTEM, IMAGE, TEXT, TEXT, GENERATED], [2, 3, 4], 4)
    assert keys.queries("emitting").tolist() == [[False, True, True]]
    assert keys.queries("generated").tolist() == [[False, False, True]]
    assert keys.queries("after_image").all()
    assert not keys_of([SYSTEM] * 3, [1, 2], 3).queries("after_image").any()


def test_once_is_kept_and_flags_are_segments():
    block = common_block()
    a = attention(block, [2])
    calls = []
    for _ in range(2):
        a.at_first_token("x", lambda: calls.append(1) or torch.ones(1))
    assert len(calls) == 1
    assert a.token_mask("sink", lambda x: x).of("main").nonzero().tolist() == [[0, 2]]


def test_verbs_tracing_missed_and_rows_that_do_not_exist_raise():
    a = attention(common_block(), allowed=frozenset({"mass"}))
    a.mass(a.image)
    with pytest.raises(HookNeverFired, match=r"used 'scale_weights' in layer 2.*unconditional"):
        a.scale_weights(a.image, 2.0)
    with pytest.raises(UnsupportedStrategy, match="names row 'blind'"):
        attention(common_block()).scale_heads(torch.ones(1, 2), rows=("blind",))


def padded_block(scores, pad):
    """A prompt [H][N][N] behind some padding, as one block of all its queries."""
    heads, n = len(scores), len(scores[0])
    kinds = [PAD] * pad + [SYSTEM, IMAGE, IMAGE, *[TEXT] * (n - 3)]
    kind = torch.tensor([kinds], dtype=torch.int8)
    wide = torch.full((1, heads, n + pad, n + pad), -torch.inf, dtype=torch.float64)
    wide[0, :, pad:, pad:] = torch.tensor(scores)
    wide = wide.masked_fill(~torch.ones(n + pad, n + pad).tril().bool(), -torch.inf)
    position = torch.arange(-pad, n)[None].clamp_min(-1)
    keys = RowKeys(kind, (kind == IMAGE).to(torch.int16) - 1, position, kind, torch.tensor([n]))
    q = torch.zeros(1, heads, n + pad, 1)
    return AttentionBlock(keys, q, q, q, wide > -torch.inf, 1.0, q, _scores=wide)


@pytest.mark.parametrize("pad", [0, 3])
def test_what_keys_receive_and_tokens_pay(pad):
    scores = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0)).tolist()
    weights = [
        [[math.exp(s) / sum(map(math.exp, row[: i + 1])) for s in row[: i + 1]]
         for i, row in enumerate(head)]
        for head in scores
    ]  # fmt: skip
    block = padded_block(scores, pad)
    for own in (True, False):
        wanted = [
            [0.0] * pad
            + [sum(head[i][k] for i in range(k + (not own), 5)) for k in range(5)]
            for head in weights
        ]  # fmt: skip
        close(block.received(own=own)[0], wanted)
    image = block.keys.kind == IMAGE
    paid = [
        [0.0] * pad + [sum(row[k] for k in (1, 2) if k < len(row)) for row in h] for h in weights
    ]
    close(block.paid(image)[0], paid)
    seen = attention(block)
    assert seen.place[0][0, pad:].tolist() == [0, 1, 2, 3, 4]
    assert seen.place[1][0, pad:].tolist() == [4, 3, 2, 1, 0]
    assert block.keys.queries("prompt")[0].tolist() == [False] * pad + [True] * 5


def test_written_queries_are_no_prompt():
    keys = keys_of([SYSTEM, IMAGE, TEXT, GENERATED], [1, 2, 3], 3)
    assert keys.queries("prompt")[0].tolist() == [True, True, False]
    with pytest.raises(HookNeverFired, match="does not lend a hook"):
        attention(common_block()).received()
