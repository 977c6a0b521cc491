"""LOL: the vector, whole runs written out slowly, and which rows are decoded early."""

from __future__ import annotations

import math

import pytest
import torch

import halludecode as hd
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from halludecode.core.step import Step
from tests.core.test_combine_vectors import CASES, check, tensor
from tests.engines.hf.test_naive_parity import N
from tests.engines.hf.test_naive_parity import check as check_run
from tests.support import families, naive


def fused(main, noised, low, noised_low, omega, beta):
    """Scores in loops, from log-probabilities."""
    keep = naive.plausible(main, beta)
    return [
        a - b + omega * (c - d) if k else -math.inf
        for a, b, c, d, k in zip(main, noised, low, noised_low, keep, strict=True)
    ]


def test_the_vector():
    case = CASES["lol_fusion_convention"]
    z = {name: tensor(values) for name, values in case["inputs"].items()}
    step = Step(
        {"main": z["z_v"], "noised": z["z_neg"]},
        torch.ones(1, 1),
        decode=lambda x, norm: x,
        residuals={3: z["z_v_low"]},
        beside={"noised": {3: z["z_neg_low"]}},
    )
    check(get("lol", **case["params"]).combine(step), case["expected"])


def test_every_request_has_a_layer_of_its_own():
    rng = torch.Generator().manual_seed(0)
    z, other, *layers = (torch.randn(5, 16, generator=rng) * 2 for _ in range(8))
    made = [dict(enumerate(layers[at : at + 3])) for at in (0, 3)]

    def scores(rows):
        main, beside = ({n: x[rows] for n, x in own.items()} for own in made)
        step = Step(
            {"main": z[rows], "noised": other[rows]},
            torch.ones(5, 1),
            decode=lambda x, norm: x,
            residuals=main,
            beside={"noised": beside},
        )
        return get("lol").combine(step)

    together = scores(slice(None))
    chosen = set()
    for r in range(5):
        last = naive.log_softmax(z[r].tolist())
        low = [naive.log_softmax(x[r].tolist()) for x in made[0].values()]
        best = max(range(3), key=lambda n: apart(last, low[n]))
        chosen.add(best)
        others = [naive.log_softmax(x[r].tolist()) for x in (other, made[1][best])]
        wanted = fused(last, others[0], low[best], others[1], 0.3, 0.1)
        torch.testing.assert_close(together[r], torch.tensor(wanted), atol=1e-5, rtol=0)
        torch.testing.assert_close(scores(slice(r, r + 1))[0], together[r])
    assert len(chosen) > 1


def apart(last, early):
    """DoLa's divergence, as its code has it, of two log-softmaxes."""
    total = 0.0
    for a, b in zip(last, early, strict=True):
        middle = (math.exp(a) + math.exp(b)) / 2
        total += middle * (2 * math.log(middle) - a - b)
    return total


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_whole_run(family_engine, family):
    engine, image = family_engine(family), families.pictures()[1]
    model, processor = engine.model, engine.processor
    main = naive.inputs_of(processor, families.FAMILIES[family].prompt("What is this?"), [image])
    pixels = engine.rows(hd.Request("What is this?", [image]), "lol")["noised"].pixel_values
    noised = {**main, "pixel_values": pixels.reshape(main["pixel_values"].shape)}
    depth = len(naive.decoder_layers(model))
    layers = range(depth - depth // 2, depth, 2)

    def read(inputs, ids):
        with torch.no_grad():
            out = model(**naive.extended(inputs, ids), use_cache=False, output_hidden_states=True)
            head = model.get_output_embeddings()
            early = [head(out.hidden_states[n][0, -1]).tolist() for n in layers]
        return [naive.log_softmax(z) for z in (out.logits[0, -1].tolist(), *early)]

    def step(ids, t):
        (last, *low), (other, *other_low) = read(main, ids), read(noised, ids)
        best = max(range(len(low)), key=lambda n: apart(last, low[n]))
        return torch.tensor(fused(last, other, low[best], other_low[best], 0.5, 0.05))

    check_run(engine, "lol(omega=0.5,beta=0.05)", naive.write(step, N, ()), image)


def test_its_row_never_waits():
    plan = compile_plan("lol", typical_model_info())
    assert plan.parts[0].early_rows == {"noised"} and plan.parts[0].early
    assert not plan.can_wait and compile_plan("vcd", typical_model_info()).can_wait
    assert plan.needs == {"rows", "pixels", "early"}
    assert plan.parts[0].kinds == ("layers", "contrast")
    assert compile_plan("lol(strength=0,omega=0,beta=0)", typical_model_info()).parts == ()
