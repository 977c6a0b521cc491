"""ACT: the published vector, sinks in loops, whole runs written out slowly, and its calibration."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from halludecode.core.attention import Attention
from halludecode.core.attention_block import IMAGE, SYSTEM, TEXT
from halludecode.core.attention_hooks import Hooks
from halludecode.core.calibration import Calibration
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from tests.core.test_attention import CASES, block_of, close, weights_after
from tests.support import specs
from tests.support.edited_runs import check_run

CASE = CASES["act"]


def after(act, scores, gain):
    """Weights [H, Q, N] after the edit of a whole prompt."""
    count = len(scores[0])
    kinds = [SYSTEM, IMAGE, *[TEXT] * (count - 2)]
    values = torch.ones(len(scores), count, 1).tolist()
    causal = torch.tensor(scores).masked_fill(~torch.ones(count, count).tril().bool(), -torch.inf)
    block = block_of(causal.tolist(), values, kinds, list(range(count)), count)
    hooks = Hooks(
        lambda *a: None,  # type: ignore[arg-type, return-value]
        lambda name, fn: fn(),
        received=lambda own, of: block.received(own=own, of=of),
        keys_at_first_token=lambda name, fn: fn(),
    )
    heads = len(scores)
    full = torch.zeros(32, heads)
    full[2] = torch.tensor(gain)
    m = replace(typical_model_info(), num_heads=heads, num_kv_heads=heads, artifact={"gain": full})
    act.attend(Attention(2, m, {"main": block}, hooks, "act"))
    return weights_after(block)


def test_vector():
    act = get("act", beta=CASE["beta"], tau=CASE["threshold"])
    close(after(act, CASE["scores"], [1.0, 1.0]), CASE["weights_out"])
    one = after(act, CASE["scores"], [1.0, -1.0])
    close(one[0], CASE["weights_out"][0])
    close(one[1], CASE["weights_in"][1])  # a head that was not chosen


def calibrated(weights, length, edge, beta):
    """The paper in loops on one head's weights; rows behind the prompt know its sinks."""
    sinks = [
        k
        for k in range(1, length)
        if sum(weights[i][k] for i in range(k, length)) / (length - k) > edge
    ]
    made = []
    for row in weights:
        held = sum(row[k] for k in sinks)
        freed, rest = (1 - beta) * held, 1 - held
        made.append([beta * w if k in sinks else w + freed * w / rest for k, w in enumerate(row)])
    return made


def test_sinks_in_loops():
    rng = torch.Generator().manual_seed(4)
    scores = (torch.randn(3, 7, 7, generator=rng, dtype=torch.float64) * 2).tolist()
    plain = torch.tensor(scores, dtype=torch.float64)
    plain = plain.masked_fill(~torch.ones(7, 7).tril().bool(), -torch.inf).softmax(-1).tolist()
    wanted = [calibrated(head, 7, 1.5 / 7, 0.3) for head in plain]
    close(after(get("act", alpha=1.5, beta=0.3), scores, [1.0] * 3), wanted)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_whole_run(family_engine, family, tmp_path):
    engine = specs.supplied(family_engine(family), tmp_path)
    made = engine.plan("act(alpha=1.5)").parts[0]
    gain = made.model_info.artifact["gain"]

    def weights(layer, given, at):
        if layer not in made.layers:
            return given
        return [
            calibrated(head, at.length, 1.5 / at.length, 0.4) if gain[layer, h] > 0 else head
            for h, head in enumerate(given)
        ]

    check_run(engine, family, "act(alpha=1.5)", weights=weights)


def test_calibration_keeps_heads_whose_score_rises():
    m = replace(typical_model_info(), num_layers=3, num_heads=2)
    good = {(0, 1): 0.25, (2, 0): -0.5}

    def score(act, artifact):
        assert act.beta == 1 or artifact["gain"].sum() == 1
        return 1.0 + sum(good.get((n, h), 0) for n, h in artifact["gain"].nonzero().tolist())

    gain = get("act").calibrate(Calibration((), lambda request: None, score=score), m)["gain"]  # type: ignore[arg-type]
    assert gain.tolist() == [[0, 0.25], [0, 0], [-0.5, 0]]


def test_layers_needs_and_off():
    m = replace(typical_model_info(), artifact={"gain": torch.ones(32, 4)})
    part = compile_plan("act", m).parts[0]
    assert part.layers == frozenset(range(2, 31)) and part.whole
    assert compile_plan("act(beta=1)", m).parts == ()
