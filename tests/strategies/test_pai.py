"""PAI: the published vectors, its edit and its rule in loops, and whole runs written out slowly."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch

import halludecode as hd
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from tests.core.test_attention import CASES as ATTENTION
from tests.core.test_attention import attention, block_of, close, common_block, weights_after
from tests.core.test_combine_vectors import CASES, check, combined, tensor
from tests.engines.hf.test_naive_parity import N
from tests.engines.hf.test_naive_parity import check as check_run
from tests.support import families, naive


@pytest.mark.parametrize("name", ["pai_gamma1.1", "pai_gamma1.5", "pai_gamma2.0"])
def test_combination_vectors(name):
    case = CASES[name]
    rows = {"blind": tensor(case["inputs"]["z_text"])}
    strategy = get("pai", **case["params"])
    check(combined([(strategy, rows)], tensor(case["inputs"]["z_v"])), case["expected"])


def test_logit_refinement_vector():
    case = ATTENTION["pai_logit_refine"]
    strategy = get("pai", gamma=case["gamma"], beta=case["cutoff_ratio"])
    rows = {"blind": tensor(case["logits_uncond"])}
    made = combined([(strategy, rows)], tensor(case["logits_cond"]))
    torch.testing.assert_close(made, tensor(case["refined"]), atol=2e-6, rtol=0)
    assert int(made.argmax()) == case["argmax"]


def test_attention_vector():
    case = ATTENTION["pai_attention"]
    block = common_block()
    get("pai", alpha=case["alpha"]).attend(attention(block))
    close(weights_after(block), case["weights"])
    close(block.output()[0], case["outputs"])
    scores = torch.tensor(case["scores_last_row"])
    close(block.scores()[0, :, -1], scores.tolist())


def test_scores_of_either_sign_rise():
    case = CASES["pai_attention"]
    given = case["inputs"]["pre_softmax_image_scores"]
    # a text key before three image keys; the last query emits
    block = block_of([[[0.0, *given]]], [[[0.0]] * 4], [1, 2, 2, 2], [3], 4)
    get("pai", **case["params"]).attend(attention(block))
    assert block.scores()[0, 0, 0, 1:].tolist() == pytest.approx(case["expected"]["out"])


def test_the_rule_in_loops():
    rng = torch.Generator().manual_seed(5)
    main, blind = torch.randn(2, 4, 30, generator=rng) * 2
    for gamma in (1.1, 2.0):
        made = combined([(get("pai", gamma=gamma), {"blind": blind})], main)
        for z, u, scores in zip(main.tolist(), blind.tolist(), made.tolist(), strict=True):
            rows = zip(
                naive.log_softmax(z), naive.log_softmax(u), naive.plausible(z, 0.1), scores,
                strict=True,
            )  # fmt: skip
            for a, b, keep, score in rows:
                wanted = gamma * (a - b) + b if keep else -math.inf
                assert score == pytest.approx(wanted, abs=1e-4)


def test_gamma_one_has_neither_row_nor_mask():
    main = torch.tensor([[5.0, 0.0, -5.0]])
    assert torch.equal(combined([(get("pai", gamma=1), {})], main), main)
    plan = compile_plan("pai(gamma=1)", typical_model_info())
    assert plan.rows == ("main",)
    assert plan.cost.attention
    assert plan.reusable


def test_banned_tokens_stay_banned():
    main = torch.tensor([[2.0, -math.inf, 1.0, 1.9]])
    blind = torch.tensor([[1.0, -math.inf, 0.5, -math.inf]])
    made = combined([(get("pai", beta=0), {"blind": blind})], main)
    assert (made == -math.inf).tolist() == [[False, True, False, False]]
    assert not made.isnan().any()


@contextmanager
def boosted(model, image: set[int], length: int, alpha: float):
    """Every head's scores of emitting rows on image keys, one at a time, layers 2..L-1."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    def function(module, query, key, value, attention_mask=None, **kwargs):
        q, k, v, outputs = query[0], key[0], value[0], []
        for head in range(len(q)):
            group = head * len(k) // len(q)
            scores = q[head] @ k[group].T * kwargs["scaling"] + attention_mask[0, 0]
            for row in range(length - 1, len(scores)):
                for j in image if module.layer_idx >= 2 else ():
                    scores[row, j] += alpha * abs(float(scores[row, j]))
            outputs.append(scores.softmax(-1) @ v[group])
        return torch.stack(outputs, 1)[None], None

    AttentionInterface.register("test_pai", function)
    AttentionMaskInterface.register("test_pai", eager_mask)
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation({"text_config": "test_pai"})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": before})


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.5, 1.1), (0.9, 1.0), (0.0, 2.0)])
def test_a_whole_run(family_engine, family, alpha, gamma):
    engine, row = family_engine(family), families.FAMILIES[family]
    model, processor = engine.model, engine.processor
    text, image = row.prompt("What is this?"), families.pictures()[1]
    main = naive.inputs_of(processor, text, [image])
    blind = naive.inputs_of(processor, row.blind(text))
    prompt = main["input_ids"][0].tolist()
    images = {i for i, token in enumerate(prompt) if token == model.config.image_token_id}

    def step(ids, t):
        with boosted(model, images, len(prompt), alpha):
            seen = naive.next_logits(model, main, ids).tolist()
        if gamma == 1:
            return torch.tensor(seen)
        c = naive.log_softmax(seen)
        u = naive.log_softmax(naive.next_logits(model, blind, ids).tolist())
        keep = naive.plausible(seen, 0.1)
        return torch.tensor(
            [gamma * (a - b) + b if k else -math.inf for a, b, k in zip(c, u, keep, strict=True)]
        )

    check_run(engine, f"pai(alpha={alpha},gamma={gamma})", naive.write(step, N, ()), image)


def test_the_first_token_is_boosted_too(family_engine):
    engine = family_engine("llava")
    request = hd.Request("What is this?", [families.pictures()[1]])
    one = hd.Sampling(max_new_tokens=1, logprobs=1)
    plain, edited = (
        engine.generate(request, spec, one)[0] for spec in ("greedy", "pai(alpha=0.9,gamma=1)")
    )
    assert abs(plain.logprobs[0].logprob - edited.logprobs[0].logprob) > 1e-3
    assert edited.effect is None, "the main row itself was edited"
