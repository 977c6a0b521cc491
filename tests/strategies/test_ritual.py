"""RITUAL: the published vectors, its random view, and whole runs written out slowly."""

from __future__ import annotations

import math

import pytest
import torch

import halludecode as hd
from halludecode.core.prompt import Picture, Prompt, Turn
from halludecode.core.spec import get
from halludecode.views.transforms import transformed
from tests.core.test_combine_vectors import CASES, check, combined, tensor
from tests.engines.hf.test_naive_parity import N
from tests.engines.hf.test_naive_parity import check as check_run
from tests.support import families, naive


@pytest.mark.parametrize("name", ["ritual_a3", "ritual_a3_normalised"])
def test_vectors(name):
    case = CASES[name]
    rows = {"transformed": tensor(case["inputs"]["z_pos"])}
    strategy = get("ritual", **case["params"])
    check(combined([(strategy, rows)], tensor(case["inputs"]["z_v"])), case["expected"])


def test_with_vcd_the_increments_add_up_under_one_mask():
    case = CASES["ritual_plus_vcd"]
    main, beta = tensor(case["inputs"]["z_v"]), case["params"]["beta"]
    positive = get("ritual", alpha=case["params"]["alpha_pos"], beta=beta)
    negative = get("vcd", alpha=case["params"]["alpha_neg"], beta=beta)
    parts = [
        (positive, {"transformed": tensor(case["inputs"]["z_pos"])}),
        (negative, {"noised": tensor(case["inputs"]["z_neg"])}),
    ]
    for order in (parts, parts[::-1]):
        check(combined(order, main), case["expected"])


def test_the_rule_in_loops():
    rng = torch.Generator().manual_seed(3)
    main, other = torch.randn(2, 4, 30, generator=rng) * 2
    for alpha, beta, normalise in ((3.0, 0.1, False), (0.5, 0.0, True), (1.5, 0.6, True)):
        strategy = get("ritual", alpha=alpha, beta=beta, normalise=normalise)
        made = combined([(strategy, {"transformed": other})], main)
        for z, p, scores in zip(main.tolist(), other.tolist(), made.tolist(), strict=True):
            keep = naive.plausible(z, beta)
            for a, b, k, score in zip(z, p, keep, scores, strict=True):
                wanted = (a + alpha * b) / (1 + alpha if normalise else 1)
                assert score == pytest.approx(wanted, abs=1e-4) if k else score == -math.inf


def prompt_of(*images) -> Prompt:
    return Prompt((Turn("user", (*(Picture.of(image) for image in images), "What is this?")),))


def view(image, **params) -> bytes:
    prompt = prompt_of(image)
    branch = get("ritual", **params).branches(prompt, {}, None)["transformed"]
    made = branch.images(image, edited=prompt.pictures[0].key, index=0)
    return made.tobytes() + str(made.size).encode()


def test_a_picture_keeps_its_draw_and_other_draws_differ():
    image, other, _ = families.pictures()
    assert view(image) == view(image)
    assert view(image, draw=1) == view(image, draw=1)
    assert len({view(image, draw=n) for n in range(20)}) > 4
    assert view(image) != view(other)


def test_each_picture_of_a_request_draws_for_itself(family_engine):
    engine = family_engine("llava")
    image = families.pictures()[0]
    row = engine.rows(hd.Request("Same?", [image] * 4), "ritual")["transformed"]
    seen = [image.picture.image for image in row.images]
    assert len({made.tobytes() for made in seen}) > 1, "the place of a picture is part of its draw"
    edit = get("ritual").branches(prompt_of(image), {}, None)["transformed"].images
    for index, made in enumerate(seen):
        rng = torch.Generator().manual_seed(edit.seed(Picture.of(image).key, index))
        assert made.tobytes() == transformed(image, rng=rng).tobytes()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
@pytest.mark.parametrize("draw", [0, 3, 7])  # a flip, a rotation, a crop
def test_a_whole_run(family_engine, family, draw):
    engine = family_engine(family)
    image = families.pictures()[0]
    text = families.FAMILIES[family].prompt("What is this?")
    spec = f"ritual(draw={draw})"
    shown = engine.rows(hd.Request("What is this?", [image]), spec)["transformed"]
    view = [shown.images[0].picture.image]
    expected = naive.agla(
        engine.model, engine.processor, text, [image], N, masked=view, alpha=3.0, beta=0.1
    )
    check_run(engine, spec, expected, image)
