"""What the engine asks of a transformers release is there, or a sentence says so."""

from __future__ import annotations

import pytest
import torch

import halludecode as hd
from halludecode.engines.hf import model as hf_model


def test_a_release_that_would_not_see_pictures_is_refused(family_engine, monkeypatch):
    """What 5.16 and 5.17 do: the argument is taken by **kwargs and forgotten."""
    engine = family_engine("llava")
    monkeypatch.setattr(type(engine.model), "forward", lambda self, input_ids=None, **kwargs: None)
    with pytest.raises(hd.InvalidModel, match="does not take pictures that are already encoded"):
        hd.load(engine.model, processor=engine.processor)


def test_a_release_that_calls_the_kv_cache_otherwise_is_refused(monkeypatch):
    monkeypatch.setattr(hf_model.LlamaForCausalLM, "forward", lambda self, kv=None, **kwargs: None)
    with pytest.raises(hd.InvalidModel, match="neither `cache` nor `past_key_values`"):
        hf_model._cache_name()


def test_features_of_pictures_come_in_three_forms():
    views = [1, 3]
    tensor = torch.arange(4 * 2 * 5).reshape(4, 2, 5)  # [views, n, D]
    wanted = [tensor[:1].flatten(0, 1), tensor[1:].flatten(0, 1)]
    for given in (tensor, [t.clone() for t in wanted], [tensor.flatten(0, 1)]):
        found = hf_model._by_picture(given, views)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
