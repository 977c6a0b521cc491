"""ONLY: its rule in loops, whole runs with plain hooks, and what it needs."""

from __future__ import annotations

import math

import pytest
import torch

from halludecode.core import step as hd_step
from halludecode.core.errors import HookNeverFired
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from halludecode.core.step import Step
from tests.engines.hf.test_naive_parity import N, check
from tests.support import families, naive


def combined(z, o, plus, minus, beta, gate):
    """Scores in loops; and whether both agreed."""
    p, q = ([math.exp(x) for x in naive.log_softmax(each)] for each in (z, o))
    agree = sum(abs(a - b) for a, b in zip(p, q, strict=True)) < gate
    keep = naive.plausible(z, beta)
    mixed = [
        a + plus * b if agree else (1 + minus) * a - minus * b for a, b in zip(z, o, strict=True)
    ]
    return [x if k else -math.inf for x, k in zip(mixed, keep, strict=True)], agree


def test_the_rule():
    rng = torch.Generator().manual_seed(0)
    main = torch.randn(4, 20, generator=rng) * 2
    other = main + torch.randn(4, 20, generator=rng) * torch.tensor([[0.0], [0.05], [0.5], [2.0]])
    asked = []

    def branch(*how):
        asked.append(how)
        return other

    step = Step({"main": main}, torch.ones(4, 1), branch=branch)
    made = hd_step.combine([(get("only", gate=0.2), step)], main).check()
    rules = [
        combined(z, o, 3, 1, 0.1, 0.2) for z, o in zip(main.tolist(), other.tolist(), strict=True)
    ]
    assert [agree for _, agree in rules] == [True, True, False, False]
    torch.testing.assert_close(
        made, torch.tensor([scores for scores, _ in rules]), atol=1e-5, rtol=0
    )
    assert asked == [(0.2, 0.5, True)]


def test_no_branch_is_an_error():
    step = Step({"main": torch.zeros(1, 4)}, torch.ones(1, 1), owner="only")
    with pytest.raises(HookNeverFired, match=r"only.combine asked for a branch"):
        get("only").combine(step)


def trimmed(row, keys):
    """A row's weights on some keys but the largest, and their entropy."""
    mean = sum(row[j] for j in keys) / len(keys)
    std = math.sqrt(sum((row[j] - mean) ** 2 for j in keys) / (len(keys) - 1))
    kept = {j: 0.0 if row[j] > mean + std else row[j] for j in keys}
    total = sum(kept.values())
    return kept, -sum(x / total * math.log(x / total + 1e-6) for x in kept.values())


def other_logits(model, main, places, ids, normed):
    """Main's logits and the branch's, from one forward without a cache."""
    seen, values = {}, []

    def weights(layer, given):
        if layer == 0:
            seen["last"] = [head[-1] for head in given]
        return given

    layers = naive.decoder_layers(model)
    hook = layers[0].self_attn.v_proj.register_forward_hook(lambda m, a, out: values.append(out[0]))
    with torch.no_grad(), naive.edited(model, weights=weights):
        out = model(**naive.extended(main, ids), use_cache=False, output_hidden_states=True)
    hook.remove()
    text = [j for j in range(1, len(seen["last"][0])) if j not in places]
    kept, ratio = [], []
    for row in seen["last"]:
        words, over_text = trimmed(row, text)
        image, over_image = trimmed(row, places)
        kept.append({0: row[0], **words, **image})
        ratio.append(over_text / over_image)
    d = layers[0].self_attn.head_dim
    group = len(kept) // (values[0].shape[-1] // d)
    made = []
    for h, row in enumerate(kept):
        value = values[0][:, h // group * d : (h // group + 1) * d]
        chosen = ratio[h] >= sum(ratio) / len(ratio)
        made.append(sum(w * value[j] for j, w in row.items()) * chosen)
    last, language = layers[-1], model.model.language_model
    with torch.no_grad():
        o = layers[0].self_attn.o_proj(torch.cat(made)[None])
        h = (last.input_layernorm(o) if normed else o) + 0.2 * out.hidden_states[-2][:, -1]
        h = h + last.mlp(last.post_attention_layernorm(h))
        z = model.get_output_embeddings()(language.norm(h) + 0.5 * out.hidden_states[-1][:, -1])
    return out.logits[0, -1].tolist(), z[0].tolist()


@pytest.mark.parametrize(("family", "normed"), [("llava", True), ("qwen2_5_vl", False)])
def test_a_whole_run(family_engine, family, normed):
    engine, image = family_engine(family), families.pictures()[1]
    main = naive.inputs_of(
        engine.processor, families.FAMILIES[family].prompt("What is this?"), [image]
    )
    token = engine.row_builder.inputs.image_token
    places = [i for i, each in enumerate(main["input_ids"][0].tolist()) if each == token]

    def step(ids, t):
        z, o = other_logits(engine.model, main, places, ids, normed)
        return torch.tensor(combined(z, o, 3, 1, 0.05, 0.6)[0])

    spec = f"only(beta=0.05,gate=0.6,normed={normed})"
    check(engine, spec, naive.write(step, N, ()), image)


def test_needs_cost_and_off():
    m = typical_model_info()
    plan = compile_plan("only", m)
    assert plan.needs == {"weights", "branch_off"} and plan.parts[0].layers == {0}
    assert plan.parts[0].kinds == ("layers",)
    assert plan.cost.rows == 1 and "1 branch of one layer" in str(plan.cost)
    assert compile_plan("only(plus=0,minus=0,beta=0)", m).parts == ()
