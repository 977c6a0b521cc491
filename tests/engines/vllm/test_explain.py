"""Explanations on vLLM: the numbers of the HF engine, and the tokens of the plain run."""

from __future__ import annotations

import numpy as np
import pytest

import halludecode as hd
from halludecode.core.errors import UnsupportedStrategy
from halludecode.testbed import dataset

QUESTION = "Please describe this image in detail."


@pytest.fixture(scope="module")
def asked():
    paths = sorted((dataset("testbed-broken", 60) / "images").iterdir())[:2]
    return [*(hd.Request(QUESTION, [path]) for path in paths), hd.Request(QUESTION)]


@pytest.mark.parametrize("spec", ["greedy", "m3id(lam=0.5)", "vcd", "var+vcd"])
def test_the_numbers_are_those_of_the_hf_engine(vllm_engine, testbed, asked, spec):
    sampling = hd.Sampling(max_new_tokens=8)
    engine = vllm_engine("testbed")
    plain = engine.generate(asked, spec, sampling)
    told = engine.generate(asked, spec, sampling, explain="maps")
    expected = testbed.generate(asked, spec, sampling, explain="maps")
    for before, after, other in zip(plain, told, expected, strict=True):
        assert after.token_ids == before.token_ids == other.token_ids
        assert (after.rows, after.effect) == (other.rows, other.effect)
        assert (after.strategy, after.warnings) == (other.strategy, other.warnings)
    assert told[-1].explanation is None
    for after, other in zip(told[:-1], expected[:-1], strict=True):
        assert "".join(token.text for token in after.explanation.tokens) == after.text
        for a, b in zip(after.explanation.tokens, other.explanation.tokens, strict=True):
            assert (a.text, a.token_id) == (b.text, b.token_id)
            assert a.grounding == pytest.approx(b.grounding, abs=2e-3)
            assert a.entropy == pytest.approx(b.entropy, abs=2e-3)
            assert a.mass == pytest.approx(b.mass, abs=1e-4)
            np.testing.assert_allclose(a.map, b.map, atol=1e-4)


@pytest.mark.parametrize("tight", ["", "cut"])
def test_children_and_chunks(vllm_engine, testbed, asked, tight):
    how = {"max_new_tokens": 6, "temperature": 1.0, "n": 2, "seed": 3, "stop": (" with",)}
    sampling = hd.Sampling(**how)
    told = vllm_engine("testbed", tight=tight).generate(asked[:2], "vcd", sampling, explain=True)
    expected = testbed.generate(asked[:2], "vcd", sampling, explain=True)
    for after, other in zip(told, expected, strict=True):
        for mine, theirs in zip(after.choices, other.choices, strict=True):
            assert mine.token_ids == theirs.token_ids
            for a, b in zip(mine.explanation.tokens, theirs.explanation.tokens, strict=True):
                assert a.text == b.text
                assert a.grounding == pytest.approx(b.grounding, abs=2e-3)
                assert a.mass == pytest.approx(b.mass, abs=1e-4)
                assert a.map is None


def test_what_the_plan_needs_is_refused_in_one_sentence(vllm_engine, asked, monkeypatch):
    engine = vllm_engine("testbed")
    monkeypatch.setattr(engine.loaded.vllm_config.parallel_config, "pipeline_parallel_size", 2)
    with pytest.raises(UnsupportedStrategy, match="use pipeline_parallel_size=1, or engine='hf'"):
        engine.generate(asked[0], "greedy", explain=True)
