"""Within `hd.applied` a plain model obeys, however it is driven, or a sentence says why not."""

from __future__ import annotations

import copy
import functools
import threading
import warnings

import pytest
import torch
from torch import nn
from transformers import DynamicCache, TextIteratorStreamer

import halludecode as hd
from halludecode.core.errors import (
    HookNeverFired,
    InvalidModel,
    InvalidScores,
    UnsupportedStrategy,
)
from halludecode.engines.hf.release import CACHE
from tests.support import families

EDIT, COMBINE = "spin(r=0.5,alpha=0.0)", "dola(strength=5.0)"
SPECS = (EDIT, COMBINE)
SHORT = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture
def engine(family_engine):
    return family_engine("llava")


@pytest.fixture
def model(engine):
    return copy.deepcopy(engine.model)


@pytest.fixture
def inputs(engine):
    text = families.FAMILIES["llava"].prompt("What is this?")
    return engine.processor(text=[text], images=families.pictures()[:1], return_tensors="pt")


@pytest.fixture(scope="module")
def wanted(family_engine):
    """The engine's own tokens under each strategy."""
    engine = family_engine("llava")
    request = hd.Request("What is this?", families.pictures()[:1])
    sampling = hd.Sampling(max_new_tokens=4)
    made = {s: list(engine.generate(request, s, sampling)[0].token_ids) for s in SPECS}
    plain = list(engine.generate(request, "greedy", sampling)[0].token_ids)
    assert plain not in made.values(), "a strategy that changes nothing shows nothing"
    return made


def answer(model, engine, inputs, spec, *, runs=None, **options):
    """Ids that the model's own `generate` writes under a strategy."""
    with hd.applied(model, engine.processor, spec):
        ids = (runs or model).generate(**inputs, **SHORT, **options)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


class Adapted(nn.Module):
    """As PEFT wraps a model: it stands inside, and `generate` is handed on to it."""

    def __init__(self, model):
        super().__init__()
        self.base_model = model

    def get_base_model(self):
        return self.base_model

    def generate(self, **inputs):
        return self.base_model.generate(**inputs)


def compiled_layers(model):
    layers = model.model.language_model.layers
    for i, layer in enumerate(layers):
        layers[i] = torch.compile(layer, backend="eager")
    return model


def compiled_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


WRAPPED = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled layers": compiled_layers,
    "compiled forward": compiled_forward,
    "compiled in place": compiled_in_place,
    "adapted": Adapted,
    "compiled and adapted": lambda model: Adapted(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrapped_model_obeys(engine, model, inputs, wanted, kind):
    made = WRAPPED[kind](model)
    own = vars(model).get("forward")
    for spec in SPECS:
        assert answer(made, engine, inputs, spec) == wanted[spec]
    assert vars(model).get("forward") is own
    assert "generate" not in vars(model)
    request = hd.Request("What is this?", families.pictures()[:1])
    wrapped = hd.load(made, processor=engine.processor)
    assert wrapped.model is made
    for spec in SPECS:
        output = wrapped.generate(request, spec, hd.Sampling(max_new_tokens=4))[0]
        assert list(output.token_ids) == wanted[spec]


def test_a_model_over_one_device_is_looked_into_and_an_unknown_wrapper_refused(engine, model):
    held = nn.DataParallel(model)
    assert hd.load(held, processor=engine.processor).hf_model.model is model
    with pytest.raises(InvalidModel, match="of type Sequential is no transformers model"):
        hd.load(nn.Sequential(model), processor=engine.processor)


@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "static"},
        {"return_dict_in_generate": False, "guidance_scale": 1.0},
        {"logits_processor": [lambda ids, scores: scores]},
        {CACHE: "fresh"},
    ],
)
def test_ways_to_generate_that_obey(engine, model, inputs, wanted, options):
    for spec in SPECS:
        given = dict(options)
        if CACHE in given:
            given[CACHE] = DynamicCache()
        assert answer(model, engine, inputs, spec, **given) == wanted[spec]


def test_beams_and_samples_of_one_prompt_obey(engine, model, inputs, wanted):
    with hd.applied(model, engine.processor, EDIT):
        beams = model.generate(**inputs, **SHORT, num_beams=2, num_return_sequences=2)
        drawn = model.generate(
            **inputs, max_new_tokens=3, do_sample=True, num_return_sequences=3, top_k=1
        )
    assert beams.shape[0] == 2
    for ids in drawn:
        assert ids[inputs["input_ids"].shape[1] :].tolist() == wanted[EDIT][:3]


REFUSED = [
    ({"assistant_model": "itself"}, "assisted decoding"),
    ({"prompt_lookup_num_tokens": 2}, "prompt lookup"),
    ({"guidance_scale": 1.5}, "classifier-free guidance"),
    ({"assistant_early_exit": 1}, "early-exit"),
    ({"prefill_chunk_size": 8}, "chunked prefill"),
    ({"use_cache": False}, "without a KV cache"),
]


@pytest.mark.parametrize(("options", "why"), REFUSED)
def test_ways_to_generate_that_cannot_obey_are_refused(engine, model, inputs, options, why):
    if "assistant_model" in options:
        options = {"assistant_model": copy.deepcopy(model)}
    with pytest.raises(UnsupportedStrategy, match=why):
        answer(model, engine, inputs, COMBINE, **options)
    assert not vars(model).keys() & {"forward", "generate"}


def test_an_option_in_a_generation_config_is_seen(engine, model, inputs):
    config = copy.deepcopy(model.generation_config)
    config.guidance_scale = 2.0
    with pytest.raises(UnsupportedStrategy, match=r"guidance_scale=2\.0"):
        answer(model, engine, inputs, EDIT, generation_config=config)


def test_generate_from_before_the_block_is_held_to_the_same(engine, model, inputs, wanted):
    bound = model.generate
    with hd.applied(model, engine.processor, EDIT):
        ids = bound(**inputs, **SHORT)
    assert ids[0, inputs["input_ids"].shape[1] :].tolist() == wanted[EDIT]
    with (
        hd.applied(model, engine.processor, EDIT),
        pytest.raises(UnsupportedStrategy, match="without a KV cache cannot be told"),
    ):
        bound(**inputs, **SHORT, use_cache=False)


def second_turn(engine, inputs, first):
    tokenizer = engine.processor.tokenizer
    more = tokenizer(" And this?", add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = torch.cat([first, more], 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("spec", SPECS)
def test_a_second_turn_on_a_kept_cache_is_refused(engine, model, inputs, spec):
    outside, inside = DynamicCache(), DynamicCache()
    first = model.generate(**inputs, **SHORT, **{CACHE: outside})
    with hd.applied(model, engine.processor, spec):
        with pytest.raises(UnsupportedStrategy, match="filled outside of the block"):
            model.generate(**second_turn(engine, inputs, first), **SHORT, **{CACHE: outside})
        first = model.generate(**inputs, **SHORT, **{CACHE: inside})
        with pytest.raises(UnsupportedStrategy, match="tokens at once on a filled KV cache"):
            model.generate(**second_turn(engine, inputs, first), **SHORT, **{CACHE: inside})
        inside.crop(4 - inside.get_seq_length())
        fed = {"input_ids": first[:, -1:], "attention_mask": torch.ones(1, 5)}
        with pytest.raises(UnsupportedStrategy, match="was cut, repeated or filled"):
            model(**fed, **{CACHE: inside})


@pytest.mark.parametrize("spec", SPECS)
def test_an_answer_may_be_written_on(engine, model, inputs, wanted, spec):
    cache, half = DynamicCache(), {"max_new_tokens": 2, "do_sample": False}
    with hd.applied(model, engine.processor, spec):
        first = model.generate(**inputs, **half, **{CACHE: cache})
        more = {"input_ids": first, "attention_mask": torch.ones_like(first)}
        ids = model.generate(**more, **half, **{CACHE: cache})
    assert ids[0, inputs["input_ids"].shape[1] :].tolist() == wanted[spec]


@pytest.mark.parametrize("spec", SPECS)
def test_a_loop_of_ones_own_obeys(engine, model, inputs, wanted, spec):
    mask, fed, cache, ids = inputs["attention_mask"], dict(inputs), None, list[int]()
    with hd.applied(model, engine.processor, spec):
        for call in (model, model.forward, model, model.forward):
            out = call(**fed, **{CACHE: cache}, logits_to_keep=1)
            token, cache = out.logits[:, -1].argmax(-1, keepdim=True), out[CACHE]
            ids.append(int(token))
            mask = torch.cat([mask, torch.ones_like(token)], 1)
            fed = {"input_ids": token, "attention_mask": mask}
        with pytest.raises(UnsupportedStrategy, match=r"logits of \d+ positions"):
            model(**inputs)
    assert ids == wanted[spec]


def test_a_cache_is_known_whatever_its_argument_is_called(engine, model, inputs, wanted):
    """transformers renamed it in 5.24, and may again."""
    original = model.forward
    model.forward = lambda kv=None, **kwargs: original(**{CACHE: kv}, **kwargs)
    mask, fed, cache, ids = inputs["attention_mask"], dict(inputs), DynamicCache(), list[int]()
    with hd.applied(model, engine.processor, EDIT):
        for _ in wanted[EDIT]:
            token = model(**fed, kv=cache, logits_to_keep=1).logits[:, -1].argmax(-1)[:, None]
            ids.append(int(token))
            mask = torch.cat([mask, torch.ones_like(token)], 1)
            fed = {"input_ids": token, "attention_mask": mask}
    assert ids == wanted[EDIT]


@pytest.mark.parametrize("spec", SPECS)
def test_a_cache_that_cannot_be_seen_is_an_error_not_plain_greedy(engine, model, inputs, spec):
    """What a transformers would do that kept the KV where the block does not look."""
    original, kept = model.forward, DynamicCache()

    @functools.wraps(original)
    def forward(**kwargs):
        kwargs.pop(CACHE, None)
        output = original(**kwargs, **{CACHE: kept})
        output[CACHE] = None
        return output

    model.forward = forward
    with (
        pytest.raises(HookNeverFired, match=r"4 forward\(s\) of the model came by"),
        hd.applied(model, engine.processor, spec),
    ):
        model.generate(**inputs, **SHORT)


@pytest.mark.parametrize("spec", SPECS)
def test_a_thread_that_streams_obeys_and_is_waited_for(engine, model, inputs, wanted, spec):
    streamer = TextIteratorStreamer(engine.processor.tokenizer, skip_prompt=True)
    with hd.applied(model, engine.processor, spec):
        kwargs = {**inputs, **SHORT, "streamer": streamer}
        thread = threading.Thread(target=model.generate, kwargs=kwargs)
        thread.start()
        next(iter(streamer))
    thread.join()
    text = engine.processor.tokenizer.decode(wanted[spec])
    rest = "".join(streamer)
    assert text.endswith(rest)
    assert not vars(model).keys() & {"forward", "generate"}


def test_blocks_on_two_models_and_one_on_each(engine, model, inputs, wanted):
    other = copy.deepcopy(model)
    with hd.applied(model, engine.processor, EDIT), hd.applied(other, engine.processor, COMBINE):
        for each, spec in ((model, EDIT), (other, COMBINE)):
            ids = each.generate(**inputs, **SHORT)
            assert ids[0, inputs["input_ids"].shape[1] :].tolist() == wanted[spec]
        with (
            pytest.raises(UnsupportedStrategy, match="open on this model already; compose"),
            hd.applied(model, engine.processor, COMBINE),
        ):
            pass
        ids = model.generate(**inputs, **SHORT)
        assert ids[0, inputs["input_ids"].shape[1] :].tolist() == wanted[EDIT]


@pytest.mark.parametrize("spec", SPECS)
def test_an_engine_within_the_block_goes_its_own_way(engine, model, inputs, wanted, spec):
    own = hd.load(model, processor=engine.processor)
    request = hd.Request("What is this?", families.pictures()[:1])
    sampling = hd.Sampling(max_new_tokens=4)
    alone = {s: own.generate(request, s, sampling)[0].token_ids for s in ("greedy", "vcd")}
    with hd.applied(model, engine.processor, spec):
        for each, ids in alone.items():
            assert own.generate(request, each, sampling)[0].token_ids == ids
        ids = model.generate(**inputs, **SHORT)
    assert ids[0, inputs["input_ids"].shape[1] :].tolist() == wanted[spec]


@pytest.mark.parametrize("spec", [*SPECS, "apc_only(beta=0.9)"])
def test_a_forward_that_never_came_by_is_told_by_generate(engine, model, inputs, spec):
    with hd.applied(model, engine.processor, spec):
        model.forward = type(model).forward.__get__(model)  # whatever put it there
        with pytest.raises(HookNeverFired, match=r"wrote 4 token\(s\), but 0 forward"):
            model.generate(**inputs, **SHORT)
        del model.forward


def test_only_the_end_of_a_block_in_which_nothing_ran_warns(engine, model):
    with (
        pytest.warns(UserWarning, match="the model did not run within the block"),
        hd.applied(model, engine.processor, EDIT),
    ):
        pass
    with (
        warnings.catch_warnings(),
        pytest.raises(KeyError, match="mine"),
        hd.applied(model, engine.processor, EDIT),
    ):
        raise KeyError("mine")  # not masked by the check
    assert model.config.get_text_config()._attn_implementation == "sdpa"


def test_prompts_padded_on_the_right_and_batches_of_packed_prompts_are_refused(
    engine, model, inputs
):
    mask = inputs["attention_mask"].clone()
    mask[:, -1] = 0
    with hd.applied(model, engine.processor, EDIT):
        with pytest.raises(UnsupportedStrategy, match="padded on the left"):
            model(**{**inputs, "attention_mask": mask}, logits_to_keep=1)
        with pytest.raises(UnsupportedStrategy, match="generate_batch"):
            model.generate_batch([inputs["input_ids"][0].tolist()])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_no_token_can_be_drawn_from_name_the_strategy(engine, model, inputs, value):
    @hd.strategy("broken_test")
    class Broken(hd.Strategy):
        """Gives what is no score."""

        def combine(self, step):
            return torch.full_like(step["main"], value)

    pictured = hd.Request("What is this?", families.pictures()[:1])
    plain = hd.Request("Hello there", [])
    try:
        with pytest.raises(InvalidScores, match="broken_test: its scores are not numbers"):
            answer(model, engine, inputs, Broken())
        beside, broken = engine.generate_each([plain, pictured], Broken())
        assert beside.token_ids == engine.generate(plain, "greedy")[0].token_ids
        assert isinstance(broken, InvalidScores)
    finally:
        from halludecode.core.registry import STRATEGIES

        STRATEGIES._entries.pop("broken_test")
