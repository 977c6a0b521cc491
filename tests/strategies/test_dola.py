"""DoLa: the vector, a slow re-derivation, and the layers it looks at."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import halludecode as hd
from halludecode.core import logits as hd_math
from halludecode.core import step as hd_step
from halludecode.core.errors import HookNeverFired
from halludecode.core.model_info import ModelInfo
from halludecode.core.step import Step
from halludecode.strategies.dola import DoLa, divergence
from tests.support import families, naive

VECTORS = json.loads(Path("tests/data/contrastive.json").read_text(encoding="utf-8"))["vectors"]
CASE = next(v for v in VECTORS if v["id"] == "dola_select_and_contrast")
Z = torch.tensor([CASE["inputs"]["z_final"]])
LAYERS = torch.tensor(CASE["inputs"]["z_layers"])
WANTED = CASE["expected"]


def model_info(depth: int) -> ModelInfo:
    return ModelInfo(
        num_layers=depth, num_heads=4, num_kv_heads=4, hidden_size=8, vocab_size=6, head_dim=2
    )


def step_of(layers: torch.Tensor, z: torch.Tensor) -> Step:
    """A model whose head is the identity: residuals are logits."""

    def decode(x: torch.Tensor, norm: bool) -> torch.Tensor:
        assert not norm
        return x

    residuals = {n: layer.expand_as(z) for n, layer in enumerate(layers)}
    return Step({"main": z}, torch.ones(1, 1), decode=decode, residuals=residuals)


@pytest.mark.parametrize(("kind", "name"), [("code", "code_divergence"), ("jsd", "true_jsd")])
def test_divergence_matches_the_vector(kind, name):
    made = [divergence(Z.log_softmax(-1), z.log_softmax(-1)[None], kind).item() for z in LAYERS]
    assert made == pytest.approx(WANTED[name], abs=1e-5)


@pytest.mark.parametrize(("kind", "name"), [("code", "code_scores"), ("jsd", "true_jsd_scores")])
def test_scores_match_the_vector(kind, name):
    made = DoLa(divergence=kind).combine(step_of(LAYERS, Z))[0].tolist()
    assert made == pytest.approx([float(x) for x in WANTED[name]], abs=1e-4)


def test_every_row_chooses_its_own_layer():
    torch.manual_seed(0)
    z, layers = torch.randn(5, 6), torch.randn(3, 5, 6) * 3
    made = DoLa().combine(step_of(layers, z))
    for row in range(5):
        alone = DoLa().combine(step_of(layers[:, row], z[row : row + 1]))
        assert torch.allclose(made[row], alone[0], atol=1e-6)


def plain(rules: DoLa, step: Step) -> torch.Tensor:
    """The rule with every layer of every request decoded, and all of them compared at once."""
    last = step["main"].log_softmax(-1).clamp_min(-1e3)
    early = torch.stack([step.early(n).log_softmax(-1) for n in step.layers])
    chosen = divergence(last, early, rules.divergence).argmax(0)
    premature = early[chosen, torch.arange(len(chosen))]
    return step.plausible(last - rules.strength * premature, rules.beta)


@pytest.mark.parametrize("kind", ["code", "jsd"])
@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("cached", [1, 12, 1 << 18], ids="cache of {}".format)
def test_layers_of_decided_requests_are_not_decoded(monkeypatch, kind, beta, cached):
    monkeypatch.setattr(hd_step, "CACHED", cached)
    torch.manual_seed(3)
    z, layers = torch.randn(7, 6) * 3, torch.randn(3, 7, 6) * 3
    z[2, 1] = -math.inf  # a banned token
    rules, seen = DoLa(beta=beta, divergence=kind), list[int]()
    step = step_of(layers, z)
    decode = step._decode
    monkeypatch.setattr(step, "_decode", lambda x, norm: seen.append(x.shape[1]) or decode(x, norm))
    made, wanted = rules.combine(step), plain(rules, step_of(layers, z))
    decided = hd_math.alone(z, beta) if beta else torch.zeros(7).bool()
    assert seen == [7 - int(decided.sum())] and (beta == 0) == (seen == [7])
    assert torch.equal(made[~decided], wanted[~decided])
    assert torch.equal(made == -math.inf, wanted == -math.inf)
    assert torch.equal(made.softmax(-1)[decided], wanted.softmax(-1)[decided])
    free = step_of(layers, z)
    free._masking = False
    assert torch.equal(
        rules.combine(free), plain(DoLa(beta=0, divergence=kind), step_of(layers, z))
    )


@pytest.mark.parametrize(
    ("bucket", "depth", "expected"),
    [
        ("high", 32, range(16, 32, 2)),
        ("low", 32, range(0, 16, 2)),
        ("high", 48, range(28, 48, 2)),
        ("low", 48, range(0, 20, 2)),
    ],
)
def test_buckets(bucket, depth, expected):
    assert list(DoLa(bucket=bucket).early(model_info(depth))) == list(expected)


def test_undeclared_layer_is_an_error():
    with pytest.raises(HookNeverFired, match="layer 7"):
        step_of(LAYERS, Z).early(7)
    with pytest.raises(HookNeverFired, match="names none"):
        next(
            Step({"main": Z}, torch.ones(1, 1), decode=lambda x, _: x).early_blocks(torch.arange(1))
        )


def slow(model, processor, text, image, n: int) -> naive.Answer:
    """Layer by layer, word by word."""
    inputs = naive.inputs_of(processor, text, [image])
    depth = len(naive.decoder_layers(model))
    chosen = list(range(depth - depth // 2, depth, 2))

    def step(ids: list[int], t: int) -> torch.Tensor:
        with torch.no_grad():
            out = model(**naive.extended(inputs, ids), use_cache=False, output_hidden_states=True)
            head = model.get_output_embeddings()
            early = [head(out.hidden_states[n][0, -1]).tolist() for n in chosen]
        last = naive.log_softmax(out.logits[0, -1].tolist())
        best, kept = -math.inf, []
        for z in map(naive.log_softmax, early):
            apart = 0.0
            for a, b in zip(last, z, strict=True):
                middle = (math.exp(a) + math.exp(b)) / 2
                apart += middle * (math.log(middle) - a) + middle * (math.log(middle) - b)
            if apart > best:
                best, kept = apart, z
        sure = naive.plausible(last, 0.1)
        return torch.tensor(
            [a - b if k else -math.inf for a, b, k in zip(last, kept, sure, strict=True)]
        )

    return naive.write(step, n, ())


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_engine_equals_the_slow_form(family, family_engine):
    engine, row = family_engine(family), families.FAMILIES[family]
    image = families.pictures()[0]
    wanted = slow(engine.model, engine.processor, row.prompt("What is this?"), image, 4)
    sampling = hd.Sampling(max_new_tokens=4, logprobs=1)
    made = engine.generate([hd.Request("What is this?", [image])], "dola", sampling)[0]
    assert list(made.token_ids) == wanted.ids
    for got, scores in zip(made.logprobs, wanted.scores, strict=True):
        assert got.logprob == pytest.approx(float(scores.log_softmax(-1)[got.token_id]), abs=2e-4)


def test_plain_generate_obeys_it(family_engine):
    engine, row = family_engine("llava"), families.FAMILIES["llava"]
    image = families.pictures()[0]
    sampling = hd.Sampling(max_new_tokens=4)
    wanted = engine.generate([hd.Request("What is this?", [image])], "dola", sampling)[0]
    inputs = naive.inputs_of(engine.processor, row.prompt("What is this?"), [image])
    with hd.applied(engine.model, engine.processor, "dola"):
        ids = engine.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert ids[0, inputs["input_ids"].shape[1] :].tolist() == list(wanted.token_ids)


def test_plain_generate_without_a_picture_is_greedy(family_engine):
    engine, row = family_engine("llava"), families.FAMILIES["llava"]
    inputs = naive.inputs_of(engine.processor, row.prompt("Hello there", images=0))
    short = {"max_new_tokens": 4, "do_sample": False}
    wanted = engine.model.generate(**inputs, **short)
    with hd.applied(engine.model, engine.processor, "dola"):
        assert torch.equal(engine.model.generate(**inputs, **short), wanted)


def test_divergence_of_tokens_too_rare_for_float32():
    last, early = torch.tensor([[0.0, -200.0]]), torch.tensor([[[0.0, -300.0]]])
    for kind in ("code", "jsd"):
        assert divergence(last, early, kind).isfinite().all()
