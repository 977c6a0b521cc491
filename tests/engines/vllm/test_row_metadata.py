"""What crosses processes comes out as it went in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from halludecode.core.artifact import Artifact
from halludecode.engines.vllm.engine import VLLMEngine
from halludecode.engines.vllm.row_metadata import (
    RowMetadata,
    kept,
    metadata_of,
    pack,
    replica_of,
    unpack,
)


@pytest.mark.parametrize(
    "value",
    [
        torch.randn(3, 4),
        torch.randn(2, 3).bfloat16(),
        torch.zeros(0, dtype=torch.int64),
        torch.tensor(5),
        torch.tensor([True, False]),
    ],
)
def test_tensors(value):
    made = unpack(pack(value))
    assert made.dtype == value.dtype and torch.equal(made, value)


def test_artifacts_keep_their_identity():
    made = Artifact("var", {"tau": None, "rho": 0.5}, "m", {"dims": torch.tensor([3])}, "s", ("n",))
    again = unpack(pack(made))
    assert again == made and again.name == made.name and list(again.notes) == list(made.notes)


def test_states_are_lists_maps_and_words():
    value = {"text": "a", "maps": [torch.ones(2, 2), torch.zeros(1)], "none": None, "n": 3}
    made = unpack(pack([value]))[0]
    assert made["text"] == "a" and made["none"] is None and made["n"] == 3
    assert torch.equal(made["maps"][0], value["maps"][0])


def test_tags():
    class Params:
        extra_args = RowMetadata("g", 1, ["main", "noised"], ["answer", "prefill"], noise=5).extra()

    tag = metadata_of(Params)
    assert (tag.name, tag.life, tag.size, tag.noise) == ("noised", "prefill", 2, 5)
    Params.extra_args = {"other": 1}
    assert metadata_of(Params) is None


@pytest.mark.parametrize("passes", [0, 1, 2])
def test_requests_take_replicas_in_turn_and_their_passes_go_along(passes):
    engine = SimpleNamespace(_count=0, _turn=0, _loaded=SimpleNamespace(replicas=2))
    taken, names = [], []
    for _ in range(4):
        names.append(VLLMEngine._name(engine))
        taken.append(replica_of(f"{names[-1]}.0#1"))
        names += [VLLMEngine._name(engine, taken[-1]) for _ in range(passes)]
        assert {replica_of(name) for name in names[-1 - passes :]} == {taken[-1]}
    assert taken in ([0, 1, 0, 1], [1, 0, 1, 0])
    assert len(set(names)) == len(names)


def test_tokens_behind_a_stop_string_do_not_count():
    assert kept([0, 2, 5], 3) == 2
    assert kept([], 3) == 0
    assert kept(None, 3) is None
