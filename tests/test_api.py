"""The names of `import halludecode` stay what they are, whatever else was imported."""

import importlib

import halludecode as hd


def test_strategies_can_be_listed_again_and_again():
    first = [info.name for info in hd.strategies()]
    hd.get("vcd")
    importlib.import_module("halludecode.strategies")
    assert [info.name for info in hd.strategies()] == first
    assert "vcd" in first


def test_every_public_name_is_there_and_no_module_took_its_place():
    for name in hd.__all__:
        getattr(hd, name)
    importlib.import_module("halludecode.analysis.sinks")
    importlib.import_module("halludecode.evals.results.compare")
    for name in hd.__all__:
        assert callable(getattr(hd, name)), name
