"""MemVR: its vector, one layer at most, whole runs written out slowly, and what it needs."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

import halludecode as hd
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.residual import ResidualStream
from halludecode.core.spec import get
from halludecode.strategies.memvr import unsure
from tests.engines.hf.test_naive_parity import N, check
from tests.support import families, naive

CASE = json.loads(Path("tests/data/attention.json").read_text(encoding="utf-8"))["cases"]["memvr"]


def stream(x, inp, logits, features, **more):
    made = ResidualStream(7, typical_model_info(), "main", x, inp, lambda last: logits, **more)
    made.pictures = lambda: features
    return made


def test_the_vector():
    logits = torch.tensor([CASE["top10_logits"] + [-9.0] * 5])
    assert float(unsure(logits)) == pytest.approx(CASE["normalised_entropy"], abs=1e-6)
    h = stream(
        torch.tensor([[CASE["ffn_out"]]]),
        torch.tensor([[CASE["x"]]]),
        logits,
        [torch.tensor(CASE["visual_tokens"])],
    )
    made = get("memvr", ratio=CASE["rho"], tau=CASE["threshold"]).steer(h)
    torch.testing.assert_close(made[0, 0], torch.tensor(CASE["out"]), atol=2e-6, rtol=0)


def test_each_request_once_and_none_without_a_picture():
    rng = torch.Generator().manual_seed(0)
    x, inp = torch.randn(2, 4, 3, 8, generator=rng)
    sure = torch.tensor([50.0, *[0.0] * 15])
    features = [torch.randn(n, 8, generator=rng) for n in (5, 2, 0, 3)]
    carry: dict = {}
    fired = []
    for turn in ((1, 0, 0, 0), (1, 1, 0, 0), (0, 0, 0, 1)):  # who is sure in which layer
        logits = torch.stack([sure if s else sure * 0 for s in turn])
        made = get("memvr").steer(stream(x, inp, logits, features, carry=carry))
        fired.append((made != x).flatten(1).any(-1).tolist())
    assert fired == [
        [False, True, False, True],
        [False, False, False, False],
        [True, False, False, False],
    ]


def test_padding_counts_for_nothing():
    rng = torch.Generator().manual_seed(0)
    x, inp = torch.randn(2, 1, 5, 8, generator=rng)
    features, logits = [torch.randn(4, 8, generator=rng)], torch.zeros(1, 16)
    chosen = torch.tensor([[False, False, True, True, True]])
    made = get("memvr").steer(stream(x, inp, logits, features, chosen=chosen))
    short = get("memvr").steer(stream(x[:, 2:], inp[:, 2:], logits, features))
    torch.testing.assert_close(made[:, 2:], short)


def slow(model, main, places, ids, layers, ratio, tau):
    """Next logits with plain hooks, sums over single numbers; and the layers that were edited."""
    decoder, edited, kept = naive.decoder_layers(model), [], {}
    language = model.model.language_model

    def entering(number):
        def hook(module, args):
            x = args[0][0]
            if number == 0:
                kept["v"] = [x[j].tolist() for j in places]
            if number in layers and not edited:
                z = model.get_output_embeddings()(language.norm(x[-1])).tolist()
                log_p = naive.log_softmax(sorted(z, reverse=True)[:10])
                if -sum(math.exp(a) * a for a in log_p) / math.log(10) > tau:
                    edited.append(number)

        return hook

    def leaving(number):
        def hook(module, args, out):
            if edited != [number]:
                return None
            v, ffn = torch.tensor(kept["v"]), out[0]
            a = torch.stack([sum((x @ each) * each for each in v) for x in args[0][0]])
            scale = sum(abs(y) for y in ffn.flatten().tolist()) / sum(
                abs(y) for y in a.flatten().tolist()
            )
            return ((1 - ratio) * ffn + ratio * scale * a)[None]

        return hook

    with ExitStack() as stack:
        for number, layer in enumerate(decoder):
            stack.callback(layer.register_forward_pre_hook(entering(number)).remove)
            stack.callback(layer.mlp.register_forward_hook(leaving(number)).remove)
        return naive.next_logits(model, main, ids), edited


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_first_token_and_its_layer(family_engine, family):
    """Later tokens keep a cache that the plain form does not have: the edit is of one forward."""
    engine, image = family_engine(family), families.pictures()[1]
    main = naive.inputs_of(
        engine.processor, families.FAMILIES[family].prompt("What is this?"), [image]
    )
    token = engine.row_builder.inputs.image_token
    places = [i for i, each in enumerate(main["input_ids"][0].tolist()) if each == token]
    logits, edited = slow(engine.model, main, places, [], range(1, 6), 0.3, 0.5)
    assert len(edited) == 1
    made = engine.generate(
        [hd.Request("What is this?", [image])],
        "memvr(ratio=0.3,tau=0.5,start=5,end=31)",
        hd.Sampling(max_new_tokens=1, logprobs=1),
    )[0]
    assert made.token_ids[0] == int(logits.argmax())
    wanted = float(logits.log_softmax(-1).max())
    assert made.logprobs[0].logprob == pytest.approx(wanted, abs=2e-4)


def test_never_unsure_is_greedy(family_engine):
    engine, image = family_engine("llava"), families.pictures()[1]
    plain = naive.greedy(engine.model, engine.processor, families.FAMILIES["llava"].prompt(
        "What is this?"), [image], N)  # fmt: skip
    check(engine, "memvr(ratio=1,tau=1)", plain, image)


def test_needs_cost_and_off():
    m = typical_model_info()
    plan = compile_plan("memvr", m)
    assert sorted(plan.parts[0].layers) == list(range(7, 17))
    assert plan.needs == {"steer", "logits", "image_features", "whole"} and not plan.reusable
    assert plan.parts[0].kinds == ("steering",)
    assert str(plan.cost) == "1 row, 10 layers steered, 10 early layers"
    assert compile_plan("memvr(ratio=0)", m).parts == ()
