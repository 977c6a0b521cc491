"""Presets of strategies: every one parses and says where each of its values is from."""

from __future__ import annotations

import pytest

from halludecode.core.registry import STRATEGIES
from halludecode.core.spec import parse, presets

ALL = [(name, preset) for name in STRATEGIES.names() for preset in presets(name)]
NOTED = {
    "vcd@official-instructblip": {"alpha": 0.5, "beta": 0.1},
    "vista@official-pope": {"rule": "released", "lam": 0.01},
    "vista@official-chair": {"rule": "released", "lam": 0.17},
    "damro@instructblip-pope": {"alpha": 0.5, "k": 4},
    "damro@instructblip-chair": {"alpha": 1.5, "k": 4},
    "spin@llava-1.5-13b": {"r": 0.9, "alpha": 0.0},
    "adhh@llava-1.5-13b": {"tau": 0.4},
    "adhh@llava-1.6-34b": {"tau": 0.4},
    "adhh@minigpt-4": {"tau": 0.5, "top": 10},
}


@pytest.mark.parametrize(("name", "preset"), ALL)
def test_every_preset_parses_and_names_its_sources(name, preset):
    (made,) = parse(f"{name}@{preset}")
    for key, entry in presets(name)[preset].items():
        if key != "note":
            wanted = entry["value"]
            assert getattr(made, key) == (tuple(wanted) if isinstance(wanted, list) else wanted)
            assert entry["source"], "where the value is from"


@pytest.mark.parametrize("spec", NOTED)
def test_values_are_those_of_the_scripts(spec):
    (made,) = parse(spec)
    assert {key: getattr(made, key) for key in NOTED[spec]} == NOTED[spec]


def test_spin_13b_edits_layers_0_to_19_of_40():
    from dataclasses import replace

    from halludecode.core.plan import typical_model_info

    (made,) = parse("spin@llava-1.5-13b")
    deep = replace(typical_model_info(), num_layers=40)
    assert list(made.layers(deep)) == list(range(20))


@pytest.mark.parametrize(("preset", "heads"), [("llava-1.5-13b", 35), ("llava-1.6-34b", 10)])
def test_lists_of_heads_are_whole(preset, heads):
    assert len(parse(f"adhh@{preset}")[0].heads) == 2 * heads


def test_dola_names_the_scripts_repetition_penalty():
    assert all("repetition_penalty 1.2" in entry["note"] for entry in presets("dola").values())
