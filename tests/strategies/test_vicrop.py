"""The crop is where the question looks more than a general prompt does, and stands second."""

from __future__ import annotations

import pytest

import halludecode as hd
from halludecode.core.activations import ActivationRequest
from halludecode.core.errors import IncompatibleStrategies
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.prompt import Picture, Prompt, Turn
from halludecode.strategies.vicrop import GENERAL, ViCrop
from tests.support import families
from tests.views.test_crops import naive

QUESTION = "What is this?"


def test_each_picture_is_followed_by_its_crop(family_engine):
    engine = family_engine("llava")
    pictures = families.pictures()[1:]
    rows = engine.rows(hd.Request(QUESTION, pictures), "vicrop(base=24)")
    seen = [image.picture.image for image in rows["main"].images]
    layer = round(14 * engine.model_info.num_layers / 32)
    maps = []
    for words in (QUESTION, GENERAL):
        prompt = Prompt((Turn("user", (*map(Picture.of, pictures), words)),))
        kept = engine.activations(ActivationRequest(prompt, image=(layer,)))
        weights = kept.image[0]  # [heads, tokens of both pictures]
        maps.append([sum(head) / len(head) for head in zip(*weights.tolist(), strict=True)])
    for i, (first, h, w) in enumerate(kept.image_spans):
        under, plain = (map_[first : first + h * w] for map_ in maps)
        ratio = [q / g for q, g in zip(under, plain, strict=True)]
        grid = [ratio[r * w : (r + 1) * w] for r in range(h)]
        box = naive(grid, pictures[i].size, 24, 6)
        assert box != (0, 0, *pictures[i].size), "a part of the picture"
        assert seen[2 * i].tobytes() == pictures[i].tobytes()
        assert seen[2 * i + 1].size == (box[2] - box[0], box[3] - box[1])
        assert seen[2 * i + 1].tobytes() == pictures[i].crop(box).tobytes()


def test_what_looks_before_the_answer_does_not_go_with_more_pictures():
    m = typical_model_info()
    assert "more pictures" in compile_plan("vicrop", m).needs
    assert compile_plan("vicrop+vcd", m).rows == ("main", "noised")
    with pytest.raises(IncompatibleStrategies, match=r"vicrop shows other .* agla reads before"):
        compile_plan("agla+vicrop", m)


def test_the_layer_is_at_the_same_depth():
    prompt = Prompt((Turn("user", (Picture.of(families.pictures()[0]), QUESTION)),))
    m = typical_model_info()
    assert ViCrop().activations(prompt, m)["general"].image == (14,)
    assert ViCrop(layer=31).activations(prompt, m)["question"].image == (31,)
    assert not ViCrop(sizes=0).activations(prompt, m)
    assert not ViCrop().branches(prompt, {}, m)
