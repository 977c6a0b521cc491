"""CMAI, a reconstruction: its vector, whole runs in loops, and what it needs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from halludecode.core.attention import Attention
from halludecode.core.attention_block import IMAGE, SYSTEM, TEXT, AttentionBlock
from halludecode.core.attention_hooks import Hooks
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from tests.core.test_attention import keys_of
from tests.support.edited_runs import check_run

CASE = json.loads(Path("tests/data/attention.json").read_text(encoding="utf-8"))["cases"][
    "cmai_reconstruction_unverified"
]


@pytest.mark.parametrize("row", range(3))
def test_the_vector(row):
    """The focus of each text token, were it the prompt's last one."""
    tt, ti = (torch.tensor(CASE[name]) for name in ("A_text_text", "A_text_image"))
    text, image = row + 1, ti.shape[1]
    kinds = [SYSTEM, *[IMAGE] * image, *[TEXT] * text]
    weights = torch.eye(len(kinds))
    for t in range(text):  # half of each row as given, the rest on the first key
        weights[1 + image + t, 1 : 1 + image] = ti[t] / 2
        weights[1 + image + t, 1 + image :] = tt[t, :text] / 2
        weights[1 + image + t, 0] = 1 - weights[1 + image + t, 1:].sum()
    count = len(kinds)
    keys = keys_of(kinds, list(range(count)), count)
    scores, one = weights.log()[None, None], torch.zeros(1, 1, count, 2)
    block = AttentionBlock(keys, one, one, one, torch.tensor(True), 1.0, one, _scores=scores)
    hooks = Hooks(
        lambda *a: None,  # type: ignore[arg-type, return-value]
        lambda name, fn: fn(),
        received=lambda own, of: block.received(own=own, of=of),
        keys_at_first_token=lambda name, fn: fn(),
    )
    m = replace(typical_model_info(), num_layers=2, num_heads=1, num_kv_heads=1)
    strategy = get("cmai", eta=CASE["inhibit_fraction"], layer=0)
    first = Attention(0, m, {"main": block}, hooks, "cmai")
    focus = strategy.focus(first)[0, 1 : 1 + image]
    wanted = torch.tensor(CASE["focus"][row])
    torch.testing.assert_close(focus / focus.sum(), wanted, atol=1e-5, rtol=0)
    strategy.attend(first)
    strategy.attend(Attention(1, m, {"main": block}, hooks, "cmai"))
    hidden = block.scores()[0, 0, -1, 1 : 1 + image].isinf()
    assert hidden.int().tolist() == CASE["inhibited"][row]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_whole_run(family_engine, family):
    hidden = []

    def weights(layer, given, at):
        if layer == 2:  # of six: the deciding one
            length, image = at.length, set(at.image)
            mean = [[sum(x) / len(given) for x in zip(*rows, strict=True)]
                    for rows in zip(*given, strict=True)]  # fmt: skip
            text = [t for t in range(min(image), length) if t not in image]
            focus = {j: sum(mean[length - 1][t] * mean[t][j] for t in text) for j in image}
            order = sorted(image, key=lambda j: (focus[j], j))
            hidden[:] = order[: int(0.4 * len(order))]
        return given

    def scores(layer, given, at):
        if layer > 2:
            for head in given:
                for row in head[at.length - 1 :]:
                    for j in hidden:
                        row[j] = -torch.inf
        return given

    check_run(
        family_engine(family), family, "cmai(eta=0.4,layer=8)", scores=scores, weights=weights
    )


def test_needs_and_off():
    m = typical_model_info()
    plan = compile_plan("cmai", m)
    assert plan.needs == {"received", "keys_at_first_token", "mask", "whole"}
    assert plan.parts[0].kinds == ("attention",)
    assert min(plan.parts[0].layers) == 8 and max(plan.parts[0].layers) == 31
    assert compile_plan("cmai(eta=0)", m).parts == ()
