"""Edits inside the vision tower: they are called in every layer, or the run ends."""

from __future__ import annotations

import pytest
import torch

from halludecode.core.branch import Edit, TowerEdit
from halludecode.core.errors import HookNeverFired, InvalidParameter, UnsupportedStrategy
from halludecode.core.model_info import VisionInfo
from halludecode.core.prompt import Picture
from halludecode.models.tower_edit import tower_layers
from halludecode.models.vision_tower import edited
from tests.support import families

SITES = {"layer": {"entering"}, "mlp": set(), "attention": {"k", "v", "visible", "scaling"}}


def same(x, **known):
    CALLED.append(known)
    return x


def shorter(x, **known):
    return x[..., :1]


def named(x, **known):
    raise AssertionError("never called")


CALLED: list[dict[str, object]] = []


def features(engine, edit):
    image = engine.inputs.picture(Picture.of(families.pictures()[0]), several=False)
    with torch.no_grad(), edited(engine.model, engine.model_info, edit):
        return engine.hf_model._encoder(**image.pixels, return_dict=True).pooler_output[0]


@pytest.mark.parametrize("at", SITES)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_it_is_called_once_a_layer_with_what_it_is_promised(family_engine, family, at):
    engine = family_engine(family)
    CALLED.clear()
    plain, again = features(engine, None), features(engine, TowerEdit(at, Edit(same)))
    read = engine.model_info.vision.read_layers
    # Qwen2.5-VL attends within each window of a picture by itself.
    assert sorted({known["layer"] for known in CALLED}) == list(range(read))
    assert {known["layers"] for known in CALLED} == {read}
    assert all(SITES[at] == known.keys() - {"layer", "layers"} for known in CALLED)
    assert torch.equal(plain, again) == (at != "attention"), "there it stands for the outputs"


def test_the_tower_is_as_it_was_afterwards(family_engine):
    engine = family_engine("llava")
    before = features(engine, None)
    with pytest.raises(UnsupportedStrategy, match="shape must be kept"):
        features(engine, TowerEdit("mlp", Edit(shorter)))
    assert torch.equal(before, features(engine, None))
    assert not any("forward" in vars(layer) for layer in tower_layers(engine.model))


def test_a_layer_that_never_comes_is_an_error(family_engine):
    engine = family_engine("llava")
    with (
        pytest.raises(HookNeverFired, match=r"layer\(s\) \[0, 1\] to named"),
        edited(engine.model, engine.model_info, TowerEdit("layer", Edit(named))),
    ):
        pass


def test_an_edit_of_the_tower_neither_draws_nor_reads_state():
    for edit in (Edit(same, draw=0), Edit(same, use=("map",))):
        with pytest.raises(InvalidParameter, match=r"same.*params alone"):
            TowerEdit("layer", edit)


def test_a_model_without_a_list_of_vision_layers_is_refused():
    with pytest.raises(UnsupportedStrategy, match="Linear has no list of vision layers"):
        tower_layers(torch.nn.Linear(1, 1))


def test_how_many_layers_the_projector_reads():
    assert [VisionInfo(24, 16, True, n).read_layers for n in (-1, -2, 7)] == [24, 23, 7]
