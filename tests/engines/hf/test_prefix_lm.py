"""Prompts whose tokens all see each other: PaliGemma 2, whose Gemma 2 also has sliding windows."""

from __future__ import annotations

import pytest
import torch

import halludecode as hd
from halludecode.core.activations import ActivationRequest
from halludecode.engines.inputs.chat import to_prompt
from tests.models.test_spans import LONG, asked, plain
from tests.support import families, naive, specs
from tests.support.families import google


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tmp_path_factory.mktemp("paligemma2")
    families.build("paligemma", path, google.paligemma2)
    return hd.load(str(path))


def test_the_second_generation_is_plain_transformers(engine):
    cases = asked("paligemma")
    expected = [tuple(plain(engine, "paligemma", *case)) for case in cases]
    assert len(set(expected)) == len(expected)
    together = engine.generate([hd.Request(*case) for case in cases], "greedy", LONG)
    assert [output.token_ids for output in together] == expected


@pytest.mark.parametrize("name", specs.FEWER)
def test_strategies_act_on_it(engine, name):
    """Rows that begin late read the words of the prompt and of the answer in one forward."""
    requests = [hd.Request(*case) for case in asked("paligemma")[:3]]
    greedy = engine.generate(requests, "greedy", LONG)
    edited = engine.generate(requests, specs.active(name), LONG)
    assert [o.token_ids for o in edited] != [o.token_ids for o in greedy]
    for request, output in zip(requests, edited, strict=True):
        assert engine.generate(request, specs.active(name), LONG)[0].token_ids == output.token_ids
    engine.extra_rows = "always"
    try:
        at_once = engine.generate(requests, specs.active(name), LONG)
    finally:
        engine.extra_rows = "on_demand"
    assert [o.token_ids for o in at_once] == [o.token_ids for o in edited]


def test_attention_is_bounded_where_the_model_does_so(tmp_path):
    """Looks and what they leave unedited, beside transformers' own eager attention."""
    families.build("paligemma", tmp_path, google.paligemma2)
    engine = hd.load(str(tmp_path), attn_implementation="eager")
    for module in engine.model.modules():
        if hasattr(module, "attn_logit_softcapping"):
            module.attn_logit_softcapping = 0.5  # far below most scores
    words, pictures = asked("paligemma")[0]
    prompt = to_prompt(hd.Request(words, pictures), engine.family.placeholder)
    inputs = naive.inputs_of(
        engine.processor, families.FAMILIES["paligemma"].prompt(words), pictures
    )
    with torch.no_grad():
        told = engine.model(**inputs, output_hidden_states=True, output_attentions=True)
    layers = tuple(range(families.LAYERS - 1))  # behind the last one the states are normed
    seen = engine.activations(ActivationRequest(prompt, hidden=layers, image=layers))
    is_image = inputs["input_ids"][0] == engine.model.config.image_token_id
    for i in layers:
        weights, hidden = told.attentions[i][0, :, -1], told.hidden_states[i + 1][0, -1]
        torch.testing.assert_close(seen.image[i], weights[:, is_image], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(seen.hidden[i], hidden, atol=1e-4, rtol=1e-4)


def test_a_search_is_refused_where_windows_slide(engine):
    request = hd.Request(*asked("paligemma")[0])
    with pytest.raises(hd.UnsupportedStrategy, match=r"opera.*search over beams"):
        engine.generate(request, "opera", LONG)
