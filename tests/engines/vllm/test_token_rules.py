"""Bans, biases and temperatures of any size: the vLLM engine gives the tokens of the HF engine."""

from __future__ import annotations

import random

import pytest

import halludecode as hd
from halludecode.core.errors import InvalidRequest
from tests.support import families
from tests.support.vllm import answer_together, requests, same

SPECS = ("greedy", "vcd", "m3id", "pai", "dola", "vista", "ritual+vcd", "vhr+m3id")


@pytest.fixture(scope="module")
def engines(vllm_engine, testbed):
    return vllm_engine("testbed"), testbed


def drawn(rng: random.Random, engine, spoken: list[int]) -> dict:
    """Random rules of which some touch what would be written."""
    words = [engine.tokenizer.decode([t]) for t in rng.sample(spoken, 2)]
    phrase, size = engine.tokenizer.decode(spoken[1:3]), engine.model_info.vocab_size
    kinds = {
        "bad_words": [word for word in [words[0], phrase] if word.strip()],
        "logit_bias": {rng.choice(spoken): rng.choice([-100.0, -2.5, 3.0])},
        "allowed_token_ids": sorted({*rng.sample(range(size), 40), *spoken}),
        "repetition_penalty": 1.3,
        "min_new_tokens": 5,
    }
    chosen = rng.sample(sorted(kinds), rng.randint(1, 3))
    return {name: kinds[name] for name in chosen}


def test_random_rules_give_the_tokens_of_the_hf_engine(engines):
    ours, hf = engines
    rng, asked = random.Random(3), []
    for i in range(24):
        request, spec = requests()[i % 4], SPECS[i % len(SPECS)]
        plain = hf.generate(request, spec, hd.Sampling(max_new_tokens=8))[0]
        more = {"temperature": 0.9, "seed": i} if i % 3 == 0 else {}
        spoken = [t for t in plain.token_ids if t not in hf.end_tokens]
        spoken += [7, 8, 9][: max(0, 3 - len(spoken))]
        rules = drawn(rng, hf, spoken)
        asked.append((request, spec, hd.Sampling(max_new_tokens=8, logprobs=3, **rules, **more)))
    together = answer_together(ours, asked)
    for (request, spec, sampling), output in zip(asked, together, strict=True):
        want = hf.generate(request, spec, sampling)[0]
        assert same(output, want), (spec, sampling, output.text, want.text)


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 0.003, 2.5, 40.0, 1e300])
def test_temperatures_of_all_sizes_are_one_rule(engines, temperature):
    sampling = hd.Sampling(max_new_tokens=6, temperature=temperature, seed=3, n=2, logprobs=3)
    a, b = (engine.generate(requests(2), "m3id", sampling) for engine in engines)
    for x, y in zip(a, b, strict=True):
        assert [c.token_ids for c in x.choices] == [c.token_ids for c in y.choices]
        assert x.effect == y.effect
    if temperature < 1e-5:
        greedy = engines[0].generate(requests(2), "m3id", hd.Sampling(max_new_tokens=6))
        assert [x.token_ids for x in a] == [x.token_ids for x in greedy]


def test_what_leaves_nothing_to_write_is_one_sentence_and_no_neighbours(engines):
    ours = engines[0]
    request = requests(1)[0]
    plain = ours.generate(request, "vcd", hd.Sampling(max_new_tokens=4))[0]
    token = plain.token_ids[1]
    word = ours.tokenizer.decode([token])
    twice = hd.Sampling(allowed_token_ids=[token], bad_words=[f"{word} {word}"])
    for spec in ("greedy", "vcd"):
        outcomes = ours.generate_each([request], spec, twice)
        assert isinstance(outcomes[0], InvalidRequest)
        assert "every token is banned" in str(outcomes[0])
        with pytest.raises(InvalidRequest, match="is no token of this model"):
            ours.generate(request, spec, hd.Sampling(logit_bias={10**6: 1.0}))
    again = ours.generate(request, "vcd", hd.Sampling(max_new_tokens=4))[0]
    assert again.token_ids == plain.token_ids


def test_as_many_pictures_as_the_engine_was_started_for(engines):
    three = hd.Request("Compare them.", families.pictures()[:3])
    for spec in ("greedy", "vcd"):
        with pytest.raises(InvalidRequest, match="3 images, limit_mm_per_prompt allows 2"):
            engines[0].generate(three, spec)
