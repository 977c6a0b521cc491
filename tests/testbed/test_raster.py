import math

import numpy as np
import pytest
from PIL import Image

from halludecode.testbed import raster, render
from halludecode.testbed.raster import premultiplied, resized, smoothed, tinted, turned


def sprite():
    rgba = np.zeros((20, 30, 4), np.uint8)
    rgba[4:16, 5:25] = (200, 100, 50, 255)
    rgba[4:10, 5:12] = (20, 220, 90, 255)
    return rgba


def test_colour_is_multiplied_by_alpha():
    pixel = np.array([[[200, 100, 50, 128]]], np.uint8)
    assert premultiplied(pixel)[0, 0].tolist() == [100, 50, 25, 128]


@pytest.mark.parametrize(("width", "height"), [(29, 13), (12, 8), (5, 3), (30, 20), (40, 27)])
def test_resizing_agrees_with_pillow(width, height):
    ours = resized(sprite(), width, height).astype(int)
    picture = Image.frombytes("RGBa", (30, 20), sprite().tobytes())
    theirs = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    assert ours.shape == theirs.shape
    assert abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("half_degrees", [0, 180, -180])
def test_quarter_turns_are_exact(half_degrees):
    turns = half_degrees // 180
    assert np.array_equal(turned(sprite(), half_degrees), np.rot90(sprite(), turns))


@pytest.mark.parametrize("half_degrees", [21, -34, 47])
def test_turning_agrees_with_pillow(half_degrees):
    ours = turned(sprite(), half_degrees).astype(int)
    picture = Image.fromarray(sprite()).rotate(
        half_degrees / 2, Image.Resampling.BILINEAR, expand=True
    )
    theirs = premultiplied(np.asarray(picture)).astype(int)
    assert abs(ours.sum((0, 1)) / theirs.sum((0, 1)) - 1).max() < 0.02
    # The canvas may differ by a pixel or two, hence compare about the middle.
    height, width = (min(ours.shape[i], theirs.shape[i]) - 2 for i in (0, 1))
    middles = []
    for whole in (ours, theirs):
        top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2
        middles.append(whole[top : top + height, left : left + width])
    assert abs(middles[0] - middles[1]).mean() < 12


@pytest.mark.parametrize("sigma", [0.3, 0.6, 1.0, 1.5, 3.0, 5.0])
def test_blur_has_the_wanted_width(sigma):
    image = np.zeros((61, 61, 3), np.int32)
    image[30, 30] = 255 * 256
    blurred = smoothed(image, round(sigma * 64))[..., 0]
    at = np.arange(61) - 30
    weights = blurred.sum(0) / blurred.sum()
    assert math.sqrt((weights * at**2).sum()) == pytest.approx(sigma, rel=0.03)


def test_blur_keeps_a_flat_picture():
    flat = np.full((12, 12, 3), 77 * 256, np.int32)
    assert np.array_equal(smoothed(flat, 300), flat)


def test_a_tint_takes_the_colour_and_keeps_the_alpha():
    grey = np.repeat(np.arange(0, 250, 10, dtype=np.uint8)[:, None, None], 3, -1)
    rgba = np.concatenate([grey, np.full((25, 1, 1), 200, np.uint8)], -1)
    red = tinted(rgba, (200, 40, 40))
    assert np.array_equal(red[..., 3], rgba[..., 3])
    assert (red[..., 0] >= red[..., 1]).all()
    assert red[0, 0, 0] == 70 and red[-1, 0, 0] == 220


def margins(values):
    return min(abs(value % 1 - 0.5) for value in values)


def test_rounded_tables_are_far_from_rounding_edges():
    # Otherwise another maths library could give another table, and other pictures.
    angles = [math.radians(i / 2) for i in range(181)]
    assert margins([f(a) * 65536 for a in angles for f in (math.sin, math.cos)]) > 1e-4
    sides = [16 * 13 * (46 / 13) ** ((2 * i + 1) / 512) for i in range(256)]
    assert [round(side) for side in sides] == render._SIDES
    assert margins(sides) > 1e-4
    assert len(raster._TURNS) == 181
