"""What a request bans, allows or pushes: on every row, before the cut, as transformers has it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import halludecode as hd
from halludecode.core.errors import InvalidParameter, InvalidRequest
from halludecode.engines.token_rules import NEG_INF, TokenRules
from tests.support import families

SPECS = ("greedy", "vcd", "m3id", "pai", "dola", "vista", "ritual+vcd")
ids = st.integers(0, 19)
rules = st.builds(
    TokenRules,
    st.none() | st.lists(ids, min_size=1, unique=True).map(tuple),
    st.lists(st.lists(ids, min_size=1, max_size=3).map(tuple), max_size=4).map(tuple),
    st.dictionaries(ids, st.floats(-100, 100, width=32), max_size=4).map(
        lambda bias: tuple(bias.items())
    ),
)


@given(rules, st.lists(ids, max_size=5))
def test_what_is_added_is_what_the_rules_say(rules, written):
    added = rules.added(20, written)
    bias = dict(rules.bias)
    for token in range(20):
        bad = any((*written, token)[-len(word) :] == word for word in rules.bad)
        outside = rules.allowed is not None and token not in rules.allowed
        want = NEG_INF if bad or outside else bias.get(token, 0.0)
        assert float(added[token]) == want
    assert TokenRules.of_plain(rules.plain()) == rules
    if not rules.looks_back:
        assert torch.equal(added, rules.added(20, []))


def ask(engine, spec="vcd", **more) -> hd.Output:
    request = hd.Request("Describe the image.", [families.pictures()[0]])
    return engine.generate(request, spec, hd.Sampling(**{"max_new_tokens": 12, **more}))[0]


def word_of(engine, output) -> tuple[int, str]:
    """A word of an answer that is one token, with its id."""
    spoken = ((token, engine.tokenizer.decode([token]).strip()) for token in output.token_ids[3:])
    return next((token, word) for token, word in spoken if word.isalpha())


@pytest.mark.parametrize("spec", SPECS)
def test_a_cut_never_leaves_only_banned_tokens(testbed, spec):
    plain = ask(testbed, spec)
    token, word = word_of(testbed, plain)
    for more in ({"bad_words": [word]}, {"logit_bias": {token: -100}}):
        output = ask(testbed, spec, **more)
        assert token not in output.token_ids
        assert output.text and testbed.inputs.pad_token not in output.token_ids
    yes_no = [testbed.inputs.word_ids(word)[0] for word in ("yes", "no")]
    assert set(ask(testbed, spec, allowed_token_ids=yes_no).token_ids) <= set(yes_no)
    pushed = ask(testbed, spec, logit_bias={yes_no[0]: 100})
    assert set(pushed.token_ids) == {yes_no[0]}


@settings(max_examples=8)
@given(st.data())
def test_greedy_under_rules_is_transformers_own(testbed, data):
    plain = ask(testbed, "greedy")
    spoken = st.sampled_from(sorted({*plain.token_ids, 7, 9}))
    bad = data.draw(st.lists(st.lists(spoken, min_size=1, max_size=2), max_size=2))
    bias = data.draw(st.dictionaries(spoken, st.floats(-100, 100), max_size=2))
    words = [testbed.tokenizer.decode(word) for word in bad]
    known = TokenRules(None, tuple(map(tuple, bad)), tuple(bias.items()))
    request = hd.Request("Describe the image.", [families.pictures()[0]])
    row = testbed.rows(request)["main"]
    sequences = {(token,): float(value) for token, value in bias.items()}
    made = testbed.model.generate(
        input_ids=row.input_ids[None],
        pixel_values=row.pixel_values,
        attention_mask=torch.ones_like(row.input_ids[None]),
        do_sample=False,
        max_new_tokens=12,
        bad_words_ids=[list(word) for word in known.bad] or None,
        sequence_bias=sequences or None,
    )
    sampling = hd.Sampling(max_new_tokens=12, logit_bias=bias)
    with pytest.MonkeyPatch.context() as patch:
        # Words decode to other spellings than their tokens now and then; the tokens are compared.
        patch.setattr(testbed, "token_rules", lambda _: known)
        output = testbed.generate(request, "greedy", sampling)[0]
    assert list(output.token_ids) == made[0, len(row.input_ids) :].tolist(), words


def test_batches_and_beams_are_under_the_same_rules(testbed):
    token, word = word_of(testbed, ask(testbed, "greedy"))
    request = hd.Request("Describe the image.", [families.pictures()[0]])
    other = hd.Request("What is it?", [families.pictures()[1]])
    banned = hd.Sampling(max_new_tokens=12, bad_words=[f"a {word}", word])
    together = testbed.generate([request, other], "vcd", banned)
    assert together[0].token_ids == ask(testbed, bad_words=[f"a {word}", word]).token_ids
    assert token not in ask(testbed, "opera", bad_words=[word]).token_ids


def test_a_phrase_is_banned_where_it_would_be_completed(testbed):
    plain = ask(testbed, "greedy")
    phrase = testbed.tokenizer.decode(plain.token_ids[1:4])
    output = ask(testbed, "greedy", bad_words=[phrase])
    assert phrase not in output.text
    assert output.token_ids[:3] == plain.token_ids[:3]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"allowed_token_ids": [10**6]}, "1000000 is no token of this model, whose ids are 0 to"),
        ({"logit_bias": {10**6: 1.0}}, "logit_bias: 1000000 is no token"),
        ({"allowed_token_ids": [7], "bad_words": ["SEVEN"]}, "Every token is banned"),
        ({"allowed_token_ids": "EOS", "min_new_tokens": 2}, "bans the end token at first"),
    ],
)
def test_what_cannot_be_is_one_sentence(testbed, more, says):
    more = dict(more)
    if more.get("bad_words") == ["SEVEN"]:
        token, word = word_of(testbed, ask(testbed, "greedy"))
        more = {"allowed_token_ids": [token], "bad_words": [word]}
    if more.get("allowed_token_ids") == "EOS":
        more["allowed_token_ids"] = testbed.end_tokens
    for spec in ("greedy", "vcd", "opera"):
        with pytest.raises(InvalidRequest, match=says):
            ask(testbed, spec, **more)


def test_a_ban_of_everything_that_shows_only_on_the_way_is_one_sentence_too(testbed):
    token, word = word_of(testbed, ask(testbed, "greedy"))
    twice = f"{word} {word}"
    assert len(testbed.tokenizer.encode(twice, add_special_tokens=False)) == 2
    for spec in ("greedy", "vcd"):
        with pytest.raises(InvalidRequest, match=r"After 1 token\(s\) of the answer every token"):
            ask(testbed, spec, allowed_token_ids=[token], bad_words=[twice])


@pytest.mark.parametrize(
    "bad",
    [
        {"allowed_token_ids": []}, {"allowed_token_ids": [-1]}, {"allowed_token_ids": ["a"]},
        {"allowed_token_ids": 3}, {"allowed_token_ids": [True]}, {"bad_words": [""]},
        {"bad_words": [" "]}, {"bad_words": [3]}, {"bad_words": None}, {"logit_bias": {3: 101}},
        {"logit_bias": {3: float("nan")}}, {"logit_bias": {"a": 1}}, {"logit_bias": [3]},
        {"logit_bias": {3: "1"}},
    ],
)  # fmt: skip
def test_bounds(bad):
    with pytest.raises(InvalidParameter, match=next(iter(bad))):
        hd.Sampling(**bad)
