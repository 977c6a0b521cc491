"""What the engine asks of a transformers release is there, or a sentence says so."""

from __future__ import annotations

import pytest
import transformers

import halludecode as hd
from halludecode.engines.hf import release


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
