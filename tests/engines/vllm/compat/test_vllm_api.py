"""What of vLLM the engine builds on is there, or is named."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

import halludecode as hd
from halludecode.engines.vllm.compat import vllm_api
from halludecode.engines.vllm.frontend.loading import import_vllm


def test_a_name_that_vllm_no_longer_has_is_told(monkeypatch):
    assert vllm_api.missing() == []
    from vllm.v1.core.sched.scheduler import Scheduler

    monkeypatch.delattr(Scheduler, "_preempt_request")
    assert vllm_api.missing() == ["vllm.v1.core.sched.scheduler.Scheduler._preempt_request"]
    with pytest.raises(hd.MissingExtra, match=r"lacks .*_preempt_request.* install the supported"):
        hd.load("testbed", engine="vllm")


def test_what_a_server_needs_is_asked_for_by_a_server_alone(monkeypatch):
    from vllm.entrypoints.launchers import launcher

    monkeypatch.delattr(launcher, "serve_http")
    import_vllm()
    with pytest.raises(hd.MissingExtra, match=r"lacks vllm\..*\.launcher\.serve_http"):
        import_vllm((vllm_api.ENGINE, vllm_api.SERVER))


def test_imports_are_read_from_the_sources():
    found = vllm_api.imported()
    assert ("vllm.v1.sample.sampler", "Sampler") in found
    assert ("vllm.multimodal.media", "MediaConnector") in found
    assert vllm_api.imported((vllm_api.ENGINE,)) < found


@pytest.mark.parametrize("newest", [True, False])
def test_a_moved_name_is_found_in_either_place(monkeypatch, newest):
    places = vllm_api.MOVED["cli_env_setup"]
    for place in places:
        monkeypatch.setitem(sys.modules, place, ModuleType(place))
    with pytest.raises(ImportError, match=r"in none of vllm\.entrypoints\.common\.startup"):
        vllm_api.moved("cli_env_setup")
    assert f"{' or '.join(places)}.cli_env_setup" in vllm_api.missing()
    monkeypatch.setattr(
        sys.modules[places[not newest]],
        "cli_env_setup",
        test_imports_are_read_from_the_sources,
        raising=False,
    )
    assert vllm_api.moved("cli_env_setup") is test_imports_are_read_from_the_sources
    assert vllm_api.missing() == []


def test_a_base_that_grew_an_abstract_method_is_told(monkeypatch):
    from halludecode.serve.images import PictureIO

    monkeypatch.setattr(PictureIO, "__abstractmethods__", frozenset({"decode"}))
    assert vllm_api.missing() == ["a base of PictureIO without abstract method decode"]
