"""Rows that begin at the first token they can change: the tokens are those of rows always there."""

from __future__ import annotations

import pytest

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
