"""A picture is prepared once: vLLM's items hold what the model's own processor made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import halludecode as hd
from halludecode.engines.vllm.frontend.picture_items import PictureItems


def drawn(seed: int, size: tuple[int, int]) -> Image.Image:
    width, height = size
    noise = np.random.default_rng(seed)
    return Image.fromarray(noise.integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def made(vllm_engine, monkeypatch):
    """(what makes items, picture -> the row's image, pictures that vLLM prepared)."""
    engine = vllm_engine("testbed")
    items, prepared = PictureItems(engine.loaded, engine.inputs), []
    whole = items._preprocess
    monkeypatch.setattr(items, "_preprocess", lambda i: prepared.append(i) or whole(i))

    def image(picture: Image.Image):
        return engine.rows(hd.Request("What?", [picture]))["main"].images[0]

    return items, image, prepared, whole


def test_later_pictures_of_a_size_are_vllms_to_the_bit_and_prepared_once(made):
    items, image, prepared, whole = made
    sizes = [(112, 112), (60, 91), (112, 112), (60, 91), (112, 112)]
    for seed, size in enumerate(sizes):
        given = image(drawn(seed, size))
        have, want = items.item(given), whole(given)
        assert set(have) == set(want)
        for name, field in want.items():
            assert have[name].data.dtype == field.data.dtype
            assert torch.equal(have[name].data, field.data)
        assert items.item(given) is have, "one that was shown before"
    assert [i.picture.image.size for i in prepared] == sizes[:2]


def test_where_vllm_prepares_otherwise_every_picture_is_prepared_by_it(made, monkeypatch):
    items, image, prepared, whole = made

    def otherwise(given):
        item = whole(given)
        item["pixel_values"].data = item["pixel_values"].data * 0.5
        prepared.append(given)
        return item

    monkeypatch.setattr(items, "_preprocess", otherwise)
    for seed in range(3):
        given = image(drawn(seed, (112, 112)))
        assert torch.equal(
            items.item(given)["pixel_values"].data, whole(given)["pixel_values"].data * 0.5
        )
    assert len(prepared) == 3
