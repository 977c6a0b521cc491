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


@pytest.mark.parametrize("sizes", [[(112, 112), (112, 112)], [(60, 91), (300, 40), (7, 7)]])
def test_later_pictures_are_vllms_to_the_bit_and_prepared_once(made, sizes):
    items, image, prepared, whole = made
    for seed, size in enumerate(sizes):
        given = image(drawn(seed, size))
        have, (want, count) = items.item(given), whole(given)
        assert set(have) == set(want)
        for name, field in want.items():
            assert have[name].data.dtype == field.data.dtype
            assert torch.equal(have[name].data, field.data)
        assert items._count(given, have) == count == given.processed.count
        assert items.item(given) is have, "one that was shown before"
    assert [i.picture.image.size for i in prepared] == sizes[:1]


def test_where_vllm_prepares_otherwise_every_picture_is_prepared_by_it(made, monkeypatch):
    items, image, prepared, whole = made

    def otherwise(given):
        item, count = whole(given)
        item["pixel_values"].data = item["pixel_values"].data * 0.5
        prepared.append(given)
        return item, count

    monkeypatch.setattr(items, "_preprocess", otherwise)
    for seed in range(3):
        given = image(drawn(seed, (112, 112)))
        half = whole(given)[0]["pixel_values"].data * 0.5
        assert torch.equal(items.item(given)["pixel_values"].data, half)
    assert len(prepared) == 3


def test_a_picture_of_which_vllm_makes_other_tokens_is_refused_before_and_after(made, monkeypatch):
    items, image, *_ = made
    monkeypatch.setattr(items, "_count", lambda given, item: given.processed.count - 1)
    items._by_shape.clear()
    items.item(image(drawn(0, (112, 112))))  # whole: its number is right, the other way's is not
    assert items._by_shape.size == 0
    monkeypatch.undo()
    items.item(image(drawn(1, (112, 112))))
    assert items._by_shape.size == 1
    monkeypatch.setattr(items, "_count", lambda given, item: given.processed.count - 1)
    with pytest.raises(hd.InvalidRequest, match=r"vLLM makes \d+ tokens of a 112 x 112 picture"):
        items.item(image(drawn(2, (112, 112))))
