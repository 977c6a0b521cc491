"""AD-HH: the published vectors, whole runs written out slowly, where its heads come from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import halludecode as hd
from halludecode.core.attention import Attention
from halludecode.core.attention_block import GENERATED, SYSTEM
from halludecode.core.attention_hooks import Hooks
from halludecode.core.calibration import Calibration
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from halludecode.engines.hf.engine import HFEngine
from tests.core.test_attention import CASES, block_of, close, common_block, weights_after
from tests.engines.hf.test_naive_parity import N, check
from tests.support import families, naive

CASE = CASES["adhh"]
MODEL_INFO = replace(typical_model_info(), num_layers=3, num_heads=2)


def attend(block, **params):
    hooks = Hooks(lambda *_: None, lambda *_: None)
    get("adhh", **params).attend(Attention(2, MODEL_INFO, {"main": block}, hooks, "adhh"))


@pytest.mark.parametrize("variant", CASE["variants"], ids=lambda v: f"tau_{v['tau']}")
def test_the_vectors(variant):
    block = common_block()
    close(block.weights()[0, :, -1, CASE["text_keys"]].sum(-1), CASE["text_mass_last_row"])
    before = block.weights()[0, :, :-1].clone()
    attend(block, tau=variant["tau"], heads=(2, 0, 2, 1))
    close(weights_after(block)[:, -1], variant["weights_last_row"])
    close(block.output()[0, :, -1], variant["outputs_last_row"])
    assert torch.equal(weights_after(block)[:, :-1], before), "other rows are left alone"


@pytest.mark.parametrize("heads", [(0, 0, 2, 1), (2, 1), (1, 0, 2, 1, 0, 1)])
def test_only_listed_heads(heads):
    block = common_block()
    before = block.weights()[0].clone()
    attend(block, tau=0.0, heads=heads)
    made = weights_after(block)
    assert torch.equal(made[0], before[0])
    assert float(made[1, -1, 4:].sum()) == 0
    assert torch.equal(made[1, -1, :4], before[1, -1, :4]), "not renormalised"


def test_without_a_picture_generated_text_is_kept():
    kinds = [SYSTEM, SYSTEM, SYSTEM, GENERATED]
    scores, values = torch.zeros(2, 1, 4).tolist(), torch.ones(2, 4, 1).tolist()
    block = block_of(scores, values, kinds, [3], 3)
    attend(block, tau=0.0, heads=(2, 0, 2, 1))
    assert not block.edited().any()


@pytest.mark.parametrize("heads", [(1,), (3, 0), (0, 2), (0, -1)])
def test_heads_outside_the_model_are_refused(heads):
    with pytest.raises(hd.InvalidParameter, match=r"within this model's 3 layers of 2 heads"):
        compile_plan(get("adhh", heads=heads), MODEL_INFO)


def test_only_layers_with_listed_heads_are_recomputed():
    plan = compile_plan("adhh(heads=(16,1,26,2,16,3))", typical_model_info())
    assert plan.parts[0].layers == {16, 26}
    assert plan.needs == {"mass", "scale_weights"}
    assert plan.reusable
    assert compile_plan("adhh(heads=(1,1),tau=2)", typical_model_info()).parts == ()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_a_whole_run(family_engine, family, tau):
    engine, row = family_engine(family), families.FAMILIES[family]
    model, image = engine.model, families.pictures()[1]
    listed = {(0, 0), (1, 2), (2, 1), (3, 3)}
    main = naive.inputs_of(engine.processor, row.prompt("What is this?"), [image])
    prompt = main["input_ids"][0].tolist()
    first = prompt.index(model.config.image_token_id)
    text = [
        i
        for i in range(len(prompt) + N)
        if i > first and (i >= len(prompt) or prompt[i] != model.config.image_token_id)
    ]

    def weights(layer, w):
        for head in (h for h in range(len(w)) if (layer, h) in listed):
            for q in range(len(prompt) - 1, len(w[head])):
                keys = [j for j in text if j < len(w[head])]
                if sum(w[head][q][j] for j in keys) >= tau:
                    for j in keys:
                        w[head][q][j] = 0.0
        return w

    def step(ids, t):
        with naive.edited(model, weights=weights):
            return naive.next_logits(model, main, ids)

    flat = ",".join(f"{layer},{head}" for layer, head in sorted(listed))
    check(engine, f"adhh(heads=({flat}),tau={tau})", naive.write(step, N, ()), image)


# Where heads come from --------------------------------------------------------------------------


def test_heads_are_the_largest_positive_values():
    values = torch.tensor([[0.3, -0.1], [0.0, 0.2], [0.4, 0.1]])
    model_info = replace(MODEL_INFO, artifact={"values": values})
    assert get("adhh", top=2).listed(model_info).tolist() == [
        [True, False],
        [False, False],
        [True, False],
    ]
    assert int(get("adhh", top=20).listed(model_info).sum()) == 4, "never one that does harm"
    assert get("adhh").listed(MODEL_INFO) is None


def test_calibration_tries_the_edit_in_every_head_alone():
    gains = torch.tensor([[0.0, 0.1], [-0.2, 0.3], [0.0, 0.05]])
    asked = []

    def score(strategy, artifact):
        heads = strategy.listed(replace(MODEL_INFO, artifact=artifact))
        asked.append((strategy.tau, heads))
        return 0.5 + (float((gains * heads).sum()) if strategy.tau < 1 else 0.0)

    cal = Calibration((), lambda request: None, ("yes",), score)
    made = get("adhh", tau=0.4).calibrate(cal, MODEL_INFO)["values"]
    torch.testing.assert_close(made, gains)
    assert [tau for tau, _ in asked] == [2.0, *[0.0] * 6]
    assert not asked[0][1].any()
    assert torch.stack([heads.flatten() for _, heads in asked[1:]]).equal(torch.eye(6).bool())


def test_calibrated_heads_are_used(family_engine, tmp_path):
    loaded = family_engine("llava")
    engine = HFEngine(loaded.model, loaded.processor, artifacts=tmp_path)
    with pytest.raises(hd.UnsupportedStrategy, match=r"halludecode calibrate --model .* adhh`"):
        engine.plan("adhh")
    labels = ("yes", "no", "yes")
    samples = [
        (hd.Request("Is it so?", [p]), a)
        for p, a in zip(families.pictures(), labels, strict=True)
    ]  # fmt: skip
    made = engine.calibrate("adhh", samples)
    assert made["values"].shape == (6, 4)
    plan = engine.plan("adhh(tau=0.0)")
    assert plan.describe()["artifacts"]["adhh"]["digest"] == made.digest
    listed = plan.parts[0].strategy.listed(plan.parts[0].model_info)
    assert int(listed.sum()) == min(20, int((made["values"] > 0).sum()))
