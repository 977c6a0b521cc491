"""Explanations: their numbers against a plain model, and that asking for them changes nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import halludecode as hd
from halludecode.core.attention_block import AttentionBlock
from halludecode.core.errors import InvalidParameter, UnsupportedStrategy
from halludecode.engines.explain import Glance, TokenReading, explanation, probed
from halludecode.testbed import dataset
from tests.support import families, naive

QUESTION = "Please describe this image in detail."
SPECS = ("greedy", "vcd", "m3id(lam=0.5)", "pai", "var+vcd", "vhr+m3id", "vdgd(tokens=6)", "dola")


@pytest.fixture(scope="module")
def paths():
    return sorted((dataset("testbed-broken", 60) / "images").iterdir())[:4]


@pytest.fixture(scope="module")
def asked(paths):
    """Two pictures, one of them asked about twice, and a question without any."""
    shown = [hd.Request(QUESTION, [path]) for path in paths[:2]]
    return [*shown, hd.Request("Is there a dog in the image?", [paths[0]]), hd.Request(QUESTION)]


def naive_numbers(engine, path, ids):
    """Grounding, entropy and map of every token, from whole uncached forwards."""
    model, processor = engine.model, engine.processor
    rows = engine.rows(hd.Request(QUESTION, [path]), "m3id")
    from PIL import Image

    main = naive.inputs_of(processor, rows["main"].prompt, [Image.open(path)])
    blind = naive.inputs_of(processor, rows["blind"].prompt)
    image = main["input_ids"][0] == model.config.image_token_id
    made = []
    for t, token in enumerate(ids):
        rests: dict[int, torch.Tensor] = {}

        def keep(layer, weights, rests=rests):
            rests[layer] = torch.tensor(weights)[:, -1].mean(0)
            return weights

        with naive.edited(model, weights=keep):
            seen = naive.next_logits(model, main, ids[:t]).double().softmax(-1)
        unseen = naive.next_logits(model, blind, ids[:t]).double().softmax(-1)
        attention = torch.stack(list(rests.values())).mean(0)[: len(image)][image]
        entropy = -sum(p * math.log(p) for p in seen.tolist() if p > 0)
        made.append((math.log(seen[token]) - math.log(unseen[token]), entropy, attention))
    return made


def test_the_numbers_are_those_of_plain_forwards(testbed, paths):
    sampling = hd.Sampling(max_new_tokens=5)
    output = testbed.generate(hd.Request(QUESTION, [paths[0]]), "greedy", sampling, explain="maps")
    tokens = output[0].explanation.tokens
    expected = naive_numbers(testbed, paths[0], list(output[0].token_ids))
    assert len(tokens) == len(expected) == 5
    for token, (gap, entropy, attention) in zip(tokens, expected, strict=True):
        assert token.grounding == pytest.approx(gap, abs=2e-4)
        assert token.entropy == pytest.approx(entropy, abs=2e-4)
        assert token.mass == pytest.approx(float(attention.sum()), abs=2e-5)
        np.testing.assert_allclose(token.map.flatten(), attention.numpy(), atol=2e-5)
        rows, columns = token.map.shape
        assert rows == columns
        assert rows * columns == len(attention)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    "sampling",
    [
        hd.Sampling(max_new_tokens=12),
        hd.Sampling(max_new_tokens=8, temperature=1.0, top_p=0.9, n=2, seed=3, min_new_tokens=4),
        hd.Sampling(max_new_tokens=10, repetition_penalty=1.3, stop=(" a",)),
    ],
    ids=["greedy", "sampled", "penalised"],
)
def test_explaining_changes_no_token(testbed, asked, spec, sampling):
    plain = testbed.generate(asked, spec, sampling)
    told = testbed.generate(asked, spec, sampling, explain=True)
    for before, after in zip(plain, told, strict=True):
        assert [c.token_ids for c in after.choices] == [c.token_ids for c in before.choices]
        assert [c.text for c in after.choices] == [c.text for c in before.choices]
        assert (after.strategy, after.effect) == (before.strategy, before.effect)
        assert before.explanation is None
    for after in told[:-1]:
        for choice in after.choices:
            tokens = choice.explanation.tokens
            assert tuple(token.token_id for token in tokens) == choice.token_ids
            assert "".join(token.text for token in tokens) == choice.text
            assert all(0 <= token.mass <= 1 and token.entropy >= 0 for token in tokens)
    assert told[-1].explanation is None
    assert "no image, so there is nothing to explain" in told[-1].warnings[-1]


def test_batches_and_children_are_explained_as_alone(testbed, asked):
    sampling = hd.Sampling(max_new_tokens=6, temperature=3.0, n=3, seed=1)
    together = testbed.generate(asked[:3], "vcd(beta=0.001)", sampling, explain="maps")
    for request, output in zip(asked[:3], together, strict=True):
        alone = testbed.generate(request, "vcd(beta=0.001)", sampling, explain="maps")[0]
        for mine, other in zip(output.choices, alone.choices, strict=True):
            for a, b in zip(mine.explanation.tokens, other.explanation.tokens, strict=True):
                assert a.grounding == pytest.approx(b.grounding, abs=1e-3)
                np.testing.assert_allclose(a.map, b.map, atol=1e-4)
    first, second = (choice.explanation.tokens for choice in together[0].choices[:2])
    assert [t.grounding for t in first] != [t.grounding for t in second], "children differ"


@pytest.mark.parametrize(
    ("spec", "rows"),
    [
        ("greedy", ("main", "blind")),
        ("m3id", ("main", "blind")),
        ("pai", ("main", "blind")),
        ("vcd+m3id", ("main", "noised", "blind")),
    ],
)
def test_there_is_one_image_free_row_and_one_forward_a_token(testbed, asked, spec, rows):
    sampling = hd.Sampling(max_new_tokens=5, min_new_tokens=5)
    before = testbed.hf_model.calls
    output = testbed.generate(asked[0], spec, sampling, explain=True)[0]
    assert output.rows == rows
    assert testbed.hf_model.calls - before == 5


def test_one_query_per_layer_is_read_and_nothing_when_off(testbed, asked, monkeypatch):
    shapes = []
    original = AttentionBlock.scores

    def recorded(self):
        made = original(self)
        shapes.append(made.shape)
        return made

    monkeypatch.setattr(AttentionBlock, "scores", recorded)
    sampling = hd.Sampling(max_new_tokens=4, min_new_tokens=4)
    probed(testbed.plan("greedy"), testbed.model_info, "maps")  # traced once, on made-up tensors
    shapes.clear()
    testbed.generate(asked[:2], "greedy", sampling)
    assert shapes == []
    testbed.generate(asked[:2], "greedy", sampling, explain="maps")
    assert {shape[2] for shape in shapes} == {1}
    assert len(shapes) == 4 * testbed.model_info.num_layers


def test_edits_of_the_main_row_show_in_its_attention(testbed, asked):
    def masses(spec):
        output = testbed.generate(asked[0], spec, hd.Sampling(max_new_tokens=1), explain=True)[0]
        return output.explanation.tokens[0].mass

    assert masses("pai(alpha=5)") > masses("greedy") + 0.02


@pytest.mark.parametrize(
    "family", ["llava", "llava_next", "qwen2_5_vl", "internvl", "gemma3", "idefics3"]
)
def test_maps_lie_on_the_familys_raster(family_engine, family):
    engine = family_engine(family)
    pictures = families.pictures()[:2]
    sampling = hd.Sampling(max_new_tokens=2, min_new_tokens=2)
    output = engine.generate(hd.Request("What?", pictures), "greedy", sampling, explain="maps")[0]
    row = engine.rows(hd.Request("What?", pictures))["main"]
    spans = [engine.inputs.picture(image.picture).span for image in row.images]
    counts = [image.count for image in row.images]
    for token in output.explanation.tokens:
        assert [one.shape for one in token.maps] == [span[1:] for span in spans]
        total = sum(float(one.sum()) for one in token.maps)
        whole = all(c == s[1] * s[2] for c, s in zip(counts, spans, strict=True))
        assert total == pytest.approx(token.mass, abs=1e-5) if whole else total < token.mass


def test_a_family_without_a_raster_says_so(family_engine):
    engine = family_engine("instructblip")
    request = hd.Request("What?", families.pictures()[:1])
    sampling = hd.Sampling(max_new_tokens=2)
    output = engine.generate(request, "greedy", sampling, explain="maps")[0]
    token = output.explanation.tokens[0]
    assert (token.maps, token.map) == ((), None)
    assert 0 < token.mass < 1
    assert output.warnings == (
        "There are no attention maps: its image tokens are queries of a Q-Former and form no "
        "raster.",
    )
    assert engine.generate(request, "greedy", sampling, explain=True)[0].warnings == ()


def test_what_cannot_be_explained_is_one_sentence(testbed, asked):
    with pytest.raises(UnsupportedStrategy, match=r"^opera.* cannot be explained one by one"):
        testbed.generate(asked[0], "opera", explain=True)
    with pytest.raises(InvalidParameter, match='must be False, True or "maps"'):
        testbed.generate(asked[0], explain="map")


def test_hd_generate_explains(testbed, paths):
    output = hd.generate(testbed, QUESTION, [paths[0]], "vcd", explain=True, max_new_tokens=3)
    assert isinstance(output.explanation, hd.Explanation)
    assert output.explanation.tokens[0].map is None
    assert hd.generate(testbed, QUESTION, [paths[0]], max_new_tokens=3).explanation is None


def test_text_of_partial_characters_and_stops_adds_up():
    read = [TokenReading(0.0, 0.0, Glance(0.5))] * 5
    # "é" over two tokens: its first half stands nowhere yet; then a stop string cuts the text.
    made = explanation("aé b", [1, 2, 3, 4, 5], [1, 1, 2, 4, 6], read)
    assert [token.text for token in made.tokens] == ["a", "", "é", " b", ""]


def test_the_probe_is_no_strategy_of_its_own():
    with pytest.raises(hd.UnknownStrategy):
        hd.get("explain")
