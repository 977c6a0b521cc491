"""LACING: vectors, the soft row, and the engine against a slow form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import halludecode as hd
from halludecode.core.artifact import Artifact
from halludecode.core.step import Step
from halludecode.engines.hf.engine import HFEngine
from halludecode.strategies.lacing import LACING
from halludecode.views.soft import laid
from tests.support import families, naive

PATH = Path(__file__).parents[1] / "data" / "contrastive.json"
VECTORS = json.loads(PATH.read_text(encoding="utf-8"))["vectors"]
CFG = [v for v in VECTORS if v["id"].startswith("lacing_cfg")]


@pytest.mark.parametrize("case", CFG, ids=lambda c: c["id"])
def test_combine_matches_the_vectors(case):
    rows = {"main": torch.tensor([case["inputs"]["z_c"]])}
    rows["soft"] = torch.tensor([case["inputs"]["z_u"]])
    made = LACING(**case["params"]).combine(Step(rows, torch.ones(1, 1)))
    assert made[0].tolist() == pytest.approx(case["expected"]["scores"], abs=1e-4)
    assert made[0].softmax(-1).tolist() == pytest.approx(case["expected"]["probs"], abs=1e-4)
    assert int(made.argmax()) == case["expected"]["argmax"]


def test_beta_bans_what_the_picture_makes_implausible():
    rows = {"main": torch.tensor([[2.0, 1.9, -3.0]]), "soft": torch.tensor([[2.0, 3.0, -9.0]])}
    free = LACING(scale=2.5).combine(Step(rows, torch.ones(1, 1)))
    kept = LACING(scale=2.5, beta=0.1).combine(Step(rows, torch.ones(1, 1)))
    assert int(free.argmax()) == 2, "a rare token wins without the mask"
    assert int(kept.argmax()) == 0


def test_a_prompt_begins_again_where_a_picture_has_more_tokens():
    soft = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(laid(soft, 3), soft)
    assert torch.equal(laid(soft, 2), soft[:2])
    assert laid(soft, 7)[:, 0].tolist() == [0, 2, 4, 0, 2, 4, 0]


@pytest.fixture
def engine(family_engine, tmp_path):
    loaded = family_engine("llava")
    engine = HFEngine(loaded.model, loaded.processor, artifacts=tmp_path)
    soft = torch.randn(64, 128, generator=torch.Generator().manual_seed(3))
    engine.calibrator.store.save(Artifact("lacing", {}, engine.digest, {"soft": soft}))
    return engine


def test_every_picture_of_the_soft_row_is_the_prompt(engine):
    one, two, _ = families.pictures()
    rows = engine.rows(hd.Request("Compare.", [one, two]), "lacing")
    (part,) = engine.plan("lacing").parts
    assert torch.equal(rows["soft"].embeds, part.model_info.artifact["soft"].repeat(2, 1))
    assert torch.equal(rows["soft"].input_ids, rows["main"].input_ids)


def test_engine_equals_the_slow_form(engine):
    family, image = families.FAMILIES["llava"], families.pictures()[1]
    inputs = naive.inputs_of(engine.processor, family.prompt("What is this?"), [image])
    (part,) = engine.plan("lacing").parts
    soft, token = part.model_info.artifact["soft"], engine.model.config.image_token_id

    @torch.no_grad()
    def unguided(ids: list[int]) -> torch.Tensor:
        fed = naive.extended(inputs, ids)["input_ids"]
        embeds = engine.model.get_input_embeddings()(fed).clone()
        embeds[fed == token] = soft
        return engine.model(inputs_embeds=embeds, use_cache=False).logits[0, -1]

    def step(ids: list[int], t: int) -> torch.Tensor:
        z_c, z_u = naive.next_logits(engine.model, inputs, ids), unguided(ids)
        pairs = zip(z_c.tolist(), z_u.tolist(), strict=True)
        return torch.tensor([u + 1.8 * (c - u) for c, u in pairs])

    wanted = naive.write(step, 5, ())
    sampling = hd.Sampling(max_new_tokens=5, min_new_tokens=5)
    request = hd.Request("What is this?", [image])
    made = engine.generate([request], "lacing(scale=1.8)", sampling)[0]
    assert list(made.token_ids) == wanted.ids
    assert list(engine.generate([request], "greedy", sampling)[0].token_ids) != wanted.ids
    assert made.rows == ("main", "soft")
