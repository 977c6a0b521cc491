"""What crosses processes comes out as it went in."""

from __future__ import annotations

import pytest
import torch

import halludecode as hd
from halludecode.core.artifact import Artifact
from halludecode.engines.vllm import protocol
from halludecode.engines.vllm.protocol import differing_within, error_class, pack, unpack


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


def test_tokens_behind_a_stop_string_do_not_count():
    assert differing_within([0, 2, 5], 3) == 2
    assert differing_within([], 3) == 0
    assert differing_within(None, 3) is None


def test_workers_have_a_method_of_every_call():
    from halludecode.engines.vllm.worker.worker import WorkerMixin

    calls = {value for value in vars(protocol).values() if str(value).startswith("hd_")}
    assert calls == {name for name in vars(WorkerMixin) if name.startswith("hd_")}


def test_errors_cross_by_name():
    assert error_class("UnsupportedStrategy") is hd.UnsupportedStrategy
    assert error_class("KeyError") is error_class("") is hd.HalluDecodeError
