"""DeCo: the vector, a slow re-derivation, and the layers it looks at."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import halludecode as hd
from halludecode.core.errors import InvalidParameter
from halludecode.core.plan import typical_model_info
from halludecode.core.step import Step
from halludecode.strategies.deco import DeCo
from tests.support import families, naive

VECTORS = json.loads(Path("tests/data/contrastive.json").read_text(encoding="utf-8"))["vectors"]
CASE = next(v for v in VECTORS if v["id"] == "deco")


def corrected(z: list[float], layers: list[list[float]], alpha, k, p) -> list[float]:
    """One token, word by word."""
    total = sum(map(math.exp, z))
    ranked, mass, kept = sorted(range(len(z)), key=lambda w: -z[w])[:k], 0.0, []
    for word in ranked:
        if mass < p:
            kept.append(word)
        mass += math.exp(z[word]) / total
    most, anchor = -1.0, layers[0]
    for layer in layers:
        whole = sum(map(math.exp, layer))
        for word in kept:
            if math.exp(layer[word]) / whole > most:
                most, anchor = math.exp(layer[word]) / whole, layer
    made = [a + alpha * most * b for a, b in zip(z, anchor, strict=True)]
    return [score if word in kept else -math.inf for word, score in enumerate(made)]


def test_scores_match_the_vector():
    inputs, p = CASE["inputs"], CASE["params"]
    early = {n: torch.tensor([z]) for n, z in enumerate(inputs["z_layers"])}
    step = Step({"main": torch.tensor([inputs["z_final"]])}, torch.ones(1, 1), None, _same, early)
    rules = DeCo(alpha=p["alpha"], top_k=p["threshold_top_k"], top_p=p["threshold_top_p"])
    made, wanted = rules.combine(step)[0].tolist(), CASE["expected"]["scores"]
    assert made == pytest.approx([float(x) for x in wanted], abs=1e-4)
    slow = corrected(inputs["z_final"], inputs["z_layers"], 0.6, 4, 0.9)
    assert slow == pytest.approx([float(x) for x in wanted], abs=1e-4)


def _same(x: torch.Tensor, norm: bool) -> torch.Tensor:
    assert norm
    return x


def test_layers_are_scaled_and_in_order():
    deep = typical_model_info()
    assert list(DeCo().early(deep)) == list(range(20, 29))
    assert list(DeCo().early(replace(deep, num_layers=40))) == list(range(25, 36))
    assert list(DeCo().early(replace(deep, num_layers=4))) == [2, 3]
    with pytest.raises(InvalidParameter, match="after the last"):
        DeCo(first=29)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_engine_equals_the_slow_form(family, family_engine):
    engine, row = family_engine(family), families.FAMILIES[family]
    image = families.pictures()[0]
    inputs = naive.inputs_of(engine.processor, row.prompt("What is this?"), [image])
    layers, decoder = list(DeCo().early(engine.model_info)), naive.decoder_layers(engine.model)
    norm = next(
        m.norm
        for m in engine.model.modules()
        if getattr(m, "layers", None) is not None and list(m.layers) == decoder
    )

    def step(ids: list[int], t: int) -> torch.Tensor:
        with torch.no_grad():
            fed = naive.extended(inputs, ids)
            out = engine.model(**fed, use_cache=False, output_hidden_states=True)
            head = engine.model.get_output_embeddings()
            early = [head(norm(out.hidden_states[n][0, -1])).tolist() for n in layers]
        return torch.tensor(corrected(out.logits[0, -1].tolist(), early, 0.6, 20, 0.9))

    wanted = naive.write(step, 4, ())
    sampling = hd.Sampling(max_new_tokens=4, logprobs=1)
    made = engine.generate([hd.Request("What is this?", [image])], "deco", sampling)[0]
    assert list(made.token_ids) == wanted.ids
    for got, scores in zip(made.logprobs, wanted.scores, strict=True):
        assert got.logprob == pytest.approx(float(scores.log_softmax(-1)[got.token_id]), abs=2e-4)
