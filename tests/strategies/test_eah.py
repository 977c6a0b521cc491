"""EAH: the published vector, the choice in loops, and whole runs written out slowly."""

from __future__ import annotations

import pytest
import torch

from halludecode.core.attention import Attention
from halludecode.core.attention_block import IMAGE, SYSTEM, TEXT
from halludecode.core.attention_hooks import Hooks
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from tests.core.test_attention import CASES, block_of, close, weights_after
from tests.support.edited_runs import check_run

CASE = CASES["eah"]


def after(weights, theta, image=(1, 2, 3)):
    """Weights [H, Q, N] after the edit, of a prompt whose weights before are given."""
    count = len(weights[0])
    kinds = [IMAGE if i in image else SYSTEM if i < min(image) else TEXT for i in range(count)]
    values = torch.ones(len(weights), count, 1).tolist()
    block = block_of(
        torch.tensor(weights, dtype=torch.float64).log().tolist(), values, kinds,
        list(range(count)), count,
    )  # fmt: skip
    hooks = Hooks(
        lambda *a: None,  # type: ignore[arg-type, return-value]
        lambda name, fn: fn(),
        received=lambda own, of: block.received(own=own, of=of),
    )
    get("eah", theta=theta).attend(
        Attention(1, typical_model_info(), {"main": block}, hooks, "eah")
    )
    return weights_after(block)


def test_vector():
    made = after(CASE["weights_in"], CASE["threshold"])
    for head in made:
        close(head, CASE["weights_out_every_head"])


def test_no_sink_leaves_every_head_alone():
    close(after(CASE["weights_in"], 0.9), CASE["weights_in"])


def densest(weights, image, theta, length):
    """The head with most sinks by counting; None where there is none."""
    counts = []
    for head in weights:
        means = [sum(head[i][c] for i in range(c + 1, length)) / (length - c) for c in image]
        counts.append(sum(mean > theta for mean in means))
    return counts.index(max(counts)) if max(counts) else None


def test_the_choice_in_loops():
    rng = torch.Generator().manual_seed(2)
    found = set()
    for theta in (0.05, 0.1, 0.2, 0.4):
        scores = torch.randn(4, 7, 7, generator=rng, dtype=torch.float64) * 2
        weights = scores.masked_fill(~torch.ones(7, 7).tril().bool(), -torch.inf).softmax(-1)
        best = densest(weights.tolist(), (2, 3, 4), theta, 7)
        wanted = weights if best is None else weights[best].expand(4, -1, -1)
        close(after(weights.tolist(), theta, (2, 3, 4)), wanted.tolist())
        found.add(best)
    assert len(found) > 1


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_whole_run(family_engine, family):
    """More queries than one block holds; written tokens attend as they would."""

    def weights(layer, given, at):
        best = densest([head[: at.length] for head in given], at.image, 0.01, at.length)
        assert best is not None
        copied = [list(row) for row in given[best]]
        return [[*copied[: at.length], *head[at.length :]] for head in given]

    check_run(family_engine(family), family, "eah(theta=0.01,layer=-1)", weights=weights)


def test_layers_needs_and_off():
    m = typical_model_info()
    plan = compile_plan("eah", m)
    assert plan.parts[0].layers == frozenset({1})
    assert plan.whole and not plan.reusable and "received" in plan.needs
    assert len(compile_plan("eah(layer=-1)", m).parts[0].layers) == 32
    assert compile_plan("eah(theta=1)", m).parts == ()
