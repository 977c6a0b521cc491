"""The search loop: plain beams are transformers' own, one forward a step, and what is refused."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import DynamicCache, MistralConfig

import halludecode as hd
from halludecode.core.beam_search import BeamSearch
from halludecode.core.errors import (
    HookNeverFired,
    IncompatibleStrategies,
    InvalidRequest,
    UnsupportedStrategy,
)
from halludecode.core.strategy import Strategy
from halludecode.engines.hf import batch as hf_batch
from halludecode.engines.hf.token_tree import LastForward, TokenTree
from tests.support import families, naive

WORDS = ["What is this?", "Describe it, please.", "Why?"]
NAMES = ("llava", "qwen2_5_vl", "internvl")
BUSY = "opera(num_beams=2,num_attn_candidates=3,sigma=120.0,threshold=1)"  # goes back on llava


def requests() -> list[hd.Request]:
    return [hd.Request(w, [p]) for w, p in zip(WORDS, families.pictures(), strict=True)]


def beams_of_transformers(engine, request, width, length):
    """The tokens `model.generate(num_beams=...)` writes."""
    row = engine.rows(request)["main"]
    inputs = engine.processor(text=row.prompt, images=list(request.images), return_tensors="pt")
    with torch.no_grad():
        made = engine.model.generate(**inputs, num_beams=width, max_new_tokens=length)
    return made[0, inputs["input_ids"].shape[1] :].tolist()


def often(engine) -> list[int]:
    """Two tokens that plain beams write."""
    ids = engine.generate(requests()[0], "opera(penalty_weight=0)")[0].token_ids
    return [ids[4], next(t for t in ids[6:] if t != ids[4])]


def shapes_of(engine, *args) -> tuple[list[hd.Output], list[tuple[int, ...]]]:
    """What `generate` gives, and the shape of the ids of every forward."""
    shapes: list[tuple[int, ...]] = []

    def note(module, args, kwargs, out):
        shapes.append(tuple(kwargs["input_ids"].shape))

    handle = engine.model.register_forward_hook(note, with_kwargs=True)
    try:
        return engine.generate(*args), shapes
    finally:
        handle.remove()


@pytest.fixture(params=NAMES)
def engine(request, family_engine):
    return family_engine(request.param)


@pytest.fixture
def llava(family_engine):
    return family_engine("llava")


# Plain beams --------------------------------------------------------------------------------------
@pytest.mark.parametrize("width", [2, 5])
@pytest.mark.parametrize("ends", [False, True])
def test_plain_beams_are_those_of_transformers(engine, monkeypatch, width, ends):
    several = any(len(engine.rows(r)["main"].pixel_values) > 1 for r in requests())
    if several and Version(transformers.__version__) < Version("5.19"):
        pytest.skip("beams of transformers 5.18 mix the views of a picture (see findings/)")
    if ends:
        config = engine.model.generation_config
        monkeypatch.setattr(config, "eos_token_id", [config.eos_token_id[0], *often(engine)])
    outputs = engine.generate(
        requests(), f"opera(num_beams={width},penalty_weight=0)", hd.Sampling(max_new_tokens=12)
    )
    for request, output in zip(requests(), outputs, strict=True):
        expected = beams_of_transformers(engine, request, width, 12)
        assert list(output.token_ids) == expected[: len(output.token_ids)]
        assert set(expected[len(output.token_ids) :]) <= {
            engine.model.generation_config.pad_token_id
        }
        assert output.finish_reason == ("length" if len(output.token_ids) == 12 else "stop") or ends


def test_sliding_layers_see_their_window(family_engine, monkeypatch):
    """With a cache that keeps every key; prompts here are longer than the window."""
    monkeypatch.setattr(hf_batch, "DynamicCache", lambda config=None: DynamicCache(), raising=False)
    engine = family_engine("gemma3")
    window = engine.model.config.get_text_config().sliding_window
    assert all(len(engine.rows(r)["main"].input_ids) > window for r in requests())
    outputs = engine.generate(
        requests(), "opera(num_beams=3,penalty_weight=0)", hd.Sampling(max_new_tokens=10)
    )
    for request, output in zip(requests(), outputs, strict=True):
        expected = beams_of_transformers(engine, request, 3, 10)
        assert list(output.token_ids) == expected[: len(output.token_ids)]
    tried = engine.generate(requests(), "opera", hd.Sampling(max_new_tokens=10))
    assert all(output.effect is not None for output in tried)


@pytest.mark.parametrize(
    "more",
    [{}, {"min_new_tokens": 6}, {"repetition_penalty": 1.3}, {"stop": ["a", "e", "o"]}],
    ids=lambda more: next(iter(more), "plain"),
)
def test_one_plain_beam_is_greedy(engine, monkeypatch, more):
    monkeypatch.setattr(engine.model.generation_config, "eos_token_id", often(engine))
    sampling = hd.Sampling(max_new_tokens=10, **more)
    plan = engine.plan("opera(num_beams=1,penalty_weight=0)", skip_off=False)
    assert plan.search is not None
    greedy = engine.generate(requests(), "greedy", sampling)
    for a, b in zip(engine.generate(requests(), plan, sampling), greedy, strict=True):
        assert (a.token_ids, a.text, a.finish_reason) == (b.token_ids, b.text, b.finish_reason)
        assert a.effect == 0


# The loop -----------------------------------------------------------------------------------------
def test_one_forward_a_step_for_all_candidates_of_all_requests(engine):
    sampling = hd.Sampling(max_new_tokens=6, min_new_tokens=6)
    outputs, shapes = shapes_of(
        engine, requests(), "opera(num_beams=3,num_attn_candidates=4)", sampling
    )
    assert [len(output.token_ids) for output in outputs] == [6, 6, 6]
    assert shapes[1:] == [(3, 4), *[(3, 12)] * 5], "prompts once; then 3 beams x 4 candidates"
    assert all(output.timings.decode_ms > 0 and output.timings.tokens == 6 for output in outputs)
    assert all(output.rows == ("main",) for output in outputs)


@pytest.mark.parametrize("spec", ["opera", BUSY, "opera(penalty_weight=0)"])
def test_batch_of_n_equals_n_singles(engine, monkeypatch, spec):
    """Requests end at different steps, and go back at different ones."""
    config = engine.model.generation_config
    monkeypatch.setattr(config, "eos_token_id", [config.eos_token_id[0], often(engine)[1]])
    sampling = hd.Sampling(max_new_tokens=20, logprobs=2)
    together = engine.generate(requests(), spec, sampling)
    for request, batched in zip(requests(), together, strict=True):
        single = engine.generate(request, spec, sampling)[0]
        assert single.token_ids == batched.token_ids
        assert single.effect == batched.effect
        for a, b in zip(single.logprobs, batched.logprobs, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-3)


def test_logprobs_are_those_of_the_step(llava):
    output = llava.generate(
        requests()[0], "opera(num_attn_candidates=3)", hd.Sampling(max_new_tokens=8, logprobs=5)
    )[0]
    assert [entry.token_id for entry in output.logprobs] == list(output.token_ids)
    for entry in output.logprobs:
        assert len(entry.top) == 3, "only candidates can be chosen"
        total = sum(torch.tensor(list(entry.top.values())).exp())
        assert float(total) == pytest.approx(1.0)
        assert entry.top[entry.token_id] == entry.logprob


def test_effect_counts_tokens_the_plain_model_would_not_choose(llava):
    sampling = hd.Sampling(max_new_tokens=12)
    effects = []
    for request in requests():
        output = llava.generate(request, "opera", sampling)[0]
        text = llava.rows(request)["main"].prompt
        inputs, ids = naive.inputs_of(llava.processor, text, request.images), output.token_ids
        choices = [
            naive.next_logits(llava.model, inputs, ids[:t]).argmax() for t in range(len(ids))
        ]
        effects.append(output.effect)
        assert output.effect == sum(int(c) != t for c, t in zip(choices, ids, strict=True))
    assert max(effects) > 0


def test_first_step_scores_of_words(llava):
    words = ("yes", "no")
    plain = llava.generate(requests()[0], "greedy", score_words=words)[0].scores
    bare = llava.generate(requests()[0], "opera(penalty_weight=0)", score_words=words)[0]
    assert bare.scores == pytest.approx(plain, abs=1e-4)
    paid = llava.generate(requests()[0], "opera(penalty_weight=3)", score_words=words)[0]
    bonus = [paid.scores[word] - plain[word] for word in words]
    assert all(0 < each < 3 for each in bonus), "3 times the attention to the image"
    again = llava.generate(requests()[0], "opera(penalty_weight=3)")[0]
    assert again.token_ids == paid.token_ids, "scoring words must not change the answer"


def test_stop_strings_and_least_length(llava, monkeypatch):
    whole = llava.generate(requests()[0], "opera", hd.Sampling(max_new_tokens=16))[0]
    readable = [c for c in whole.text if c.isascii() and c.isprintable() and c != " "]
    stop = readable[len(readable) // 2]
    cut = llava.generate(requests()[0], "opera", hd.Sampling(max_new_tokens=16, stop=stop))[0]
    assert stop not in cut.text
    monkeypatch.setattr(llava.model.generation_config, "eos_token_id", [whole.token_ids[2]])
    for least in (0, 9):
        sampling = hd.Sampling(max_new_tokens=16, min_new_tokens=least)
        ids = llava.generate(requests()[0], "opera", sampling)[0].token_ids
        assert len(ids) > least
        assert whole.token_ids[2] not in ids[:least]


def test_the_context_ends_an_answer(llava, monkeypatch):
    row = llava.rows(requests()[2])["main"]
    monkeypatch.setattr(
        llava.model.config.get_text_config(), "max_position_embeddings", len(row.input_ids) + 5
    )
    output = llava.generate(requests()[2], "opera", hd.Sampling(max_new_tokens=40))[0]
    assert (len(output.token_ids), output.finish_reason) == (5, "length")


def test_without_an_image_it_is_greedy_and_warns(engine):
    mixed = [hd.Request("Hello there"), requests()[0]]
    outputs = engine.generate(mixed, "opera", hd.Sampling(max_new_tokens=8))
    greedy = engine.generate(mixed[0], "greedy", hd.Sampling(max_new_tokens=8))[0]
    assert outputs[0].token_ids == greedy.token_ids
    assert "no image" in outputs[0].warnings[0]
    alone = engine.generate(mixed[1], "opera", hd.Sampling(max_new_tokens=8))[0]
    assert alone.token_ids == outputs[1].token_ids


def test_a_shared_picture_is_prefilled_once_and_changes_nothing(llava):
    picture = families.pictures()[0]
    questions = [hd.Request(word, [picture]) for word in WORDS]
    llava.prefixes.clear()
    shared, shapes = shapes_of(llava, questions, "opera", hd.Sampling(max_new_tokens=8))
    assert shapes[0][0] == 1, "the picture once"
    read = [len(llava.rows(question)["main"].input_ids) - shapes[0][1] for question in questions]
    assert shapes[1] == (1, sum(read)), "then three questions, end to end"
    for question, output in zip(questions, shared, strict=True):
        single = llava.generate(question, "opera", hd.Sampling(max_new_tokens=8))[0]
        assert single.token_ids == output.token_ids


class Back(Strategy):
    """Goes back to a place once, as soon as it has written so many tokens."""

    name = "back"
    history = 512
    place = 2

    def search(self, m):
        def rollback(pointed, used):
            return self.place if pointed.shape[1] == 9 and not used else None

        return BeamSearch(2, 2, m.num_layers - 1, rollback=rollback, history=self.history)


def test_how_far_a_search_can_go_back(llava):
    sampling = hd.Sampling(max_new_tokens=10, min_new_tokens=10)
    calls = []
    for history in (512, 3, 1):
        strategy = type(f"Back{history}", (Back,), {"history": history})()
        before = llava.hf_model.calls
        llava.generate(requests()[0], strategy, sampling)
        calls.append(llava.hf_model.calls - before)
    # A return from 8 tokens to 2: the token there is fed alone, then 7 steps with candidates again.
    assert calls == [11 + 1 + 6, 11 + 1 + 2, 11], "with one step remembered there is no way back"


def test_tokens_chosen_before_are_forbidden_after_a_return(llava):
    sampling = hd.Sampling(max_new_tokens=10, min_new_tokens=10)
    stay = type("Stay", (Back,), {"place": 99})()
    first = llava.generate(requests()[0], stay, sampling)[0].token_ids
    again = llava.generate(requests()[0], Back(), sampling)[0].token_ids
    assert first[:2] != again[:2] or first[2] != again[2]


# Laws ---------------------------------------------------------------------------------------------
def test_the_model_is_untouched(engine):
    def state():
        model = engine.model
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        return model.config.get_text_config()._attn_implementation, hooks, model.training

    before = state()
    engine.generate(requests(), "opera", hd.Sampling(max_new_tokens=3))
    assert state() == before


def test_attention_must_be_reached(llava, monkeypatch):
    monkeypatch.setattr(llava.model, "set_attn_implementation", lambda *a, **k: None)
    with pytest.raises(HookNeverFired, match="attention of layer 5 was not read"):
        llava.generate(requests()[0], "opera")


def test_two_threads_do_not_leak(llava):
    specs = ("opera", "var(dims=(3,40),tau=2.0,min_mass=0.05,rho=0.2)")
    sampling = hd.Sampling(max_new_tokens=5)
    expected = {s: [o.token_ids for o in llava.generate(requests(), s, sampling)] for s in specs}
    got = {}

    def work(spec):
        got[spec] = [o.token_ids for o in llava.generate(requests(), spec, sampling)]

    threads = [threading.Thread(target=work, args=(spec,)) for spec in specs]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert got == expected


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda e: e.generate(requests(), "opera+vcd"),
            IncompatibleStrategies,
            "cannot be composed",
        ),
        (lambda e: e.plan("apc_only+opera"), IncompatibleStrategies, "run it alone"),
        (
            lambda e: e.generate(requests(), "opera", hd.Sampling(temperature=0.7)),
            InvalidRequest,
            r"temperature=0\.7 must be 0",
        ),
        (
            lambda e: e.generate(requests(), "opera", hd.Sampling(temperature=1, n=2)),
            InvalidRequest,
            "draws nothing",
        ),
        (
            lambda e: hd.applied(e.model, e.processor, "opera").__enter__(),
            UnsupportedStrategy,
            "needs 'beam search'",
        ),
    ],
    ids=["vcd", "apc", "temperature", "n", "applied"],
)
def test_what_is_refused_before_any_token(llava, call, error, says):
    calls = llava.hf_model.calls
    with pytest.raises(error, match=says) as caught:
        call(llava)
    assert llava.hf_model.calls == calls
    assert "\n" not in str(caught.value)


def test_a_stream_is_the_answer_in_one_piece(llava):
    wanted = llava.generate(requests()[:1], "opera")[0]
    (chunk,) = llava.stream(requests()[0], "opera")
    assert (chunk.text, chunk.output.token_ids) == (wanted.text, wanted.token_ids)


def test_layers_that_drop_keys_are_refused():
    config = MistralConfig(sliding_window=16, num_hidden_layers=2)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config))
    for cache in (DynamicCache(config=config), DynamicCache()):
        batch = SimpleNamespace(
            hf_model=SimpleNamespace(model=model),
            cache=cache,
            plan=SimpleNamespace(canonical="opera"),
        )
        with pytest.raises(UnsupportedStrategy, match="needs the key of every token"):
            TokenTree(batch, 0)


class Headed(torch.nn.Module):
    """A head and what some models do to its logits."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.head, self.scale = torch.nn.Linear(4, 9, bias=False), scale

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) * self.scale


@pytest.mark.parametrize("scale", [1.0, 0.5])
@torch.no_grad()
def test_only_logits_that_are_asked_for_are_made_where_the_head_makes_them(scale):
    torch.manual_seed(0)
    model, last = Headed(scale), LastForward()
    for turn in range(3):
        x = torch.randn(2, 5, 4)
        with last.of(model):
            made = model(x)
        last.made(made, lambda h, norm: model.head(h))
        assert made.shape[1] == (0 if turn and scale == 1 else 5)
        found = last.logits(
            torch.tensor([0, 1, 1]), torch.tensor([4, 0, 3]), lambda h, _: model.head(h)
        )
        torch.testing.assert_close(found, model(x)[[0, 1, 1], [4, 0, 3]])
    assert model(x).shape[1] == 5, "the hook is gone"


def test_tokens_that_were_tried_in_vain_cost_no_logits(llava):
    rows: list[int] = []
    handle = llava.model.get_output_embeddings().register_forward_hook(
        lambda module, args, out: rows.append(out.shape[:-1].numel())
    )
    try:
        llava.generate(requests(), "opera", hd.Sampling(max_new_tokens=5, min_new_tokens=5))
    finally:
        handle.remove()
    first = [3, 15, 15]  # the prompts, their first candidates, and whether the head says the same
    assert rows[:3] == first and set(rows[3:]) == {0, 15}, "five beams of 25 tries, three requests"


def test_requests_of_one_batch_try_different_numbers_of_tokens(llava, monkeypatch):
    """What is read for a request has one row per token it asked for, not per token of the batch."""
    sizes, feed = set(), TokenTree.feed

    def spied(tree, asks):
        made = feed(tree, asks)
        for ask, fed in zip(asks, made, strict=True):
            assert len(fed.rows) == len(fed.image) == ask.size
        sizes.add(tuple(ask.size for ask in asks))
        return made

    monkeypatch.setattr(TokenTree, "feed", spied)
    blind = hd.Request(WORDS[0])
    batch = [requests()[0], blind]
    found = llava.generate(batch, "opera", hd.Sampling(max_new_tokens=6, min_new_tokens=6))
    assert any(len(set(each)) > 1 for each in sizes)
    alone = [llava.generate([r], "opera", hd.Sampling(max_new_tokens=6, min_new_tokens=6))[0]
             for r in batch]  # fmt: skip
    assert [o.token_ids for o in found] == [o.token_ids for o in alone]
