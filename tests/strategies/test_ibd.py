"""IBD: the bias's vector, its rule in loops, and whole runs written out slowly."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from halludecode.core import step as hd_step
from halludecode.core.attention import Attention
from halludecode.core.attention_block import IMAGE, SYSTEM, TEXT, AttentionBlock
from halludecode.core.attention_hooks import Hooks
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from halludecode.core.step import Step
from tests.core.test_attention import keys_of
from tests.engines.hf.test_naive_parity import N, check
from tests.support import families, naive

CASES = json.loads(Path("tests/data/attention.json").read_text(encoding="utf-8"))["cases"]


def test_the_bias_is_the_vector():
    common, case = CASES["common"], CASES["ibd_image_biased"]
    visible = torch.tensor(common["causal_mask"])
    scores = torch.tensor(common["scores"])[None].masked_fill(~visible, -torch.inf)
    keys = keys_of([SYSTEM, *[IMAGE] * 3, TEXT, TEXT], common["query_positions"], 6)
    one = torch.zeros(1, 2, 3, 4)
    block = AttentionBlock(keys, one, one, one, visible, 0.5, one, _scores=scores)
    hooks = Hooks(lambda *a: None, lambda name, fn: fn())  # type: ignore[arg-type, return-value]
    assert typical_model_info().head_dim == case["head_dim"]
    rows = {"main": block, "biased": block}
    strategy = get("ibd", epsilon=case["epsilon"])
    strategy.attend(Attention(0, typical_model_info(), rows, hooks, "ibd"))
    wanted = torch.tensor(case["weights"])
    torch.testing.assert_close(block.weights()[0], wanted, atol=2e-6, rtol=0)


def combined(z, o, alpha, full, beta):
    """Scores in loops, in float64."""
    p, q = ([math.exp(x) for x in naive.log_softmax(each)] for each in (z, o))
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    apart = sum(
        x * math.log(x / m) / 2
        for each in (p, q)
        for x, m in zip(each, middle, strict=True)
        if x > 0
    )
    trust = min(1.0, apart / full) if full else 1.0
    keep = naive.plausible(z, beta)
    return [
        a + alpha * trust * (b - a) if k else -math.inf for a, b, k in zip(z, o, keep, strict=True)
    ]


@pytest.mark.parametrize("full", [0.05, 0.4, 0.0])
def test_the_rule(full):
    rng = torch.Generator().manual_seed(1)
    main = torch.randn(4, 24, generator=rng) * 2
    biased = main + torch.randn(4, 24, generator=rng) * torch.tensor([[0.0], [0.1], [0.6], [3.0]])
    main[0, 3] = biased[1, 5] = -math.inf  # banned in one of them
    step = Step({"main": main, "biased": biased}, torch.ones(4, 1))
    made = hd_step.combine([(get("ibd", alpha=0.7, full=full), step)], main).check()
    for row, z, o in zip(made.tolist(), main.tolist(), biased.tolist(), strict=True):
        shown = [a if b == -math.inf else b for a, b in zip(z, o, strict=True)]
        finite = [n for n, a in enumerate(z) if a > -math.inf]
        z, shown = ([each[n] for n in finite] for each in (z, shown))
        wanted = combined(z, shown, 0.7, full, 0.1)
        assert [row[n] for n in finite] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_whole_run(family_engine, family):
    engine, image = family_engine(family), families.pictures()[1]
    model, d = engine.model, engine.model_info.head_dim
    main = naive.inputs_of(
        engine.processor, families.FAMILIES[family].prompt("What is this?"), [image]
    )
    token = engine.row_builder.inputs.image_token
    places = [i for i, each in enumerate(main["input_ids"][0].tolist()) if each == token]

    def scores(layer, given):
        for head in given:
            for row in head:
                for j in places:
                    row[j] += 6.0 / math.sqrt(d)
        return given

    def step(ids, t):
        plain = naive.next_logits(model, main, ids)
        with naive.edited(model, scores=scores):
            biased = naive.next_logits(model, main, ids)
        return torch.tensor(combined(plain.tolist(), biased.tolist(), 0.8, 0.01, 0.05))

    spec = "ibd(alpha=0.8,epsilon=6,full=0.01,beta=0.05)"
    check(engine, spec, naive.write(step, N, ()), image)


def test_needs_cost_and_off():
    m = typical_model_info()
    plan = compile_plan("ibd", m)
    assert plan.needs == {"rows", "add_scores"} and plan.parts[0].attend_rows == ("biased",)
    assert plan.cost.rows == 2 and plan.parts[0].kinds == ("contrast",) and plan.can_wait
    assert compile_plan("ibd(alpha=0,beta=0)", m).parts == ()
