"""What is read of a sample, against attention written out by hand; and both ways to read it."""

from __future__ import annotations

import math

import pytest
import torch

import halludecode as hd
from halludecode.analysis import sample_metrics as measure
from halludecode.analysis.head_sensitivity import HeadSample, head_sensitivity, object_tokens, t_vhd
from halludecode.analysis.sample_metrics import Sinks
from tests.support import families, naive

WORDS = ["What is this?", "Describe it, please."]
SINKS = Sinks((3, 13, 40), 2.0)


def requests() -> list[hd.Request]:
    return [hd.Request(w, [p]) for w, p in zip(WORDS, families.pictures(), strict=False)]


@pytest.fixture(params=["llava", "qwen2_5_vl"])
def world(request, family_engine):
    """engine, and per request the plain model's inputs with and without the picture."""
    engine, row = family_engine(request.param), families.FAMILIES[request.param]
    texts = [row.prompt(words) for words in WORDS]
    pairs = [
        (
            naive.inputs_of(engine.processor, text, r.images),
            naive.inputs_of(engine.processor, row.blind(text)),
        )
        for text, r in zip(texts, requests(), strict=True)
    ]
    return engine, pairs


def head_outputs(model, inputs, ids) -> list[list[list[float]]]:
    """[L][H][d] of the last row."""
    kept = {}

    def heads(layer, out):
        kept[layer] = out[:, -1].tolist()
        return out

    with naive.edited(model, heads=heads):
        naive.next_logits(model, inputs, ids)
    return [kept[layer] for layer in sorted(kept)]


def test_divergence_of_every_token_in_loops(world):
    engine, pairs = world
    readings = list(measure.divergences(engine, requests(), 3))
    for (main, blind), reading in zip(pairs, readings, strict=True):
        written = list(reading.output.token_ids)
        assert len(reading.tokens) == len(written)
        for t, maps in enumerate(reading.tokens):
            seen = head_outputs(engine.model, main, written[:t])
            other = head_outputs(engine.model, blind, written[:t])
            wanted = [
                [
                    math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
                    for a, b in zip(*layer, strict=True)
                ]
                for layer in zip(seen, other, strict=True)
            ]
            torch.testing.assert_close(maps["vhd"], torch.tensor(wanted), atol=1e-4, rtol=1e-4)
            for layer, blind_layer in enumerate(other):
                norms = [sum(x * x for x in head) for head in blind_layer]
                limits = [
                    sum(v) / len(v) + naive.deviation(v) for v in (wanted[layer], norms)
                ]  # fmt: skip
                for h, (d, norm) in enumerate(zip(wanted[layer], norms, strict=True)):
                    out = d > limits[0] and norm > limits[1]
                    assert float(maps["inliers"][layer, h]) == pytest.approx(
                        0.0 if out else d, abs=1e-4
                    )


def test_reading_changes_no_answer(world):
    engine, _ = world
    read = measure.divergences(engine, requests(), 4)
    plain = engine.generate(requests(), "greedy", hd.Sampling(max_new_tokens=4))
    assert [r.output.token_ids for r in read] == [o.token_ids for o in plain]


def test_masses_in_loops(world):
    engine, pairs = world
    readings = list(measure.masses(engine, requests(), SINKS))
    some = 0
    for (main, _), reading in zip(pairs, readings, strict=True):
        ids = main["input_ids"][0].tolist()
        image = {i for i, t in enumerate(ids) if t == engine.model.config.image_token_id}
        phi, rows = {}, {}

        def entering(layer, x, phi=phi):
            phi[layer] = [naive.sink_score(token, SINKS.dims) for token in x.tolist()]

        def weights(layer, w, rows=rows):
            rows[layer] = [head[-1] for head in w]
            return w

        with naive.edited(engine.model, weights=weights, entering=entering):
            naive.next_logits(engine.model, main, [])
        maps = reading.tokens[0]
        for layer, heads in rows.items():
            sinks = {i for i in image if phi[layer][i] >= SINKS.tau}
            some += len(sinks)
            for h, row in enumerate(heads):
                stuck, rest = sum(row[i] for i in sinks), sum(row[i] for i in image - sinks)
                got = [float(maps[name][layer, h]) for name in ("image", "sinks", "others")]
                assert got == pytest.approx([stuck + rest, stuck, rest], abs=1e-5)
    assert some > 0, "the test must meet sinks"


def test_ablation_in_loops(world):
    engine, pairs = world
    main, _ = pairs[0]
    answer = [[5, 7], [9]]
    made = measure.ablation(engine, requests()[0], answer)
    layers, heads, steps = made.shape
    assert steps == 2

    def log_p(silent):
        def edit(layer, out):
            if silent is not None and layer == silent[0]:
                out = out.clone()
                out[silent[1]] = 0
            return out

        with naive.edited(engine.model, heads=edit):
            first = naive.log_softmax(naive.next_logits(engine.model, main, []).tolist())
            second = naive.log_softmax(naive.next_logits(engine.model, main, [5]).tolist())
        return [math.log(math.exp(first[5]) + math.exp(first[7])), second[9]]

    plain = log_p(None)
    for place in [(0, 0), (1, 3), (layers - 1, heads - 1)]:
        wanted = [a - b for a, b in zip(log_p(place), plain, strict=True)]
        assert made[place].tolist() == pytest.approx(wanted, abs=2e-4)
    assert made.abs().max() > 1e-3


def test_looks_and_plans_read_the_same(world):
    """Engines without plans of their own take activations; layer 0 has no sinks there."""
    engine, _ = world
    plans = [
        *measure.divergences(engine, requests(), 1),
        *measure.masses(engine, requests(), SINKS),
    ]
    engine.name = "activations"
    try:
        with torch.no_grad():
            from_activations = [
                *measure.divergences(engine, requests(), 1),
                *measure.masses(engine, requests(), SINKS),
            ]
    finally:
        del engine.name
    assert engine.name == "hf"
    for a, b in zip(plans, from_activations, strict=True):
        for name, value in b.tokens[0].items():
            torch.testing.assert_close(a.tokens[0][name][1:], value[1:], atol=2e-4, rtol=1e-3)


def test_other_engines_do_not_silence_heads(family_engine):
    engine = family_engine("llava")
    engine.name = "activations"
    try:
        with pytest.raises(hd.UnsupportedStrategy, match=r"engine='hf', or the metrics vhd and"):
            head_sensitivity(engine, [(requests()[0], "yes")], "ablation")
    finally:
        del engine.name


def test_the_model_is_as_before(world):
    engine, _ = world
    before = engine.model.config.get_text_config()._attn_implementation
    weights = {k: v.clone() for k, v in engine.model.state_dict().items()}
    list(measure.divergences(engine, requests(), 2))
    measure.ablation(engine, requests()[0], [[5]])
    assert engine.model.config.get_text_config()._attn_implementation == before
    assert all(torch.equal(weights[k], v) for k, v in engine.model.state_dict().items())


def test_t_vhd_is_a_sum_over_layers_of_the_largest():
    vhd = torch.tensor([[1.0, 5.0, 2.0, 4.0], [0.5, 0.1, 0.2, 0.3]]).numpy()
    assert t_vhd(vhd, 0.25) == pytest.approx(5.5)
    assert t_vhd(vhd, 0.5) == pytest.approx(9.8)
    assert t_vhd(vhd, 0.01) == pytest.approx(5.5), "one head at least"


def test_object_words_are_found_token_by_token(testbed):
    from halludecode.testbed import PROMPTS

    request = hd.Request(PROMPTS["chair"], [families.pictures()[0]])
    output = testbed.generate([request], "greedy", hd.Sampling(max_new_tokens=48))[0]
    decode = testbed.inputs.tokenizer.decode
    from halludecode.evals.benchmarks.chair.object_words import reader

    mentions = reader().read(output.text).mentions
    assert mentions, "the testbed names objects"
    known = mentions[0].object
    found = object_tokens(testbed, output, [known])
    assert found["real"]
    for kind, places in found.items():
        said = "".join(decode([output.token_ids[i]]) for i in places).replace(" ", "")
        named = "".join(m.word for m in mentions if (m.object == known) == (kind == "real"))
        assert said == named.replace(" ", "")
    made = head_sensitivity(
        testbed, [HeadSample(request, objects=(known,))], "vhd", tokens=48, resamples=10
    )
    every = {"t_vhd", "t_vhd_real"} | ({"t_vhd_hallucinated"} if found["hallucinated"] else set())
    assert set(made.numbers) == every
