"""CAAC: the official factors and forward, whole runs written out slowly, and its white pass."""

from __future__ import annotations

import pytest
import torch

import halludecode as hd
from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from halludecode.core.state import PerImageToken
from halludecode.engines.inputs.chat import to_prompt
from halludecode.strategies.caac import WORDS, evened
from halludecode.views.white import white
from tests.engines.hf.test_naive_parity import N, check
from tests.support import families, naive, official

CASE = official.CASES["caac"]


def test_the_official_factors():
    made = evened(torch.tensor(CASE["reference"], dtype=torch.float64), CASE["beta"])
    official_factors = torch.tensor(CASE["factors"], dtype=torch.float64)
    torch.testing.assert_close(made, official_factors, atol=1e-6, rtol=0)


def test_the_official_forward():
    """Of the last token alone: the official factor is on all rows, having no cache."""
    official.close(official.edited("caac"), "caac", [7])


def test_confidence_raises_below_theta_alone():
    even = PerImageToken(torch.ones(1, 3, 3, dtype=torch.float64))
    plain = official.official_block([7]).base[0].transpose(0, 1).flatten(1)
    for sure, theta, acts in ((0.3, 0.25, False), (0.25, 0.25, True), (0.9, 1.0, True)):
        made = official.outputs_of(
            get("caac", depth=1, theta=theta), [7], {"even": [even]}, layer=0, confidence=sure
        )
        assert torch.allclose(made, plain) != acts


def test_every_picture_is_evened_by_itself():
    w = torch.rand(10, 4, 9, generator=torch.Generator().manual_seed(0)) + 0.1
    kept = Activations(image=w, image_counts=(4, 5))
    made = get("caac").prepare({"white": kept}, typical_model_info())["even"].values
    for part in (slice(0, 4), slice(4, 9)):
        mean = w[..., part].mean(-1, keepdim=True)
        torch.testing.assert_close(made[..., part], 0.3 + 0.7 * mean / w[..., part])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_whole_run(family_engine, family):
    engine, image = family_engine(family), families.pictures()[1]
    spec = "caac(beta=0.5,lam=3.0,theta=0.9)"
    model, text = engine.model, families.FAMILIES[family].prompt("What is this?")
    main = naive.inputs_of(engine.processor, text, [image])
    ids, token = main["input_ids"][0].tolist(), engine.row_builder.inputs.image_token
    places, length = [i for i, each in enumerate(ids) if each == token], len(ids)
    blank = to_prompt(hd.Request(WORDS, [white_of(image)]), engine.family.placeholder)
    seen = engine.activations(ActivationRequest(blank, image=(0, 1))).image.tolist()
    sure: list[float] = []

    def scores(layer, given):
        for h, head in enumerate(given):
            w = seen[layer][h] if layer < depth else []
            for row in range(places[-1] + 1, len(head)):
                p = sure[row - length] if row >= length else 1.0
                raised = p + (1 - p) * 3.0 if p <= 0.9 else 1.0
                for n, j in enumerate(places):
                    even = 0.5 + 0.5 * sum(w) / len(w) / w[n] if w else 1.0
                    head[row][j] *= raised * even
        return given

    depth = len(get("caac")._even(engine.model_info))

    def step(written, t):
        with naive.edited(model, scores=scores):
            logits = naive.next_logits(model, main, written)
        sure.append(float(logits.softmax(-1).max()))
        return logits

    check(engine, spec, naive.write(step, N, ()), image)


def white_of(image):
    from halludecode.core.prompt import Picture

    return white(Picture.of(image)).image


def test_the_white_pass_is_one_a_size():
    m = typical_model_info()
    caac = get("caac")
    sizes = [picture.size for picture in families.pictures()]
    asked = [
        caac.activations(to_prompt(hd.Request(words, [picture]), "<image>"), m)["white"]
        for words in ("What is this?", "Why?")
        for picture in families.pictures()
    ]
    assert len({request.key for request in asked}) == len(set(sizes))
    assert asked[0].image == tuple(range(10)) and asked[0].prompt.question == WORDS


def test_needs_and_off():
    m = typical_model_info()
    plan = compile_plan("caac", m)
    assert {"confidence", "key", "activations", "raster", "scale_scores"} == plan.needs
    assert plan.rows == ("main",) and plan.cost.passes == 1
    assert compile_plan("caac(beta=0,lam=1)", m).parts == ()
