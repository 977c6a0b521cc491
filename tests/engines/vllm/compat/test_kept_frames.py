"""What vLLM's first import would keep is let go of."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import vllm

from halludecode.engines.vllm.compat.kept_frames import KEPT, let_go


def failed():
    """An exception that another caused, with their tracebacks."""
    try:
        try:
            raise AttributeError("no path")
        except AttributeError:
            raise ModuleNotFoundError("no torchcodec")  # noqa: B904 - as importlib raises it
    except ModuleNotFoundError as error:
        return error


def test_tracebacks_go_and_words_stay(monkeypatch):
    module, error = ModuleType(KEPT[0]), failed()
    setattr(module, KEPT[1], error)
    monkeypatch.setitem(sys.modules, KEPT[0], module)
    assert error.__traceback__ is not None and error.__context__.__traceback__ is not None
    let_go()
    assert error.__traceback__ is None and error.__context__.__traceback__ is None
    assert str(error) == "no torchcodec"


def test_nothing_is_kept_where_torchcodec_loads(monkeypatch):
    module = ModuleType(KEPT[0])
    setattr(module, KEPT[1], None)
    monkeypatch.setitem(sys.modules, KEPT[0], module)
    let_go()
    monkeypatch.delitem(sys.modules, KEPT[0])
    let_go()


def test_this_vllm_keeps_it_there():
    """Else what is kept has another name, or is not kept any more and this can go."""
    module, name = KEPT
    source = Path(vllm.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    assert f"{name}: BaseException | None = exc" in source.read_text("utf-8")
