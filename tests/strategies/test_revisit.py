"""ReVisiT: whole runs beside plain forwards in loops, and what is said where nothing is banned.

What the official code gave is in tests/data/official, see tests/benchmarks/test_parity.py.
"""

from __future__ import annotations

import math

import pytest
import torch

import halludecode as hd
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from halludecode.core.step import Step
from tests.engines.hf.test_naive_parity import N, check
from tests.support import families, naive

IMAGE = families.pictures()[1]


def divergence(p, q, kind):
    """Of two lists of log-probabilities."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        m = (math.exp(a) + math.exp(b)) / 2
        if kind == "js":
            total += math.exp(a) * (a - math.log(m)) + math.exp(b) * (b - math.log(m))
        else:
            total += m * (math.log(m) - a) + m * (math.log(m) - b)
    return total / 2


def revisited(main, image, beta, kind):
    """Scores [V] from logits [V] and those of every image token [N][V]."""
    kept = [i for i, keep in enumerate(naive.plausible(main, beta)) if keep]
    own = naive.log_softmax([main[i] for i in kept])
    said = [naive.log_softmax([each[i] for i in kept]) for each in image]
    nearest = min(said, key=lambda q: divergence(own, q, kind))
    scores = [-math.inf] * len(main)
    for i, a, b in zip(kept, own, nearest, strict=True):
        scores[i] = a + b
    return torch.tensor(scores)


@pytest.mark.parametrize(("family", "kind"), [("llava", "reversed"), ("qwen2_5_vl", "js")])
def test_a_whole_run(family_engine, family, kind):
    engine, row = family_engine(family), families.FAMILIES[family]
    inputs = naive.inputs_of(engine.processor, row.prompt("What is this?"), [IMAGE])
    at = (inputs["input_ids"][0] == engine.row_builder.inputs.image_token).nonzero()[:, 0]
    with torch.no_grad():
        states = engine.model(**inputs, output_hidden_states=True).hidden_states[-1][0, at]
        image = engine.model.get_output_embeddings()(states).float().tolist()

    def step(ids, t):
        main = naive.next_logits(engine.model, inputs, ids).tolist()
        return revisited(main, image, 1e-3, kind)

    check(engine, f"revisit(beta=0.001,divergence={kind})", naive.write(step, N, ()), IMAGE)


def test_a_words_score_is_told_where_nothing_is_banned():
    main, image = torch.tensor([[3.0, 2.0, -4.0]]), torch.tensor([[[1.0, 2.0, 5.0]]])
    step = Step(
        {"main": main},
        torch.ones(1, 1),
        {"seen": image},
        lambda x, norm, tokens: x[..., tokens],
        masking=False,
    )
    made = get("revisit", beta=0.1).combine(step)[0]
    both = [sum(each[:2].exp()).log() for each in (main[0], image[0, 0])]
    wanted = [float(a + b) - float(sum(both)) for a, b in zip(main[0], image[0, 0], strict=True)]
    assert made.tolist() == pytest.approx(wanted, abs=1e-5)


def test_a_yes_no_margin_is_asked_for(family_engine):
    engine = family_engine("llava")
    request, how = hd.Request("What is this?", [IMAGE]), hd.Sampling(max_new_tokens=1)
    scores = engine.generate([request], "revisit", how, score_words=("yes", "no"))[0].scores
    assert all(math.isfinite(scores[word]) for word in ("yes", "no"))


def test_needs_and_cost():
    plan = compile_plan("revisit", typical_model_info())
    assert plan.needs == {"activations", "decode"}
    assert plan.cost.rows == 1 and plan.cost.passes == 1
    assert plan.parts[0].cut == 1e-5 and plan.parts[0].kinds[0] == "layers"
