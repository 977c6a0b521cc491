"""Rows that begin at the first token they can change: the tokens are those of rows always there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import halludecode as hd
from halludecode.engines.hf import late_rows
from tests.support import families

# At these cuts, random weights decide some tokens and not others.
SPECS = (
    "vcd(beta=0.93)",
    "ritual(beta=0.93)",
    "agla(beta=0.93)",
    "damro(beta=0.93)",
    "sid(beta=0.93)",
    "pai(beta=0.93)",
    "m3id(gate=0.0037)",
    "vcd(beta=0.93)+m3id",
    "pai(beta=0.93)+vcd(beta=0.9)",
    "m3id(gate=1)+apc_only(beta=0.93)",
)
WORDS = ("dog", "a dog", "the image", "no")
SIZE = 240  # ids that llava's tiny checkpoint has
SAMPLINGS = {
    "greedy": hd.Sampling(max_new_tokens=12, logprobs=2),
    "sampled": hd.Sampling(
        max_new_tokens=8,
        min_new_tokens=3,
        temperature=1.2,
        top_p=0.9,
        n=2,
        seed=4,
        repetition_penalty=1.2,
        logprobs=2,
    ),
}


def asked() -> list[hd.Request]:
    words = ("Describe the image.", "Is there a dog in the image?", "Why?")
    pictures = families.pictures()
    made = [hd.Request(w, [p]) for w, p in zip(words, pictures * 2, strict=False)]
    return [*made, hd.Request(words[1], [pictures[0]]), hd.Request("And without a picture?")]


def told(outputs: list[hd.Output]) -> list[object]:
    return [
        (
            [(c.token_ids, c.finish_reason) for c in o.choices],
            [pytest.approx(p.logprob, abs=1e-4) for c in o.choices for p in c.logprobs],
            o.effect,
        )
        for o in outputs
    ]


@pytest.mark.parametrize("heavy", [False, True], ids=["side by side", "waiting"])
@pytest.mark.parametrize("how", SAMPLINGS)
@pytest.mark.parametrize("spec", SPECS)
def test_tokens_are_those_of_rows_always_there(family_engine, monkeypatch, spec, how, heavy):
    engine = family_engine("llava")
    monkeypatch.setattr(late_rows, "pays_to_wait", lambda hf_model, answers: heavy)
    late = engine.generate(asked(), spec, SAMPLINGS[how])
    monkeypatch.setattr(engine, "extra_rows", "always")
    assert told(late) == told(engine.generate(asked(), spec, SAMPLINGS[how]))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl", "gemma3"])
@pytest.mark.parametrize("spec", ["vcd(beta=0.93)+m3id", "sid(beta=0.93)"])
def test_other_families(family_engine, monkeypatch, family, spec):
    engine = family_engine(family)
    late = engine.generate(asked(), spec, SAMPLINGS["greedy"])
    monkeypatch.setattr(engine, "extra_rows", "always")
    assert told(late) == told(engine.generate(asked(), spec, SAMPLINGS["greedy"]))


def test_a_request_whose_tokens_are_all_decided_has_one_row_and_no_passes(family_engine):
    engine = family_engine("llava")
    fresh = hd.Request("Is it never masked?", [families.pictures()[0]])
    before = engine.hf_model.calls
    (output,) = engine.generate(fresh, "agla(beta=1)", hd.Sampling(max_new_tokens=3))
    assert output.rows == ("main",)
    assert engine.hf_model.calls - before == len(output.token_ids)
    (plain,) = engine.generate(fresh, "greedy", hd.Sampling(max_new_tokens=3))
    assert output.token_ids == plain.token_ids


def test_the_testbed_decides_most_of_its_answers(testbed):
    picture = families.pictures()[0]
    questions = [hd.Request(f"Is there a {w} in the image?", [picture]) for w in ("dog", "car")]
    outputs = testbed.generate(questions, "m3id", hd.Sampling(max_new_tokens=4))
    assert all(output.rows == ("main",) for output in outputs)


def test_an_unknown_way_is_refused():
    with pytest.raises(hd.HalluDecodeError, match='"on_demand" or "always"'):
        hd.load("testbed", extra_rows="sometimes")


@st.composite
def samplings(draw: st.DrawFn) -> hd.Sampling:
    """What is banned, pushed and allowed, lengths, and how tokens are drawn, all at once."""
    tokens = st.integers(0, SIZE - 1)
    allowed = draw(st.none() | st.lists(tokens, min_size=4, max_size=SIZE, unique=True))
    longest = draw(st.integers(1, 6))
    temperature = draw(st.sampled_from([0, 0.7, 1.3]))
    return hd.Sampling(
        max_new_tokens=longest,
        min_new_tokens=draw(st.integers(0, longest)) if allowed is None else 0,
        temperature=temperature,
        top_p=draw(st.sampled_from([0.5, 0.9, 1])),
        top_k=draw(st.sampled_from([0, 1, 7])),
        repetition_penalty=draw(st.sampled_from([0.8, 1, 1.3])),
        seed=draw(st.integers(0, 99)),
        n=draw(st.sampled_from([1, 2])) if temperature else 1,
        logprobs=draw(st.integers(0, 4)),
        allowed_token_ids=allowed,
        bad_words=draw(st.lists(st.sampled_from(WORDS), max_size=3, unique=True)),
        logit_bias=draw(st.none() | st.dictionaries(tokens, st.floats(-9, 9), max_size=9)),
    )


@settings(max_examples=12)
@given(st.sampled_from(SPECS), samplings(), st.booleans())
def test_rules_and_draws_are_those_of_rows_always_there(family_engine, spec, sampling, heavy):
    engine = family_engine("llava")
    answers = {}
    for way in ("on_demand", "always"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(late_rows, "pays_to_wait", lambda hf_model, answers: heavy)
            patch.setattr(engine, "extra_rows", way)
            try:
                answers[way] = told(engine.generate(asked()[:2], spec, sampling))
            except hd.InvalidRequest as error:  # every token is banned
                answers[way] = str(error)
    assert answers["on_demand"] == answers["always"]
