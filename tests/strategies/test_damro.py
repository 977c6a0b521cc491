"""DAMRO: vectors, the tower's attention against a loop, and patches laid onto tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers.vision_utils import get_vision_window_index

import halludecode as hd
from halludecode.core.activations import ActivationRequest
from halludecode.core.step import Step
from halludecode.engines.hf import activations
from halludecode.engines.inputs.chat import to_prompt
from halludecode.models.families import FAMILIES
from halludecode.strategies.damro import DAMRO
from tests.support import families, naive

VECTORS = json.loads(Path("tests/data/contrastive.json").read_text(encoding="utf-8"))["vectors"]
COMBINE = [v for v in VECTORS if v["id"].startswith("damro_combine")]
TOPK = next(v for v in VECTORS if v["id"] == "damro_topk")


@pytest.mark.parametrize("case", COMBINE, ids=lambda c: c["id"])
def test_combine_matches_the_vectors(case):
    inputs = {"main": torch.tensor([case["inputs"]["z_v"]])}
    inputs["outliers"] = torch.tensor([case["inputs"]["z_neg"]])
    made = DAMRO(**case["params"]).combine(Step(inputs, torch.ones(1, 1)))[0].tolist()
    assert made == pytest.approx([float(x) for x in case["expected"]["scores"]], abs=1e-4)


def test_received_attention_matches_the_vector():
    from halludecode.models.vision_tower import VisionCapture

    case = TOPK["inputs"]
    q = torch.tensor([case["q_cls"], *case["k_patches"]])[None, None]
    k = torch.tensor([case["k_cls"], *case["k_patches"]])[None, None]
    module = torch.nn.Identity()
    for fullwidth, shape in (
        (False, (q, k)),
        (True, (q.reshape(1, 2, 7, 2), k.reshape(1, 2, 7, 2))),
    ):
        if fullwidth:  # two heads of two dimensions are the same vector when read full-width
            shape = tuple(x[0, 0].unflatten(-1, (2, 2)).transpose(0, 1)[None] for x in (q, k))
        keeper = VisionCapture(frozenset({0}), {id(module): 0}, has_cls=True, fullwidth=fullwidth)
        keeper.see(module, *shape, 0.5)
        made = keeper.kept[0][0][0, 0]
        assert made.tolist() == pytest.approx(
            TOPK["expected"]["cls_attention_incl_cls"][1:], abs=1e-4
        )
        best = made.topk(2)
        assert best.indices.tolist() == TOPK["expected"]["topk_patch_indices"]
        assert best.values.tolist() == pytest.approx(TOPK["expected"]["topk_scores"], abs=1e-4)


def tower_attention(engine, image, layer: int) -> torch.Tensor:
    """[Hv, N, N] of LLaVA's tower from the model's own eager attention."""
    tower = engine.model.model.vision_tower
    pixels = engine.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    tower.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = tower(pixels, output_attentions=True)
    finally:
        tower.set_attn_implementation("sdpa")
    return out.attentions[layer][0]


@pytest.mark.parametrize("layer", [0, 1])
def test_look_equals_the_towers_own_attention(layer, family_engine):
    engine, image = family_engine("llava"), families.pictures()[0]
    prompt = to_prompt(hd.Request("Why?", [image]), engine.family.placeholder)
    seen = engine.activations(ActivationRequest(prompt, vision=(layer,)))
    wanted = tower_attention(engine, image, layer)[:, 0, 1:]
    assert torch.allclose(seen.vision[0], wanted, atol=1e-5)
    assert seen.image_counts == (wanted.shape[-1],)


def test_outlier_row_holds_the_chosen_features_in_falling_order(family_engine):
    engine, image = family_engine("llava"), families.pictures()[2]
    request = hd.Request("Why?", [image])
    row = engine.rows(request, "damro(k=3)")["outliers"]
    layer = engine.model.config.vision_config.num_hidden_layers - 2
    received = tower_attention(engine, image, layer)[:, 0, 1:].mean(0)
    main = engine.rows(request)["main"]
    features = engine.hf_model.features(main.images)[0]
    assert torch.allclose(row.embeds, features[received.topk(3).indices], atol=1e-5)
    assert len(main.input_ids) - len(row.input_ids) == len(features) - 3


@pytest.mark.parametrize(("name", "k"), [("llava", 3), ("qwen2_5_vl", 3), ("qwen2_5_vl", 10)])
def test_engine_equals_the_slow_form(name, k, family_engine):
    """Also where a picture has no more tokens than k: chosen ones still stand in line."""
    engine, family = family_engine(name), families.FAMILIES[name]
    image, text = families.pictures()[1], family.prompt("What is this?")
    inputs = naive.inputs_of(engine.processor, text, [image])
    spec = f"damro(k={k})"
    row = engine.rows(hd.Request("What is this?", [image]), spec)["outliers"]
    token = engine.model.config.image_token_id
    count = int((inputs["input_ids"] == token).sum())
    assert int((row.input_ids == token).sum()) == min(k, count)
    assert k < count or name == "qwen2_5_vl"

    def outliers(ids: list[int]) -> torch.Tensor:
        fed = torch.cat([row.input_ids, torch.tensor(ids, dtype=torch.long)])[None]
        embeds = engine.model.get_input_embeddings()(fed).clone()
        embeds[fed == token] = row.embeds
        line = torch.arange(fed.shape[1])[None]
        place = line if name == "llava" else line.expand(3, 1, -1)
        with torch.no_grad():
            out = engine.model(inputs_embeds=embeds, position_ids=place, use_cache=False)
        return out.logits[0, -1]

    def step(ids: list[int], t: int) -> torch.Tensor:
        z, other = naive.next_logits(engine.model, inputs, ids), outliers(ids)
        return torch.tensor(naive.combine_vcd(z.tolist(), other.tolist(), 2.0, 0.1))

    wanted = naive.write(step, 4, ())
    sampling = hd.Sampling(max_new_tokens=4, logprobs=1)
    made = engine.generate([hd.Request("What is this?", [image])], spec, sampling)[0]
    assert list(made.token_ids) == wanted.ids
    for got, scores in zip(made.logprobs, wanted.scores, strict=True):
        assert got.logprob == pytest.approx(float(scores.log_softmax(-1)[got.token_id]), abs=5e-4)


def test_shuffled_patches_follow_the_models_own_shuffle(family_engine):
    model = family_engine("internvl").model
    side = 4
    raster = torch.arange(float(side * side)).reshape(1, side, side, 1)
    squares = model.model.pixel_shuffle(raster, scale_factor=0.5).reshape(-1, 4)
    values = torch.arange(float(side * side)).reshape(1, 1, 1, -1)
    laid = FAMILIES["internvl"].patches(values, {}, model.config)
    assert laid.flatten().tolist() == squares.mean(-1).tolist()


@pytest.mark.parametrize("size", [(64, 64), (112, 56), (100, 84)])
def test_windowed_patches_follow_the_towers_own_order(size, family_engine):
    """A tower that passes its patch numbers through puts each token's patches where laid says."""
    engine = family_engine("qwen2_5_vl")
    image = families.pictures()[0].resize(size)
    made = engine.processor.image_processor(images=[image], return_tensors="pt")
    grid, merge = made["image_grid_thw"], engine.model.config.vision_config.spatial_merge_size**2
    count = len(made["pixel_values"])
    tower = engine.model.config.vision_config
    sizes = (tower.spatial_merge_size, tower.window_size, tower.patch_size)
    order, _ = get_vision_window_index(grid, *sizes)
    number = torch.arange(float(count)).reshape(-1, merge)
    values = number[order].reshape(1, 1, 1, -1)  # as the tower's layers see them
    laid = FAMILIES["qwen2_5_vl"].patches(values, {"image_grid_thw": grid}, engine.model.config)
    assert laid.flatten().tolist() == number.mean(-1).tolist()


@pytest.mark.parametrize("heads", ["mean", "fullwidth"])
def test_questions_about_one_picture_share_one_look_into_the_tower(
    family_engine, monkeypatch, heads
):
    engine = family_engine("llava")
    stock, looked = activations.received, []
    monkeypatch.setattr(activations, "received", lambda *a, **k: looked.append(a) or stock(*a, **k))
    image = Image.new("RGB", (56, 56), (9, 180, len(heads)))
    asked = [hd.Request(words, [image]) for words in ("Is it green?", "Is it red?", "Why?")]
    before = engine.hf_model.calls
    spec = f"damro(beta=0, heads={heads})"
    outputs = engine.generate(asked, spec, hd.Sampling(max_new_tokens=2))
    assert all(output.rows == ("main", "outliers") for output in outputs)
    assert len(looked) == 1
    assert engine.hf_model.calls - before == 3  # the picture, the questions, a token: no pass more
