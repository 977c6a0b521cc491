"""The trials for attention sinks: what is planted is measured, and the page tells it by trial."""

from __future__ import annotations

import torch
from transformers import LlavaForConditionalGeneration

from benchmarks import testbed_sinks as bench
from halludecode.testbed import model_path

LAYERS = 5


def shipped() -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(model_path(), dtype=torch.float32)


def test_a_constant_of_the_projector_is_told_from_few_tokens(monkeypatch):
    monkeypatch.setattr(bench, "SHOWN", 3)
    plain = bench.ended(shipped(), bench.TRIALS["shipped"])
    model = shipped()
    last = [m for m in model.model.multi_modal_projector.modules() if hasattr(m, "bias")][-1]
    last.bias.data[7] += 500  # every image token gets one large value
    planted = bench.ended(model, bench.TRIALS["shipped"])
    assert [row["layer"] for row in planted] == list(range(LAYERS))
    assert planted[0]["tokens"] == 1 and planted[0]["attention"] == 1
    assert plain[0]["tokens"] < 0.5


def test_registers_stand_before_the_picture():
    assert bench.prompt("What?", 2) == ". . USER: <image>\nWhat? ASSISTANT:"
    assert bench.prompt("What?", 0) == "USER: <image>\nWhat? ASSISTANT:"


def test_the_page_holds_every_trial():
    curve = [{"step": 5, "loss": 1.0, "phi first": 2.5}]
    end = [{"layer": 0, "tokens": 0.25, "attention": 0.75}]
    names = ("adamw", "registers")
    made = bench.page(dict.fromkeys(names, curve), dict.fromkeys(names, end), 5)
    assert made.count("| 5 | 1 | 2.5 |") == 2
    assert made.count("layer 0: 25% of tokens, 75% of it") == 2
    assert all(f"## {bench.TRIALS[name].told}" in made for name in names)
