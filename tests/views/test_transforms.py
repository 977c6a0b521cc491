"""RITUAL's six transforms against pixel arithmetic and the ranges of the released code."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from halludecode.views import transforms
from tests.support.families import pictures


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def fixed(monkeypatch, *values: float) -> list[tuple[float, float]]:
    """Numbers drawn in order instead of at random; returns the ranges asked for."""
    asked: list[tuple[float, float]] = []
    rest = iter(values)

    def uniform(rng, low, high):
        asked.append((low, high))
        return next(rest)

    monkeypatch.setattr(transforms, "_uniform", uniform)
    return asked


@pytest.mark.parametrize("image", pictures())
def test_flips(image):
    assert (pixels(transforms.mirror(image, rng())) == pixels(image)[:, ::-1]).all()
    assert (pixels(transforms.flip(image, rng())) == pixels(image)[::-1]).all()


def test_rotation_fills_with_black(monkeypatch):
    image = pictures()[0]
    asked = fixed(monkeypatch, 90.0, 45.0)
    assert (pixels(transforms.rotate(image, rng())) == np.rot90(pixels(image))).all()
    turned = transforms.rotate(Image.new("RGB", (61, 61), (9, 99, 199)), rng())
    assert turned.size == (61, 61)
    assert turned.getpixel((0, 0)) == turned.getpixel((60, 60)) == (0, 0, 0)
    assert turned.getpixel((30, 30)) == (9, 99, 199)
    assert asked == [(-180, 180)] * 2


def test_jitter(monkeypatch):
    """Brightness 2, contrast 1, saturation 1 and hue 0 double every value, in whatever order."""
    image = Image.new("RGB", (4, 4), (20, 60, 100))
    ranges = [(0, 2), (0, 2), (0, 2), (-0.5, 0.5)]
    asked: list[tuple[float, float]] = []
    orders: set[tuple[int, ...]] = set()

    def neutral(generator, low, high):
        asked.append((low, high))
        return 0.0 if high == 0.5 else 1.0

    monkeypatch.setattr(transforms, "_uniform", neutral)
    for seed in range(30):
        asked.clear()
        same = transforms.jitter(image, rng(seed))
        assert sorted(asked) == sorted(ranges)
        orders.add(tuple(high == 0.5 for _, high in asked))
        assert abs(pixels(same) - pixels(image)).max() <= 2, "hue goes through 8-bit HSV"
    assert len(orders) == 4, "the hue comes first, second, third or last"


def test_hue_turns_red_to_cyan(monkeypatch):
    monkeypatch.setattr(transforms, "_uniform", lambda g, low, high: 0.5 if high == 0.5 else 1.0)
    turned = transforms.jitter(Image.new("RGB", (3, 3), (255, 0, 0)), rng())
    assert abs(pixels(turned)[0, 0] - [0, 255, 255]).max() <= 6


def test_blur_is_a_gaussian_over_13_pixels(monkeypatch):
    asked = fixed(monkeypatch, 1.7)
    image = pictures()[1]
    made = pixels(transforms.blur(image, rng()))
    taps = [math.exp(-(x**2) / (2 * 1.7**2)) for x in range(-6, 7)]
    values = pixels(image)
    height, width = values.shape[:2]

    def inside(i: int, size: int) -> int:
        return -i if i < 0 else 2 * (size - 1) - i if i >= size else i

    for y, x in ((0, 0), (30, 50), (height - 1, 3), (7, width - 2)):
        for channel in range(3):
            total = sum(
                taps[dy + 6] * taps[dx + 6]
                * values[inside(y + dy, height), inside(x + dx, width), channel]
                for dy in range(-6, 7) for dx in range(-6, 7)
            )  # fmt: skip
            assert made[y, x, channel] == pytest.approx(total / sum(taps) ** 2, abs=0.6)
    assert asked == [(1.5, 2.0)]


def test_crop_is_a_part_of_the_picture_at_336():
    image = Image.fromarray(np.indices((80, 120)).sum(0).astype(np.uint8)).convert("RGB")
    for seed in range(40):
        top, left, h, w = transforms.crop_box(120, 80, rng(seed))
        assert 0 <= top <= 80 - h
        assert 0 <= left <= 120 - w
        assert 0.08 * 0.9 <= h * w / (120 * 80) <= 1.0
        assert 0.7 <= w / h <= 1.4
        made = pixels(transforms.crop(image, rng(seed)))
        assert made.shape == (336, 336, 3)
        assert made.min() >= top + left - 1
        assert made.max() <= top + left + h + w


@pytest.mark.parametrize(("size", "box"), [((400, 3), (0, 198, 3, 4)), ((2, 300), (148, 0, 3, 2))])
def test_a_strip_is_cropped_at_its_middle(size, box):
    boxes = {transforms.crop_box(*size, rng(seed)) for seed in range(20)}
    assert box in boxes


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (5, 1), (7, 7), (300, 2)])
def test_any_size_can_be_transformed(size):
    image = Image.new("RGB", size, (200, 30, 60))
    for transform in transforms.TRANSFORMS:
        for seed in range(5):
            made = transform(image, rng(seed))
            assert made.mode == "RGB"
            assert made.size in (size, (336, 336))


def test_each_transform_is_as_likely_as_the_others(monkeypatch):
    seen: Counter[int] = Counter()
    marks = tuple(lambda image, rng, i=i: seen.update([i]) for i in range(6))
    monkeypatch.setattr(transforms, "TRANSFORMS", marks)
    for seed in range(1200):
        transforms.transformed(pictures()[0], rng=rng(seed))
    assert sorted(seen) == list(range(6))
    assert 140 <= min(seen.values()) <= max(seen.values()) <= 260
