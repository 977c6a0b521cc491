"""PAINT: published vectors, the official choice of tokens, and whole runs written out slowly."""

from __future__ import annotations

import pytest
import torch

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.attention import Attention
from halludecode.core.attention_hooks import Hooks
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from halludecode.core.state import PerImageToken, stack
from halludecode.engines.inputs.chat import to_prompt
from halludecode.strategies.paint import informed
from tests.core.test_attention import CASES, close, common_block, weights_after
from tests.support import families, official
from tests.support.edited_runs import check_run


def test_attention_vector():
    case, block = CASES["paint_attention"], common_block()
    gain = torch.zeros(3)  # image keys 1..3
    gain[[j - 1 for j in case["local_keys"]]] = case["alpha_local"]
    gain[[j - 1 for j in case["summary_keys"]]] = case["beta_summary"]
    state = stack([{"gain": PerImageToken(gain)}])
    hooks = Hooks(lambda *a: None, lambda name, fn: fn(), state)  # type: ignore[arg-type]
    get("paint").attend(Attention(2, typical_model_info(), {"main": block}, hooks, "paint"))
    close(weights_after(block), case["weights"])
    close(block.output()[0], case["outputs"])


def test_the_official_forward():
    official.close(official.edited("paint"), "paint", [7])


def test_token_selection_vector():
    case = CASES["paint_token_selection"]
    rows = [case[f"cls_attn_{name}_sum_heads"] for name in ("first_layer", "layer_minus2")]
    local, summary = informed(*map(torch.tensor, rows), case["top_ratio"])
    assert local.nonzero().flatten().tolist() == case["local_tokens"]
    assert summary.nonzero().flatten().tolist() == case["summary_tokens"]


@pytest.mark.parametrize("case", official.OFFICIAL["paint_token_selection"]["cases"])
def test_the_official_function_chooses_the_same_tokens(case):
    vision = torch.tensor([case["first"], case["last"]])  # [2, Hv, N]
    tower = {"tower": Activations(vision=vision, image_counts=(vision.shape[-1],))}
    gain = get("paint").prepare(tower, typical_model_info())["gain"].values
    assert (gain == 0.7).nonzero().flatten().tolist() == case["local"]
    assert (gain == 0.3).nonzero().flatten().tolist() == case["summary"]


def test_every_picture_has_its_own_tokens():
    """Two pictures, one of them dim: ranks and quartiles are a picture's, not the prompt's."""
    rng = torch.Generator().manual_seed(1)
    one, two = torch.rand(2, 2, 8, generator=rng), torch.rand(2, 2, 12, generator=rng) / 100
    m, paint = typical_model_info(), get("paint")

    def gains(*vision):
        kept = Activations(
            vision=torch.cat(vision, -1), image_counts=tuple(x.shape[-1] for x in vision)
        )
        return paint.prepare({"tower": kept}, m)["gain"].values.tolist()

    assert gains(one, two) == gains(one) + gains(two)


def informed_in_loops(first, last, top):
    """Sets by sorting and counting."""
    ordered, n = sorted(last), len(last)

    def percentile(q):
        at = q * (n - 1)
        low = int(at)
        high = min(low + 1, n - 1)
        return ordered[low] + (at - low) * (ordered[high] - ordered[low])

    edge = percentile(0.75) + 1.5 * (percentile(0.75) - percentile(0.25))
    summary = {i for i, x in enumerate(last) if x > edge}
    best = sorted(range(n), key=lambda i: -first[i])[: int(top * n)]
    return set(best) - summary, summary


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_whole_run(family_engine, family):
    engine, picture = family_engine(family), families.pictures()[1]
    vision = engine.model_info.vision
    prompt = to_prompt_of(engine, picture)
    layers = (0, vision.feature_layer % vision.layers)
    tower = engine.activations(ActivationRequest(prompt, vision=layers)).vision
    first, last = tower.double().sum(1).tolist()
    local, summary = informed_in_loops(first, last, 0.5)
    assert local

    def scores(layer, given, places):
        if layer < 2:
            return given
        for head in given:
            for row in range(places.length - 1, len(head)):
                for n, j in enumerate(places.image):
                    gain = 2.0 if n in local else 1.5 if n in summary else 0.0
                    head[row][j] += gain * abs(head[row][j])
        return given

    check_run(engine, family, "paint(alpha=2.0,beta=1.5,top=0.5)", scores=scores)


def to_prompt_of(engine, picture):
    import halludecode as hd

    return to_prompt(hd.Request("What is this?", [picture]), engine.family.placeholder)


def test_it_needs_the_tower_and_no_row():
    plan = compile_plan("paint", typical_model_info())
    assert {"vision", "activations", "key", "add_scores"} == plan.needs
    assert plan.rows == ("main",) and plan.cost.passes == 1 and plan.cost.attention
    assert plan.parts[0].layers == frozenset(range(2, 32))
    assert compile_plan("paint(alpha=0,beta=0)", typical_model_info()).parts == ()
