"""VISTA: the vector, a slow re-derivation, and where the directions come from."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

import halludecode as hd
from halludecode.core.errors import HookNeverFired
from halludecode.core.residual import steered, turned
from halludecode.core.spec import parse
from halludecode.core.step import Step
from halludecode.strategies.vista import VISTA
from tests.support import families, naive

CASES = json.loads(Path("tests/data/attention.json").read_text(encoding="utf-8"))["cases"]
LAM, GAMMA = 0.1, 0.3


def test_steered_matches_the_vector():
    case = CASES["vista_vsv"]
    v = torch.tensor(case["h_pos"]) - torch.tensor(case["h_neg"])
    assert v.tolist() == pytest.approx(case["v"])
    made = steered(torch.tensor(case["h"]), v, case["lambda"])
    assert made.tolist() == pytest.approx(case["paper_out"], abs=2e-6)


def test_the_two_rules_are_of_another_scale():
    """The released rule against its own code is in tests/benchmarks/test_parity.py."""
    x, v = torch.tensor([3.0, 4.0]), torch.tensor([10.0, 0.0])
    assert turned(x, v, 0.1).tolist() == pytest.approx([3.2925, 3.7629], abs=1e-4)
    assert steered(x, v, 0.1).tolist() == pytest.approx([3.5355, 3.5355], abs=1e-4)
    assert torch.equal(turned(x, v * 0, 0.1), x)


def test_late_logits_match_the_vector():
    case = CASES["vista_sla"]
    late = torch.tensor(case["late_layer_logits"])[:, None]
    main = torch.tensor([case["final_logits"]])
    residuals = dict(enumerate(late))  # of a model whose norm and head are the identity
    step = Step({"main": main}, torch.ones(1, 1), decode=lambda x, _: x, residuals=residuals)
    made = VISTA(gamma=case["gamma"]).combine(step)[0].tolist()
    assert made == pytest.approx(case["out"], abs=2e-6)


def test_length_is_kept():
    torch.manual_seed(0)
    x, v = torch.randn(2, 5, 7), torch.randn(2, 1, 7)
    assert torch.allclose(steered(x, v, 3.0).norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert torch.equal(steered(x, v * 0, 3.0), x)


def last_token(model, inputs) -> list[torch.Tensor]:
    """The residual leaving every layer at the last prompt token."""
    kept: dict[int, torch.Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        for i, layer in enumerate(naive.decoder_layers(model)):

            def keep(module, args, output, i=i):
                out = output[0] if isinstance(output, tuple) else output
                kept[i] = out[0, -1].clone()

            stack.callback(layer.register_forward_hook(keep).remove)
        model(**inputs, use_cache=False)
    return [kept[i] for i in range(len(kept))]


def slow(model, processor, family, image, n: int, released: bool) -> naive.Answer:
    text = family.prompt("What is this?")
    inputs = naive.inputs_of(processor, text, [image])
    blind = naive.inputs_of(processor, family.blind(text))
    pairs = zip(last_token(model, inputs), last_token(model, blind), strict=True)
    v = [a - b for a, b in pairs]
    layers = naive.decoder_layers(model)
    norm = next(
        m.norm
        for m in model.modules()
        if getattr(m, "layers", None) is not None and list(m.layers) == layers
    )

    def step(ids: list[int], t: int) -> torch.Tensor:
        leaving: list[torch.Tensor] = []

        def steer(module, args, output, i):
            x = output[0] if isinstance(output, tuple) else output
            out = x.clone()
            for place in range(x.shape[1]):
                h = x[0, place]
                moved = h + LAM * v[i]
                if released:
                    away = 1 + max(0.0, float(torch.dot(h, -v[i]) / (h.norm() * v[i].norm())))
                    moved = h / h.norm() + LAM * away * v[i] / v[i].norm()
                out[0, place] = moved * (h.norm() / moved.norm())
            return (out, *output[1:]) if isinstance(output, tuple) else out

        def note(module, args, output):
            leaving.append((output[0] if isinstance(output, tuple) else output)[0, -1])

        with ExitStack() as stack, torch.no_grad():
            for i, layer in enumerate(layers):
                site = layer.mlp if released else layer
                hook = site.register_forward_hook(lambda m, a, o, i=i: steer(m, a, o, i))
                stack.callback(hook.remove)
                stack.callback(layer.register_forward_hook(note).remove)
            last = naive.next_logits(model, inputs, ids)
            head = model.get_output_embeddings()
            late = [head(h if released else norm(h)) for h in leaving[-7 if released else -6 : -1]]
        return (1 - GAMMA) * last + GAMMA * torch.stack(late).mean(0)

    return naive.write(step, n, ())


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("llava", "paper"),
        ("qwen2_5_vl", "paper"),
        ("internvl", "paper"),
        ("llava", "released"),
        ("qwen2_5_vl", "released"),
    ],
)
def test_engine_equals_the_slow_form(name, rule, family_engine):
    engine, family = family_engine(name), families.FAMILIES[name]
    image = families.pictures()[1]
    wanted = slow(engine.model, engine.processor, family, image, 4, rule == "released")
    sampling = hd.Sampling(max_new_tokens=4, logprobs=1)
    made = engine.generate([hd.Request("What is this?", [image])], f"vista(rule={rule})", sampling)[
        0
    ]
    assert list(made.token_ids) == wanted.ids
    for got, scores in zip(made.logprobs, wanted.scores, strict=True):
        assert got.logprob == pytest.approx(float(scores.log_softmax(-1)[got.token_id]), abs=5e-4)


def test_mlp_outputs_can_be_steered_too(family_engine):
    from halludecode.core.params import param
    from halludecode.core.registry import STRATEGIES
    from halludecode.core.strategy import Strategy, strategy

    try:

        @strategy("louder_mlp", off={"by": 1.0})
        class Louder(Strategy):
            by: float = param(1.0, "factor")
            site = "mlp"
            steer_at = "generated"

            def steer(self, h):
                assert h.inp.shape == h.x.shape
                return h.x * self.by

        engine = family_engine("llava")
        request = hd.Request("What is this?", [families.pictures()[0]])
        sampling = hd.Sampling(max_new_tokens=3, min_new_tokens=3, logprobs=1)
        plain = engine.generate([request], "greedy", sampling)[0]
        loud = engine.generate([request], "louder_mlp(by=3.0)", sampling)[0]
        # Only generated tokens are steered: the first choice is greedy's, later ones are not.
        assert loud.logprobs[0].logprob == pytest.approx(plain.logprobs[0].logprob)
        assert loud.logprobs[1].logprob != pytest.approx(plain.logprobs[1].logprob)
    finally:
        STRATEGIES._entries.pop("louder_mlp", None)


def test_unhooked_layer_is_an_error(family_engine, monkeypatch):
    from halludecode.engines.hf.forward_context import ForwardContext

    engine, short = family_engine("llava"), hd.Sampling(max_new_tokens=1)
    request = hd.Request("Why?", [families.pictures()[0]])
    engine.generate([request], "vista", short)  # its activations are remembered
    monkeypatch.setattr(ForwardContext, "output_layers", property(lambda self: []))
    with pytest.raises(HookNeverFired, match=r"vista.steer was not called"):
        engine.generate([request], "vista", short)
    with pytest.raises(HookNeverFired, match="layer 0"):
        engine.generate([hd.Request("How?", [families.pictures()[0]])], "vista", short)


def test_late_layers_are_the_five_before_the_last():
    from halludecode.core.model_info import ModelInfo

    model_info = ModelInfo(
        num_layers=32, num_heads=4, num_kv_heads=4, hidden_size=8, vocab_size=6, head_dim=2
    )
    assert list(VISTA().early(model_info)) == [27, 28, 29, 30, 31]
    released = VISTA(rule="released")  # what layers 25 to 30 put out (--logits-layers 25,30)
    assert list(released.early(model_info)) == [26, 27, 28, 29, 30, 31]
    assert (VISTA().site, released.site) == ("residual", "mlp")


@pytest.mark.parametrize(("preset", "lam"), [("pope", 0.01), ("chair", 0.17), ("mmhal", 0.1)])
def test_the_scripts_values_belong_to_the_released_rule(preset, lam):
    made = parse(f"vista@official-{preset}")[0]
    assert (made.rule, made.lam, made.gamma) == ("released", lam, 0.3)
