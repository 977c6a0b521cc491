"""Settings that share a batch write what each of them writes alone."""

from __future__ import annotations

import pytest

import halludecode as hd
from halludecode.core.errors import InvalidRequest
from halludecode.engines.hf.shared_rows import sharing
from tests.support import families

# At random weights: some agree for long, some part at once, one is off, one has rows of its own.
PLAIN = (
    "greedy",
    "vcd(beta=0.93)",
    "vcd(beta=0.93,alpha=3)",
    "vcd(beta=0.5,alpha=0.1)",
    "vcd(alpha=0,beta=0)",
    "vcd(noise_step=900,beta=0.9)",
    "m3id(gate=0.004)",
    "dola",
    "vcd(beta=0.9)+m3id",
    "agla(beta=0.9)",
    "apc_only(beta=0.95)",
)
EDITED = ("vhr+vcd(beta=0.93)", "vhr+vcd(beta=0.5)", "vhr", "pai", "pai(gamma=2)+vcd")
SAMPLINGS = {
    "greedy": hd.Sampling(max_new_tokens=10, logprobs=2),
    "sampled": hd.Sampling(
        max_new_tokens=6, min_new_tokens=2, temperature=1.2, seed=4, repetition_penalty=1.2
    ),
}


def asked() -> list[hd.Request]:
    words = ("Describe the image.", "Is there a dog in the image?", "Why?")
    pictures = families.pictures()
    made = [hd.Request(w, [p]) for w, p in zip(words, pictures * 2, strict=False)]
    return [*made, hd.Request(words[1], [pictures[0]]), hd.Request("And without a picture?")]


@pytest.mark.parametrize("how", SAMPLINGS)
@pytest.mark.parametrize("specs", [PLAIN, EDITED], ids=["plain", "edited"])
def test_together_is_each_alone(family_engine, specs, how):
    engine = family_engine("llava")
    words = ("yes", "no") if how == "greedy" else ()
    sampling, requests = SAMPLINGS[how], asked()
    before = engine.hf_model.calls
    alone = [engine.generate(requests, s, sampling, score_words=words) for s in specs]
    calls = engine.hf_model.calls - before
    together = engine.generate_settings(requests, specs, sampling, score_words=words)
    if specs is PLAIN:
        assert engine.hf_model.calls - before - calls < calls / 4
    for ours, theirs in zip(together, alone, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.token_ids == other.token_ids
            assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
            assert (one.strategy, one.effect, one.decided) == (
                other.strategy,
                other.effect,
                other.decided,
            )
            assert set(one.rows) >= set(other.rows)
            assert one.scores == pytest.approx(other.scores, abs=1e-4)
    if how == "greedy":
        assert len({tuple(o.token_ids for o in outputs) for outputs in alone}) > 2


def test_who_may_share(family_engine):
    engine = family_engine("llava")
    specs = [*PLAIN, *EDITED, "opera", "opera"]
    groups = sharing([engine.plan(spec) for spec in specs])
    assert [[specs[i] for i in group] for group in groups] == [
        list(PLAIN),
        list(EDITED[:3]),
        ["pai"],
        ["pai(gamma=2)+vcd"],
        ["opera"],
        ["opera"],
    ]


def test_one_request_that_fails_does_not_take_the_others_along(family_engine):
    engine = family_engine("llava")
    long = hd.Request("word " * 5000, families.pictures()[:1])
    outcomes = engine.generate_settings([*asked()[:2], long], PLAIN[:3], SAMPLINGS["greedy"])
    for spec, (first, second, third) in zip(PLAIN, outcomes, strict=False):
        alone = engine.generate(asked()[:2], spec, SAMPLINGS["greedy"])
        assert [first.token_ids, second.token_ids] == [o.token_ids for o in alone]
        assert isinstance(third, InvalidRequest)
    assert engine.generate_settings([], PLAIN) == [[] for _ in PLAIN]
