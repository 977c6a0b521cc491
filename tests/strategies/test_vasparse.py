"""VASparse: the published vector, and whole runs written out slowly."""

from __future__ import annotations

import math

import pytest
import torch

from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from tests.core.test_attention import CASES, block_of, close
from tests.engines.hf.test_naive_parity import N, check
from tests.support import families, naive
from tests.support.edited_runs import Places

CASE = CASES["vasparse_paper"]


def softmax(values):
    top = max(values)
    total = sum(math.exp(v - top) for v in values)
    return [math.exp(v - top) / total for v in values]


def test_the_choice_and_the_penalty_of_the_vector():
    """One head and query whose scores are the vector's, with the history it names."""
    history = torch.tensor([CASE["history_attention"]], dtype=torch.float64)
    image = torch.tensor([[i in CASE["image_keys"] for i in range(6)]])
    kinds = [1, 2, 2, 2, 3, 3]
    block = block_of(history.log().tolist(), torch.ones(1, 6, 1).tolist(), kinds, [*range(6)], 6)
    received, paid = block.received(own=True), block.paid(image)
    close(received[0, 0].softmax(-1), CASE["sink_weight"])
    close(paid[0, 0].softmax(-1), CASE["P"])
    scores = torch.tensor([[[CASE["qk"]]]], dtype=torch.float64)
    keep = (CASE["S"] + 0.5) / 6
    gone = get("vasparse", keep=keep).dropped(scores, paid.softmax(-1)[:, :, None])
    assert [i for i, out in enumerate(gone[0, 0, 0].tolist()) if not out] == CASE["kept"]
    penalised = scores * (1 + CASE["beta"] * (1 - received.softmax(-1)[:, :, None]))
    close(penalised[0, 0, 0], CASE["penalised_qk"])


def test_the_contrast_of_the_vector():
    case = CASE["svcd"]
    main, early = (torch.tensor([case[name]]) for name in ("logits", "logits_masked"))

    class Early:
        def __getitem__(self, name):
            return main

        def early(self, layer, *, norm=False):
            assert layer == 0 and not norm
            return early

        def plausible(self, scores, beta):
            return scores

    made = get("vasparse", alpha=case["alpha"]).combine(Early())  # type: ignore[arg-type]
    assert made[0].tolist() == pytest.approx(case["out"], abs=1e-6)


def sparse(head, at, *, beta, lam, keep):
    """One head's scores [T][T] after the edit, in loops."""
    prompt = [softmax(row) for row in head[: at.length]]
    w = softmax([sum(prompt[i][j] for i in range(j, at.length)) for j in range(at.length)])
    p = softmax([sum(prompt[i][k] for k in at.image) for i in range(at.length)])
    for q in range(at.length - 1, len(head)):
        row, more = head[q], [0.0] * (q + 1 - at.length)
        sinks, saliency = w + more, p + more
        value = [row[j] ** 2 + lam * saliency[j] for j in range(q + 1)]
        order = sorted(range(q + 1), key=lambda j: -value[j])
        kept = set(order[: max(1, int(keep * (q + 1)))])
        for j in range(q + 1):
            row[j] = row[j] * (1 + beta - beta * sinks[j]) if j in kept else -1e30
    return head


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_whole_run(family_engine, family):
    engine, image = family_engine(family), families.pictures()[1]
    model, text = engine.model, families.FAMILIES[family].prompt("What is this?")
    main = naive.inputs_of(engine.processor, text, [image])
    ids, token = main["input_ids"][0].tolist(), engine.row_builder.inputs.image_token
    at = Places(tuple(i for i, each in enumerate(ids) if each == token), len(ids))
    values = {"beta": 1.5, "lam": 3.0, "keep": 0.6}

    def step(written, t):
        with naive.edited(
            model, scores=lambda layer, given: [sparse(head, at, **values) for head in given]
        ):
            seen = naive.next_logits(model, main, written)
        last = (ids + written)[-1]
        early = model.get_output_embeddings()(model.get_input_embeddings()(torch.tensor([last])))
        mixed = [1.4 * a - 0.4 * b for a, b in zip(seen.tolist(), early[0].tolist(), strict=True)]
        keep = naive.plausible(seen.tolist(), 0.05)
        return torch.tensor([z if k else -math.inf for z, k in zip(mixed, keep, strict=True)])

    with torch.no_grad():
        wanted = naive.write(step, N, ())
    check(engine, "vasparse(alpha=0.4,beta=1.5,lam=3.0,keep=0.6,cut=0.05)", wanted, image)


def test_needs_and_off():
    m = typical_model_info()
    plan = compile_plan("vasparse", m)
    assert plan.whole and plan.rows == ("main",) and plan.cost.early == 1
    assert {"received", "paid", "keys_at_first_token", "early"} <= plan.needs
    assert compile_plan("vasparse(alpha=0,beta=0,keep=1,cut=0)", m).parts == ()
