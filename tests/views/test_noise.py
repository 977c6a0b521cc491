from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halludecode.core.errors import InvalidParameter
from halludecode.views import noise

DATA = Path(__file__).parents[1] / "data" / "contrastive.json"
VECTORS = {v["id"]: v for v in json.loads(DATA.read_text())["vectors"]}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_schedule_matches_the_vector():
    case = VECTORS["vcd_noise_schedule"]
    rows = zip(
        case["params"]["steps"],
        case["expected"]["sqrt_alpha_bar"],
        case["expected"]["sqrt_one_minus_alpha_bar"],
        strict=True,
    )
    for step, signal, spread in rows:
        assert noise.amplitudes(step) == pytest.approx((signal, spread), abs=1e-5)


def test_diffuse_matches_the_vector(monkeypatch):
    case = VECTORS["vcd_noise_apply_t500"]
    monkeypatch.setattr(torch, "randn", lambda *_, **__: torch.tensor(case["inputs"]["eps"]))
    made = noise.diffuse(torch.tensor(case["inputs"]["x0"]), step=500, rng=generator())
    torch.testing.assert_close(made, torch.tensor(case["expected"]["x_t"]), atol=1e-4, rtol=0)


@given(st.integers(0, noise.STEPS - 1))
def test_variance_is_kept(step):
    signal, spread = noise.amplitudes(step)
    assert signal**2 + spread**2 == pytest.approx(1)
    assert 0.28 < signal < 1


def test_noise_is_standard_normal_and_scaled():
    pixels = torch.full((3, 200, 200), 2.0)
    made = noise.diffuse(pixels, step=999, rng=generator())
    signal, spread = noise.amplitudes(999)
    assert float(made.mean()) == pytest.approx(2 * signal, abs=0.02)
    assert float(made.std()) == pytest.approx(spread, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_result_is_float32_and_the_input_untouched(dtype):
    pixels = torch.ones(4, 6, dtype=dtype)
    made = noise.diffuse(pixels, step=500, rng=generator())
    assert made.dtype == torch.float32
    assert made.shape == pixels.shape
    assert bool((pixels == 1).all())


def test_the_generator_alone_decides():
    pixels = torch.zeros(5, 5)
    torch.manual_seed(1)
    a = noise.diffuse(pixels, step=500, rng=generator(3))
    torch.manual_seed(2)
    assert torch.equal(a, noise.diffuse(pixels, step=500, rng=generator(3)))
    assert not torch.equal(a, noise.diffuse(pixels, step=500, rng=generator(4)))


@pytest.mark.parametrize("step", [-1, 1000])
def test_steps_outside_the_schedule_are_refused(step):
    with pytest.raises(InvalidParameter, match="0 to 999"):
        noise.diffuse(torch.zeros(1), step=step, rng=generator())
