"""What the engine asks of a transformers release is there, or a sentence says so."""

from __future__ import annotations

import pytest
import torch
import transformers

import halludecode as hd
from halludecode.engines.hf import release
from tests.support.vllm import requests


def test_a_release_that_would_not_see_pictures_is_refused(family_engine, monkeypatch):
    """What 5.16 and 5.17 do: the argument is taken by **kwargs and forgotten."""
    engine = family_engine("llava")
    monkeypatch.setattr(type(engine.model), "forward", lambda self, input_ids=None, **kwargs: None)
    with pytest.raises(hd.InvalidModel, match="does not take pictures that are already encoded"):
        hd.load(engine.model, processor=engine.processor)


def test_a_release_that_calls_the_kv_cache_otherwise_is_refused(monkeypatch):
    monkeypatch.setattr(release.LlamaForCausalLM, "forward", lambda self, kv=None, **kwargs: None)
    with pytest.raises(hd.InvalidModel, match="neither `cache` nor `past_key_values`"):
        release._cache_name()


def test_a_family_that_a_release_cannot_run_is_refused(family_engine, monkeypatch):
    engine = family_engine("llava")
    fault = {"llava": ("ends in an error of its own", ">=5.18,<5.24")}
    monkeypatch.setitem(release.BROKEN, transformers.__version__, fault)
    said = "'llava' ends in an error of its own in .* pip install 'transformers>=5.18,<5.24'"
    with pytest.raises(hd.InvalidModel, match=said):
        hd.load(engine.model, processor=engine.processor)


@pytest.mark.parametrize(("strategy", "within"), [("greedy", False), ("vcd", False), ("var", True)])
def test_layers_compute_all_tokens_where_something_acts_inside(family_engine, strategy, within):
    """Gemma 4 of 5.23 leaves out tokens that a number does not ask for, see `last_kept`."""
    engine, asked = family_engine("llava"), []
    handle = engine.model.register_forward_pre_hook(
        lambda module, args, given: asked.append(given["logits_to_keep"]), with_kwargs=True
    )
    try:
        engine.prefixes.clear()
        engine.generate(requests()[:1], strategy, hd.Sampling(max_new_tokens=2))
    finally:
        handle.remove()
    assert len(asked) >= 2
    assert [isinstance(keep, torch.Tensor) for keep in asked] == [within] * len(asked)
