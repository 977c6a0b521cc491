"""Every strategy on other families, all in one batch: the tokens of the HF engine."""

from __future__ import annotations

import pytest
import torch

import halludecode as hd
from halludecode.core.artifact import Artifact
from halludecode.core.registry import STRATEGIES
from halludecode.engines.hf.artifacts import Store
from tests import families
from tests.engines_vllm.common import ACTIVE, same
from tests.engines_vllm.test_mixed import run

NAMES = [*(n for n in STRATEGIES.names() if n != "opera"), "var+vcd", "vhr+m3id", "damro+agla"]
CHOSEN = ("qwen2_5_vl", "internvl")
REST = ("llava", "qwen2_vl", "qwen3_vl", "llava_next", "idefics3", "smolvlm")
GREEDY = {"max_new_tokens": 8, "logprobs": 3}
SAMPLED = {**GREEDY, "temperature": 1.3, "top_p": 0.95, "seed": 11, "repetition_penalty": 1.1}


@pytest.fixture
def engines(vllm_engine, family_engine, request, tmp_path):
    """A family's two engines, with hand-made artifacts where strategies need one."""
    pair = vllm_engine(request.param), family_engine(request.param)
    m, rng = pair[1].net.facts(), torch.Generator().manual_seed(0)
    made = {
        "lacing": {"soft": torch.randn(7, m.D, generator=rng)},
        "zerotuning": {
            "heads": torch.rand(m.L, m.H, generator=rng) < 0.5,
            "gamma": torch.tensor(6.0),
        },
    }
    before = [engine._calibrator.store for engine in pair]
    for engine in pair:
        engine._calibrator.store = Store(tmp_path)
        for name, tensors in made.items():
            engine._calibrator.store.save(Artifact(name, {}, engine.digest, tensors))
    yield pair
    for engine, store in zip(pair, before, strict=True):
        engine._calibrator.store = store
        engine._calibrator._known.clear()
        engine._plans.clear()


def compare(ours, hf) -> int:
    """Run everything in one batch, compare one by one; the number compared."""
    words = ["What is this?", "Describe it, please."]
    asked = [hd.Request(w, [p]) for w, p in zip(words, families.pictures()[:2], strict=True)]
    given, wanted = [], []
    for name in NAMES:
        spec = "+".join(ACTIVE.get(part, part) for part in name.split("+"))
        for sampling in (hd.Sampling(**GREEDY), hd.Sampling(**SAMPLED)):
            try:
                expected = hf.generate(asked, spec, sampling)
            except hd.UnsupportedStrategy as error:
                with pytest.raises(hd.UnsupportedStrategy) as refused:
                    ours.plan(spec)
                # An artifact's name stands in the strategy's, and each engine's is its own.
                why = [str(e).partition(" needs ")[2] for e in (error, refused.value)]
                assert why[0] == why[1] != ""
                continue
            given += [(request, spec, sampling) for request in asked]
            wanted += expected
    found = run(ours, given)
    wrong = [
        f"{spec} {'greedy' if sampling.seed is None else 'sampled'}: {a.token_ids} {b.token_ids}"
        for (_, spec, sampling), a, b in zip(given, found, wanted, strict=True)
        if not same(a, b)
    ]
    assert not wrong, "\n".join(wrong)
    return len(given)


@pytest.mark.parametrize("engines", CHOSEN, indirect=True)
def test_every_strategy_gives_the_tokens_of_the_hf_engine(engines):
    assert compare(*engines) > 60


@pytest.mark.full
@pytest.mark.parametrize("engines", REST, indirect=True)
def test_every_strategy_on_further_families(engines):
    assert compare(*engines) > 60


@pytest.mark.full
def test_a_picture_that_vllm_cuts_into_other_tokens_is_refused(vllm_engine, family_engine):
    ours, hf = vllm_engine("llava_onevision"), family_engine("llava_onevision")
    sampling = hd.Sampling(max_new_tokens=8, logprobs=3)
    refused = 0
    for picture in families.pictures():
        asked = hd.Request("What is this?", [picture])
        try:
            made = ours.generate(asked, "vcd", sampling)[0]
        except hd.InvalidRequest as error:
            assert "tokens of a 90 x 140 picture, where" in str(error)
            refused += 1
        else:
            assert same(made, hf.generate(asked, "vcd", sampling)[0])
    assert refused == 1


def test_families_that_vllm_answers_otherwise_are_refused(tmp_path_factory):
    path = families.family_path("gemma3", tmp_path_factory)
    with pytest.raises(hd.InvalidModel, match=r"Gemma 3.*engine='hf'"):
        hd.load(str(path), engine="vllm")
