"""The engine's tokens and scores equal slow, cache-free, loop-level ones (support/naive.py)."""

from __future__ import annotations

import pytest
import torch

import halludecode as hd
from tests.support import families, naive
from tests.support.specs import FAMILIES

N = 4
SAMPLING = hd.Sampling(max_new_tokens=N, logprobs=1)
NOISE = 2e-4
# A recurrent state is read in chunks without a cache and token by token with one: of the tiny
# Qwen3.5, transformers' own log-probabilities of the two part by up to 4.6e-4 in four tokens, where
# Qwen2.5-VL's part by 5e-6. A contrast weighs such a difference nine times (m3id here).
RECURRENT_NOISE = 9 * 4.6e-4


@pytest.fixture(params=FAMILIES)
def world(request, family_engine):
    """engine, family row, plain model and processor, rendered prompt, picture."""
    engine = family_engine(request.param)
    family = families.FAMILIES[request.param]
    return engine, family, engine.model, engine.processor, family.prompt("What is this?")


def check(engine, spec, expected: naive.Answer, image):
    """Same tokens up to an end token, same log-probabilities of the combined scores."""
    output = engine.generate([hd.Request("What is this?", [image])], spec, SAMPLING)[0]
    count = len(output.token_ids)
    assert count == N or output.finish_reason == "stop"
    assert list(output.token_ids) == expected.ids[:count]
    noise = RECURRENT_NOISE if engine.model_info.recurrent else NOISE
    for got, scores in zip(output.logprobs, expected.scores[:count], strict=True):
        finite = scores.masked_fill(scores == -torch.inf, -1e30)
        assert got.logprob == pytest.approx(float(finite.log_softmax(-1)[got.token_id]), abs=noise)


@pytest.mark.parametrize("place", range(3))
def test_greedy(world, place):
    engine, _, model, processor, text = world
    image = families.pictures()[place]
    check(engine, "greedy", naive.greedy(model, processor, text, [image], N), image)


def test_prompt_ids_are_the_processors_own(world):
    engine, family, model, processor, _ = world
    images = families.pictures()
    for count in range(4 if family.several else 2):
        text, given = family.prompt("Compare them.", images=count), images[:count] or None
        if model.config.model_type == "llava_onevision" and given:
            given = [given]  # as of a chat: several pictures of one prompt are not cut into tiles
        expected = naive.inputs_of(processor, text, given or ())
        row = engine.rows(hd.Request("Compare them.", images[:count]))["main"]
        assert row.prompt == text
        assert row.input_ids.tolist() == expected["input_ids"][0].tolist()
        if count:
            views = expected["pixel_values"].float()
            if views.dim() == 5:  # [pictures, views, 3, H, W], filled up with empty views
                views = views.flatten(0, 1)
                views = views[views.flatten(1).any(1)]
            assert torch.equal(row.pixel_values, views)
        else:
            assert row.pixel_values is None


def test_vcd(world):
    engine, _, model, processor, text = world
    image = families.pictures()[1]
    noised = engine.rows(hd.Request("What is this?", [image]), "vcd")["noised"].pixel_values
    plain = processor(text=text, images=[image], return_tensors="pt")["pixel_values"].float()
    noised = noised.reshape(plain.shape)
    assert not torch.allclose(noised, plain)
    expected = naive.vcd(model, processor, text, [image], N, noised=noised, alpha=0.7, beta=0.05)
    check(engine, "vcd(alpha=0.7,beta=0.05)", expected, image)


def _needs_attention_everywhere(engine):
    if engine.model_info.recurrent:
        pytest.skip("naive's loops count one attention a layer, and here some layers have none")


def _needs_text_alone(model):
    if model.config.model_type == "instructblip":
        pytest.skip("the plain forward of InstructBLIP has no form without a picture to compare to")


def test_m3id(world):
    engine, family, model, processor, text = world
    _needs_text_alone(model)
    image = families.pictures()[2]
    blind = family.blind(text)
    assert engine.rows(hd.Request("What is this?", [image]), "m3id")["blind"].prompt == blind
    expected = naive.m3id(model, processor, text, [image], N, blind=blind, lam=0.4, gate=1.0)
    check(engine, "m3id(lam=0.4,gate=1)", expected, image)


def test_agla(world):
    engine, _, model, processor, text = world
    if "raster" not in engine.provides:
        pytest.skip("the family refuses agla's own matcher; the contract suite holds it to that")
    image = families.pictures()[1]
    row = engine.rows(hd.Request("What is this?", [image]), "agla(drop=0.5)")["masked"]
    masked = row.images[0].picture.image
    black = sum(pixel == (0, 0, 0) for pixel in masked.get_flattened_data())
    assert black / (masked.width * masked.height) == pytest.approx(0.5, abs=0.02)
    expected = naive.agla(model, processor, text, [image], N, masked=[masked], alpha=2.0, beta=0.5)
    check(engine, "agla(drop=0.5)", expected, image)


def test_var(world):
    engine, _, model, processor, text = world
    _needs_attention_everywhere(engine)
    image = families.pictures()[1]
    values = {"p": 0.6, "rho": 0.2, "mass": 0.05}
    expected = naive.var(model, processor, text, [image], N, dims=(3, 40, 77), tau=2.0, **values)
    spec = "var(dims=(3,40,77),tau=2.0,rho=0.2,min_mass=0.05)"
    check(engine, spec, expected, image)
    plain = naive.greedy(model, processor, text, [image], N)
    assert any(
        not torch.allclose(a, b, atol=1e-3)
        for a, b in zip(expected.scores, plain.scores, strict=True)
    ), "var must have moved something here"


def test_vhr(world):
    engine, family, model, processor, text = world
    _needs_text_alone(model)
    _needs_attention_everywhere(engine)
    image = families.pictures()[0]
    expected = naive.vhr(model, processor, text, [image], N, blind=family.blind(text), alpha=2.0)
    check(engine, "vhr", expected, image)


def test_row_picture_shows_what_the_row_sees(world):
    import numpy as np

    engine = world[0]
    image = families.pictures()[0]
    rows = engine.rows(hd.Request("What is this?", [image]), "vcd(noise_step=900)")
    shown, noised = (np.asarray(rows[name].picture(), float) for name in ("main", "noised"))
    plain = np.asarray(image.resize(rows["main"].picture().size), float)
    assert abs(shown - plain).mean() < 12
    assert abs(noised - plain).mean() > 30
