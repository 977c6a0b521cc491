from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from halludecode.core.errors import InvalidParameter
from halludecode.views import masks

DATA = Path(__file__).parents[1] / "data" / "contrastive.json"
OFFICIAL = json.loads((DATA.parent / "official" / "agla.json").read_text())["mask"]["cases"]
VECTORS = {v["id"]: v for v in json.loads(DATA.read_text())["vectors"]}


def white(width, height):
    return Image.new("RGB", (width, height), (255, 255, 255))


def black_share(image):
    return float((np.asarray(image).sum(-1) == 0).mean())


@pytest.mark.parametrize("name", ["agla_mask_sim0.4", "agla_mask_sim0.9"])
def test_keep_mask_matches_the_vectors(name):
    case = VECTORS[name]
    share = masks.keep_share(case["params"]["similarity"])
    assert share == pytest.approx(case["expected"]["ratio_keep"])
    kept = masks.keep_mask(torch.tensor(case["inputs"]["cam"]), share)
    assert kept.int().tolist() == case["expected"]["mask"]
    assert int(kept.sum()) == case["expected"]["kept"]


@pytest.mark.parametrize("case", OFFICIAL, ids=lambda case: str(case["size"]))
def test_mask_is_the_official_one_to_the_last_pixel(case):
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in case["shape"])
    wave = (12.9898 * rows[:, None] + 78.233 * columns).sin() * 43758.5453
    made = masks.smooth(wave - wave.floor(), case["size"], case["size"])
    sparse = made[:: case["every"], :: case["every"]]
    torch.testing.assert_close(
        sparse, torch.tensor(case["smoothed"], dtype=torch.float64), atol=1e-7, rtol=0
    )
    kept = masks.keep_mask(made, masks.keep_share(case["similarity"]))
    assert int(kept.sum()) == case["kept"]
    packed = np.packbits(kept.numpy()).tobytes()
    assert hashlib.sha256(packed).hexdigest() == case["mask_sha256"]


@given(st.floats(-1, 1))
def test_share_kept_falls_with_similarity_and_is_bounded(similarity):
    assert 0.5 <= masks.keep_share(similarity) <= 1 - 1e-5
    assert masks.keep_share(similarity) <= masks.keep_share(similarity - 0.1)


@given(st.integers(2, 40), st.integers(2, 40), st.floats(0, 0.99), st.integers(0, 99))
def test_dropped_share_is_the_asked_one_without_ties(height, width, drop, seed):
    rng = torch.Generator().manual_seed(seed)
    values = torch.randperm(height * width, generator=rng).reshape(height, width).float()
    dropped = height * width - int(masks.keep_mask(values, 1 - drop).sum())
    assert drop * height * width - 1 <= dropped <= drop * height * width + 1e-9
    lowest = values.flatten().argsort()[:dropped]
    assert not masks.keep_mask(values, 1 - drop).flatten()[lowest].any()


@pytest.mark.parametrize("shape", [(30, 50), (7, 5), (384, 384)])
@pytest.mark.parametrize("sigma", [0.02, 0.6, 3.0])
def test_blur_is_the_common_gaussian(shape, sigma):
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy comes with the eval extra")
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    expected = ndimage.gaussian_filter(values.numpy().astype(np.float64), sigma)
    made = masks.blur(values, sigma).double()
    torch.testing.assert_close(made, torch.from_numpy(expected), atol=2e-6, rtol=0)


def test_smooth_spans_zero_to_one_whatever_the_scale():
    values = torch.rand(6, 8, generator=torch.Generator().manual_seed(0))
    made = masks.smooth(values, 60, 90)
    assert made.shape == (60, 90)
    assert (float(made.min()), float(made.max())) == (0, 1)
    torch.testing.assert_close(made, masks.smooth(100 * values - 7, 60, 90), atol=1e-4, rtol=0)


def test_smooth_blurs_by_two_percent_of_the_longer_side():
    spot = torch.zeros(1, 64)
    spot[0, 32] = 1.0
    made = masks.smooth(spot, 32, 64)[16]
    x = torch.arange(64.0)
    sharp = torch.zeros(64)
    sharp[32] = 1
    sigma = ((made * (x - 32) ** 2).sum() / made.sum()).sqrt()
    assert float(sigma) == pytest.approx(0.02 * 64, rel=0.05)


def test_blackout_darkens_the_least_relevant_side():
    relevance = torch.arange(8.0).repeat(8, 1)  # rises from left to right
    picture = masks.blackout(white(120, 80), drop=0.25, relevance=relevance)
    assert picture.size == (120, 80)
    assert picture.mode == "RGB"
    assert black_share(picture) == pytest.approx(0.25, abs=0.03)
    pixels = np.asarray(picture)
    assert pixels[:, :25].sum() == 0
    assert bool((pixels[:, 40:] == 255).all())


def test_blackout_keeps_rows_and_columns_apart():
    relevance = torch.zeros(2, 4)
    relevance[0, 3] = 1.0  # top right
    pixels = np.asarray(masks.blackout(white(80, 40), drop=0.9, relevance=relevance))
    bright = np.argwhere(pixels.sum(-1) > 0)
    assert bright[:, 0].max() < 20
    assert bright[:, 1].min() > 40


def test_nothing_is_blackened_without_contrast_or_share():
    picture = white(30, 20)
    flat = masks.blackout(picture, drop=0.2, relevance=torch.ones(4, 4))
    none = masks.blackout(picture, drop=0.0, relevance=torch.rand(4, 4))
    assert flat.tobytes() == none.tobytes() == picture.tobytes()


def test_other_modes_become_rgb():
    palette = white(20, 20).convert("P")
    assert masks.blackout(palette, drop=0.2, relevance=torch.rand(3, 3)).mode == "RGB"


@pytest.mark.parametrize("similarity", [-0.5, 0.0, 0.4, 0.9])
def test_agla_mask_is_384_pixels_and_masks_half_the_similarity(similarity):
    relevance = torch.rand(24, 24, generator=torch.Generator().manual_seed(0))
    picture = masks.agla_mask(white(100, 50), relevance=relevance, similarity=similarity)
    assert picture.size == (384, 384)
    assert black_share(picture) == pytest.approx(max(0, similarity / 2), abs=1e-4)


def test_original_picture_is_untouched():
    picture = white(30, 30)
    masks.blackout(picture, drop=0.5, relevance=torch.rand(3, 3))
    assert picture.tobytes() == white(30, 30).tobytes()


@pytest.mark.parametrize("drop", [-0.1, 1.0])
def test_drop_out_of_bounds_is_refused(drop):
    with pytest.raises(InvalidParameter, match="drop"):
        masks.blackout(white(4, 4), drop=drop, relevance=torch.rand(2, 2))


@pytest.mark.parametrize("relevance", [torch.rand(9), torch.tensor([[0.0, float("nan")]])])
def test_maps_that_are_no_finite_matrix_are_refused(relevance):
    with pytest.raises(InvalidParameter, match="relevance map"):
        masks.blackout(white(4, 4), drop=0.2, relevance=relevance)
