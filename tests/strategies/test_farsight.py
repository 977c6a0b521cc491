"""FarSight: a re-implementation's forward, whole runs in loops, and what a KV cache changes."""

from __future__ import annotations

import math

import pytest
import torch

import halludecode as hd
from halludecode.core.plan import compile_plan, typical_model_info
from tests.support import families, naive
from tests.support.edited_runs import check_run
from tests.support.official import OFFICIAL, farsight

SIGMA = math.log(256) / math.log(1024)


@pytest.mark.parametrize("name", OFFICIAL["farsight"]["cases"])
def test_the_forward_that_was_read(name):
    case = OFFICIAL["farsight"]["cases"][name]
    wanted = torch.tensor(case["out"], dtype=torch.float64)
    torch.testing.assert_close(farsight(case["alibi"]), wanted, atol=1e-6, rtol=0)


def registered(scores, length, whole):
    """Weights [H][T][T] in loops: registers reach to ``length``, or to the end where ``whole``."""
    made = []
    for h, head in enumerate(scores):
        rows = []
        for i, row in enumerate(head):
            seen = [math.exp(s) for s in row[: i + 1]]
            end = len(head) if whole else length
            rate = SIGMA * (1 - i / max(end - 1, 1) / 4) + 2 ** (-8 * (h + 1) / len(scores))
            total = sum(seen) + sum(math.exp(-rate * (j - i)) for j in range(i + 1, end))
            rows.append([x / total for x in seen] + [0.0] * (len(row) - i - 1))
        made.append(rows)
    return made


def run(model, main, written, length, whole):
    """Next logits where every row has its register."""
    kept = {}

    def scores(layer, given):
        kept[layer] = given
        return given

    def weights(layer, given):
        return registered(kept[layer], length, whole)

    with naive.edited(model, scores=scores, weights=weights):
        return naive.next_logits(model, main, written)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_whole_run(family_engine, family):
    kept = {}

    def scores(layer, given, at):
        kept[layer] = given
        return given

    check_run(
        family_engine(family),
        family,
        "farsight",
        scores=scores,
        weights=lambda layer, given, at: registered(kept[layer], at.length, whole=False),
    )


def test_the_first_token_is_that_of_the_form_without_a_cache(family_engine):
    """And later ones differ from it: there the registers of earlier tokens have grown."""
    engine, image = family_engine("llava"), families.pictures()[1]
    text = families.FAMILIES["llava"].prompt("What is this?")
    main = naive.inputs_of(engine.processor, text, [image])
    length = main["input_ids"].shape[1]
    written = list(engine.generate([hd.Request("What is this?", [image])], "farsight",
                                   hd.Sampling(max_new_tokens=3))[0].token_ids)  # fmt: skip
    gaps = []
    for count in (0, 3):
        cached, plain = (
            run(engine.model, main, written[:count], length, whole).log_softmax(-1)
            for whole in (False, True)
        )
        gaps.append(float((cached - plain).abs().max()))
    assert gaps[0] == 0 and gaps[1] > 3e-4, gaps


def test_needs_and_off():
    m = typical_model_info()
    plan = compile_plan("farsight", m)
    assert plan.needs == {"scores", "scale_weights", "whole"} and not plan.reusable
    assert compile_plan("farsight(register=0)", m).parts == ()
