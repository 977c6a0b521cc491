"""Rows whose vision tower acts otherwise: LayerCD, VaLiD, CausalMM, beside plain models cut short.

What the official code gave is in tests/data/official, see tests/benchmarks/test_parity.py.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

import halludecode as hd
from halludecode.core.errors import UnsupportedStrategy
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.prompt import Prompt
from halludecode.core.spec import get
from halludecode.strategies.valid import fused
from tests.engines.hf.test_naive_parity import N
from tests.engines.hf.test_naive_parity import check as check_run
from tests.support import families, naive

NAMES = ("llava", "qwen2_5_vl")
IMAGE = families.pictures()[1]


def loops(module, query, key, value, attention_mask=None, **more):
    """[views, T, H, d]: head by head and query by query; a counterfactual map of `KIND`."""
    keys, values = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    out = torch.zeros_like(query)
    scaling = more.get("scaling") or query.shape[-1] ** -0.5
    for b, h, q in itertools.product(*map(range, query.shape[:3])):
        row = keys[b, h] @ query[b, h, q] * scaling
        seen = torch.ones(len(row), dtype=torch.bool)
        if attention_mask is not None:
            seen = attention_mask[b, 0, q, : len(row)] > -1e30
        weights = row[seen].exp() / row[seen].exp().sum()
        if KIND[0] == "reversed":
            turned = weights.max() - weights
            weights = turned / max(float(turned.sum()), 1e-12)
        else:
            weights = torch.full_like(weights, 1 / len(weights))
        out[b, h, q] = weights @ values[b, h][seen]
    return out.transpose(1, 2), None


KIND = ["uniform"]
AttentionInterface.register("halludecode_test_counterfactual", loops)
AttentionMaskInterface.register("halludecode_test_counterfactual", eager_mask)


@pytest.fixture(params=NAMES)
def world(request, family_engine):
    engine, family = family_engine(request.param), families.FAMILIES[request.param]
    inputs = naive.inputs_of(engine.processor, family.prompt("What is this?"), [IMAGE])
    return engine, inputs


def cut(model, depth):
    """The model with a tower of ``depth`` layers, or read after as many."""
    short = copy.deepcopy(model)
    if model.config.model_type == "llava":
        short.config.vision_feature_layer = [depth]  # transformers 5.24 takes a bare 0 for none
    else:
        short.model.visual.blocks = short.model.visual.blocks[:depth]
    return short


def attending(model, part, kind):
    """The model whose tower or decoder attends by `loops`."""
    other = copy.deepcopy(model)
    other.set_attn_implementation({part: "halludecode_test_counterfactual"})
    KIND[0] = kind
    return other


def logits(models, inputs, ids):
    return [naive.next_logits(model, inputs, ids).double().tolist() for model in models]


def test_layercd_reads_the_state_after_one_layer(world):
    engine, inputs = world
    models = [engine.model, cut(engine.model, 1)]

    def step(ids, t):
        main, shallow = logits(models, inputs, ids)
        return torch.tensor(naive.combine_vcd(main, shallow, 1.0, 0.1))

    check_run(engine, "layercd", naive.write(step, N, ()), IMAGE)


def test_valid_mixes_what_is_least_sure(world):
    engine, inputs = world
    models = [engine.model, cut(engine.model, 0), cut(engine.model, 1)]

    def step(ids, t):
        rows = logits(models, inputs, ids)
        entropy = [-sum(math.exp(x) * x for x in naive.log_softmax(row)) for row in rows]
        weights = [math.exp(x) for x in naive.log_softmax(entropy)]
        kept = sorted(range(3), key=lambda i: -weights[i])[:2]
        mixed = [sum(weights[i] * rows[i][v] for i in kept) for v in range(len(rows[0]))]
        return torch.tensor(naive.combine_vcd(rows[0], mixed, 0.5, 0.1))

    check_run(engine, "valid(top=2,depths=(0,1))", naive.write(step, N, ()), IMAGE)


@pytest.mark.parametrize("kind", [pytest.param("uniform", marks=pytest.mark.full), "reversed"])
def test_causalmm_attends_by_the_counterfactual_map(family_engine, kind):
    engine, family = family_engine("llava"), families.FAMILIES["llava"]
    inputs = naive.inputs_of(engine.processor, family.prompt("What is this?"), [IMAGE])
    parts = ("vision_config", "text_config")
    models = [engine.model, *(attending(engine.model, part, kind) for part in parts)]

    def step(ids, t):
        main, vision, language = logits(models, inputs, ids)
        keep = naive.plausible(main, 0.1)
        return torch.tensor(
            [
                2 * a - 0.5 * (b + c) if k else -math.inf
                for a, b, c, k in zip(main, vision, language, keep, strict=True)
            ]
        )

    wanted = naive.write(step, 1, ())
    request, sampling = hd.Request("What is this?", [IMAGE]), hd.Sampling(1, logprobs=1)
    made = engine.generate([request], f"causalmm(kind={kind})", sampling)[0]
    assert list(made.token_ids) == wanted.ids
    finite = wanted.scores[0].masked_fill(wanted.scores[0] == -math.inf, -1e30).log_softmax(-1)
    assert made.logprobs[0].logprob == pytest.approx(float(finite.max()), abs=2e-4)


def test_layers_that_the_model_reads_itself_need_no_row():
    m = typical_model_info()  # LLaVA's 24 layers, of which 23 are read
    plan = compile_plan("valid", m)
    assert plan.rows == ("main", *(f"layer{n}" for n in (11, 13, 15, 17, 19, 21)))
    assert compile_plan("valid(depths=(11,23,24))", m).cost.rows == 2
    assert compile_plan("layercd(layer=23)", m).parts[0].branches["shallow"].tower is None


def test_the_least_sure_weigh_most():
    sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    weight = torch.tensor([0.0, math.log(2)]).softmax(0)[1]
    torch.testing.assert_close(fused([sure, unsure], 1), weight * unsure, atol=2e-3, rtol=0)
    assert fused([sure, unsure], 9).shape == (1, 2)


def test_a_model_whose_tower_has_no_numbers_is_refused():
    m = replace(typical_model_info(), vision=None)
    with pytest.raises(UnsupportedStrategy, match="how many layers its vision tower has"):
        get("layercd").branches(Prompt(()), {}, m)
