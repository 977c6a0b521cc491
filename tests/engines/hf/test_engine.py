"""The HF engine beyond the contract suite: n, stops, log-probabilities, limits, memory, errors."""

from __future__ import annotations

import gc
import json
import shutil
import weakref

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import halludecode as hd
from halludecode.core.attention_block import AttentionBlock
from halludecode.core.errors import InvalidModel, InvalidRequest, OutOfMemory, UnsupportedStrategy
from halludecode.engines.hf.release import BROKEN
from halludecode.engines.hf.row_cache import RowCache
from tests.support import families


@pytest.fixture
def engine(family_engine):
    return family_engine("llava")


def ask(text="What is this?", place=0) -> hd.Request:
    return hd.Request(text, [families.pictures()[place]])


def test_n_answers_share_one_prefill(engine):
    sampling = hd.Sampling(max_new_tokens=4, min_new_tokens=4, temperature=1.5, n=3, seed=5)
    before = engine.hf_model.calls
    output = engine.generate(ask(), "vcd", sampling)[0]
    assert engine.hf_model.calls - before == 5, "one of them is of the row that begins late"
    assert len(output.choices) == 3
    assert len({c.token_ids for c in output.choices}) > 1
    assert output.timings.tokens == 12
    one = engine.generate([ask(), ask(place=1)], "vcd", sampling)
    assert [c.token_ids for c in one[0].choices] == [c.token_ids for c in output.choices]
    first = engine.generate(ask(), "vcd", hd.Sampling(**{**vars(sampling), "n": 1}))[0]
    assert first.token_ids == output.choices[0].token_ids


def test_stop_strings_end_and_leave_the_answer(engine):
    plain = engine.generate(ask(), "greedy", hd.Sampling(max_new_tokens=8))[0]
    stop = plain.text[3:5]
    cut = engine.generate(ask(), "greedy", hd.Sampling(max_new_tokens=8, stop=[stop]))[0]
    assert cut.text == plain.text[: plain.text.index(stop)]
    assert cut.finish_reason == "stop"
    streamed = list(engine.stream(ask(), "greedy", hd.Sampling(max_new_tokens=8, stop=[stop])))
    assert "".join(c.text for c in streamed) == cut.text


def test_logprobs_are_of_the_combined_distribution(engine):
    output = engine.generate(ask(), "vcd", hd.Sampling(max_new_tokens=3, logprobs=4))[0]
    for entry in output.logprobs:
        assert entry.logprob == max(entry.top.values())
        assert len(entry.top) == 4
        assert sum(np.exp(list(entry.top.values()))) <= 1 + 1e-5
    assert engine.generate(ask(), "vcd", hd.Sampling(max_new_tokens=1))[0].logprobs is None


def test_finish_reasons_and_minimum_length(engine):
    eos = engine.end_tokens
    assert eos
    output = engine.generate(ask(), "greedy", hd.Sampling(max_new_tokens=5, min_new_tokens=5))[0]
    assert output.finish_reason == "length"
    assert not set(output.token_ids) & set(eos)


def test_a_word_that_the_vocabulary_lacks_has_no_score(engine, monkeypatch):
    monkeypatch.setattr(engine.inputs, "word_ids", lambda word: [] if word == "B" else [5])
    short = hd.Sampling(max_new_tokens=1)
    for strategy in ("greedy", "vcd", "opera"):
        (output,) = engine.generate([ask()], strategy, short, score_words=("A", "B"))
        assert output.scores.keys() == {"A"}


def test_a_token_with_which_several_words_begin_scores_none_of_them(family_engine):
    """Bytes spell " yes" and " no" alike at first; the largest of all would tie them for good."""
    inputs = family_engine("llava").inputs
    space, *_ = inputs.tokenizer(" y", add_special_tokens=False)["input_ids"]
    alone = {word: inputs.word_ids(word) for word in ("yes", "no")}
    assert all(space in ids and len(ids) == 3 for ids in alone.values())
    told = {word: [i for i in ids if i != space] for word, ids in alone.items()}
    assert inputs.scored_words(("yes", "no")) == told
    assert inputs.scored_words(("yes",)) == {"yes": alone["yes"]}
    assert inputs.scored_words(("yes", "yet", "no")) == {"no": told["no"]}
    spelt = {word: inputs.word_ids(word) for word in ("yes", "Yes")}
    assert inputs.scored_words(("yes", "Yes")) == spelt and all(spelt.values())


def test_score_words_are_unmasked_first_step_scores(engine):
    words = ("yes", "no")
    vcd = engine.generate(ask(), "vcd", hd.Sampling(max_new_tokens=1), score_words=words)[0]
    free = engine.generate(ask(), "vcd(beta=0)", hd.Sampling(max_new_tokens=1), score_words=words)[
        0
    ]
    assert set(vcd.scores) == set(words)
    assert np.isfinite(list(vcd.scores.values())).all()
    assert vcd.scores == pytest.approx(free.scores, abs=1e-5)
    assert not vcd.decided


def test_scores_of_an_answer_that_the_main_row_decides_are_its_own(engine):
    words, short = ("yes", "no"), hd.Sampling(max_new_tokens=1)
    vcd, plain = (
        engine.generate(ask(), spec, short, score_words=words)[0]
        for spec in ("vcd(beta=1)", "greedy")
    )
    assert (vcd.decided, plain.decided) == (True, False)
    assert vcd.scores == plain.scores
    assert vcd.rows == ("main",)


def test_they_are_the_same_where_all_rows_run(engine, monkeypatch):
    words, short = ("yes", "no"), hd.Sampling(max_new_tokens=1)
    asked = [ask(place=place) for place in (0, 1)] + [hd.Request("And without a picture?")]
    for spec in ("vcd(beta=0.93)", "m3id(gate=0.0037)", "vcd(beta=1)+m3id", "dola", "vcd"):
        late = engine.generate(asked, spec, short, score_words=words)
        monkeypatch.setattr(engine, "extra_rows", "always")
        at_once = engine.generate(asked, spec, short, score_words=words)
        monkeypatch.undo()
        assert [o.decided for o in late] == [o.decided for o in at_once], spec
        for one, other in zip(late, at_once, strict=True):
            assert one.scores == pytest.approx(other.scores, abs=1e-4)


def test_effect_counts_tokens_that_differ(engine):
    assert engine.generate(ask(), "greedy")[0].effect == 0
    assert engine.generate(ask(), "vcd(alpha=3)", hd.Sampling(max_new_tokens=6))[0].effect > 0
    assert engine.generate(ask(), "vhr", hd.Sampling(max_new_tokens=6))[0].effect is None
    idle = engine.generate(ask(), "var(dims=(0,),tau=1000)", hd.Sampling(max_new_tokens=6))[0]
    assert idle.effect == 0
    assert "edited nothing" in idle.warnings[0]


def test_attention_edits_never_build_a_square_map(engine, monkeypatch):
    """Largest tensor of logits grows with the prompt, not with its square."""
    shapes: list[torch.Size] = []
    original = AttentionBlock.scores

    def recorded(self):
        made = original(self)
        shapes.append(made.shape)
        return made

    monkeypatch.setattr(AttentionBlock, "scores", recorded)
    long = ask("word " * 80)
    spec = "var(dims=(3,40),tau=2.0,min_mass=0.05,rho=0.2)"
    engine.generate(long, spec, hd.Sampling(max_new_tokens=1))
    prompt = len(engine.rows(long)["main"].input_ids)
    assert prompt > 400
    assert max(shape[3] for shape in shapes) == prompt
    assert max(shape[2] for shape in shapes) <= 64
    covered = sum(shape[2] for shape in set(shapes))
    assert covered >= 64


def test_applied_is_the_engine_on_a_plain_generate(engine):
    spec = "var(dims=(3,40),tau=2.0,min_mass=0.05,rho=0.2)+apc_only"
    text = families.FAMILIES["llava"].prompt("What is this?")
    images = families.pictures()[:2]
    inputs = engine.processor(text=[text, text], images=images, return_tensors="pt", padding=True)
    kwargs = {"max_new_tokens": 5, "do_sample": False}
    plain = engine.model.generate(**inputs, **kwargs)
    with hd.applied(engine.model, engine.processor, spec) as plan:
        edited = engine.model.generate(**inputs, **kwargs)
        assert "var" in str(plan)
    again = engine.model.generate(**inputs, **kwargs)
    assert torch.equal(plain, again), "nothing may stay behind"
    width = inputs["input_ids"].shape[1]
    for i, image in enumerate(images):
        ours = engine.generate(hd.Request(text, [image]), spec, hd.Sampling(max_new_tokens=5))[0]
        assert edited[i, width : width + len(ours.token_ids)].tolist() == list(ours.token_ids)


def test_applied_refuses_what_needs_rows(engine):
    with (
        pytest.raises(UnsupportedStrategy, match=r"needs 'extra rows'.*hd.load"),
        hd.applied(engine.model, engine.processor, "vcd"),
    ):
        pass


def test_prompts_longer_than_the_context_are_refused(engine):
    with pytest.raises(InvalidRequest, match=r"The prompt has \d+ tokens .* context is \d+"):
        engine.generate(ask("word " * 2000))


def test_the_context_ends_an_answer(engine, monkeypatch):
    prompt = len(engine.rows(ask())["main"].input_ids)
    monkeypatch.setattr(type(engine), "context", prompt + 3)
    output = engine.generate(ask(), "greedy", hd.Sampling(max_new_tokens=50, min_new_tokens=50))[0]
    assert (len(output.token_ids), output.finish_reason) == (3, "length")


def test_placeholders_in_words_are_refused(engine):
    sneaky = [{"role": "user", "content": "Look: <image>"}]
    with pytest.raises(InvalidRequest, match=r"holds 1 image placeholder.* 0 image"):
        engine.generate(hd.Request(sneaky))


def test_running_out_of_memory_names_a_batch_size(engine, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(engine.hf_model, "forward", full)
    with pytest.raises(OutOfMemory, match=r"Try batch_size=4 \(now 8\)"):
        engine.generate(ask())
    monkeypatch.setattr(engine, "batch_size", 1)
    with pytest.raises(OutOfMemory, match="smaller image, model or dtype"):
        engine.generate(ask())


@pytest.mark.parametrize("spec", ["greedy", "vcd", "vcd(beta=0)", "pai", "sid", "var", "opera"])
def test_a_batch_is_gone_as_soon_as_it_is_answered(engine, spec):
    """Its KV must not wait for Python's collector of cycles, which counts objects, not bytes."""
    sampling = hd.Sampling(max_new_tokens=3)
    gc.collect()
    gc.disable()
    try:
        engine.generate([ask(), ask(place=1)], spec, sampling)
        left = [each for each in gc.get_objects() if type(each) is RowCache]
    finally:
        gc.enable()
    assert not left


def _load(spec):
    """What an engine and its model leave: it answered and is nobody's any more."""
    engine = hd.load("testbed")
    if spec == "a stream left":
        next(iter(engine.stream(ask(), "vcd")))
    elif spec == "sinks":
        hd.sinks(engine, [ask()])
    elif spec == "heads":
        hd.head_sensitivity(engine, [ask(), ask(place=1)], metric="vhd")
    elif spec is not None:
        engine.generate([ask()], spec, hd.Sampling(max_new_tokens=2))
    return weakref.ref(engine), weakref.ref(engine.model)


@pytest.mark.parametrize("spec", [None, "vcd", "var", "vicrop", "a stream left", "sinks", "heads"])
def test_an_engine_that_nobody_holds_is_gone_with_its_model(spec):
    """The next model is loaded before Python's collector of cycles would run."""
    gc.collect()
    gc.disable()
    try:
        assert [kept() for kept in _load(spec)] == [None, None]
    finally:
        gc.enable()


def test_any_number_of_requests_keeps_its_order(engine):
    many = [ask(f"Question {i}?", i % 3) for i in range(19)]
    outputs = engine.generate(many, "m3id(lam=0.5,gate=1)", hd.Sampling(max_new_tokens=2))
    assert len(outputs) == 19
    for i in (0, 7, 8, 18):
        alone = engine.generate(many[i], "m3id(lam=0.5,gate=1)", hd.Sampling(max_new_tokens=2))[0]
        assert outputs[i].token_ids == alone.token_ids
    assert engine.generate([], "vcd") == []


def test_models_that_cannot_be_loaded_say_why(tmp_path, tmp_path_factory):
    cases = {
        str(tmp_path / "nowhere"): "no such model folder",
        str(tmp_path): "no config.json",
    }
    bare = tmp_path / "bare"
    shutil.copytree(families.family_path("llava", tmp_path_factory), bare)
    for name in (
        "processor_config.json",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
    ):
        (bare / name).unlink(missing_ok=True)
    cases[str(bare)] = "processor"
    for source, words in cases.items():
        with pytest.raises(InvalidModel, match=words) as caught:
            hd.load(source)
        assert "\n" not in str(caught.value)


def test_an_unknown_family_names_the_known_ones(engine):
    from types import SimpleNamespace

    from halludecode.models.families import family_of

    with pytest.raises(InvalidModel, match=r"'blip-9' has no layout; known: llava"):
        family_of(SimpleNamespace(model_type="blip-9"))


def test_a_checkpoint_without_a_template_uses_the_familys(engine, monkeypatch):
    with_template = engine.rows(ask())["main"].prompt
    monkeypatch.setattr(engine.processor, "chat_template", None)
    assert engine.rows(ask())["main"].prompt == "USER: <image>\nWhat is this? ASSISTANT:"
    assert with_template
    blind = engine.rows(ask(), "m3id")["blind"].prompt
    assert blind == "USER: What is this? ASSISTANT:"
    with pytest.raises(InvalidRequest, match="no chat template"):
        engine.rows(
            hd.Request([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        )


def test_loading_passes_options_through(tmp_path_factory):
    path = families.family_path("llava", tmp_path_factory)
    engine = hd.load(str(path), dtype="bfloat16", device="cpu", attn_implementation="eager")
    assert engine.model.dtype == torch.bfloat16
    assert engine.model.config.get_text_config()._attn_implementation == "eager"
    output = engine.generate(ask(), "var(dims=(3,40),tau=2.0)+vcd", hd.Sampling(max_new_tokens=3))[
        0
    ]
    assert len(output.token_ids) == 3
    assert engine.model.config.get_text_config()._attn_implementation == "eager"
    assert json.dumps(engine.describe())
    mapped = hd.load(str(path), device_map="cpu")
    assert mapped.generate(ask(), "vcd", hd.Sampling(max_new_tokens=2))[0].token_ids
    assert hd.load(str(path)).describe()["model_digest"] != engine.describe()["model_digest"]


def test_generate_takes_models_engines_and_sampling(engine):
    output = hd.generate(engine, "What is this?", families.pictures()[:1], "vcd", max_new_tokens=2)
    assert len(output.token_ids) == 2
    with pytest.raises(InvalidRequest, match="max_new_tokens"):
        hd.generate(engine, "x", max_tokens=3)
    own = hd.load(engine.model, processor=engine.processor)
    assert hd.generate(own, "What is this?", families.pictures()[:1], "vcd", max_new_tokens=2).text
    with pytest.raises(InvalidRequest, match="Unknown engine 'jax'"):
        hd.load("testbed", engine="jax")


def test_a_strategy_typed_in_a_notebook_runs(engine):
    @hd.strategy("blank_test", off={"alpha": 0.0})
    class Blank(hd.Strategy):
        """Add the logits of the image-free prompt."""

        alpha: float = hd.param(1.0, "weight", ge=0)

        def branches(self, prompt, state, m):
            from halludecode.core.branch import Branch

            return {"blind": Branch(prompt.without_images())}

        def combine(self, step):
            return step["main"] + self.alpha * step["blind"]

    try:
        blank = hd.get("blank_test", alpha=2)
        output = engine.generate(ask(), blank, hd.Sampling(max_new_tokens=3))[0]
        assert output.strategy == "blank_test(alpha=2.0)"
        assert output.rows == ("main", "blind")
        by_name = engine.generate(ask(), "blank_test(alpha=2)", hd.Sampling(max_new_tokens=3))[0]
        assert by_name.token_ids == output.token_ids
    finally:
        from halludecode.core.registry import STRATEGIES

        STRATEGIES._entries.pop("blank_test")


def test_wide_and_tall_pictures(family_engine):
    broken = BROKEN.get(transformers.__version__, {})
    for family in families.FAMILIES:
        if family in broken:
            with pytest.raises(InvalidModel, match=broken[family][0]):
                family_engine(family)
            continue
        engine = family_engine(family)
        for size in ((1, 1), (300, 7), (40, 500)):
            request = hd.Request("What?", [Image.new("RGB", size, (9, 80, 200))])
            try:
                output = engine.generate(request, "vcd", hd.Sampling(max_new_tokens=1))[0]
            except InvalidRequest as error:
                assert "cannot be preprocessed" in str(error)
            else:
                assert len(output.token_ids) == 1


def test_bad_loading_options_are_one_sentence(tmp_path_factory):
    path = str(families.family_path("llava", tmp_path_factory))
    for options, words in (
        ({"dtype": "float17"}, "dtype='float17'"),
        ({"device": "cuda:99"}, "cannot be used here"),
        ({"device": "abacus"}, "cannot be used here"),
    ):
        with pytest.raises(InvalidModel, match=words):
            hd.load(path, **options)
    with pytest.raises(InvalidModel, match="needs its processor"):
        hd.load(object())


def test_applied_gives_strategies_their_state(engine):
    @hd.strategy("stated_test")
    class Stated(hd.Strategy):
        """Ban the tokens its state names."""

        def prepare(self, activations, m):
            return {"banned": torch.arange(m.vocab_size) < m.vocab_size - 20}

        def combine(self, step):
            return step["main"].masked_fill(step.state["banned"], -torch.inf)

    try:
        text = families.FAMILIES["llava"].prompt("What is this?")
        inputs = engine.processor(text=[text], images=families.pictures()[:1], return_tensors="pt")
        with hd.applied(engine.model, engine.processor, Stated()):
            made = engine.model.generate(**inputs, max_new_tokens=3, do_sample=False)
        ours = engine.generate(ask(), Stated(), hd.Sampling(max_new_tokens=3))[0]
        assert made[0, -len(ours.token_ids) :].tolist() == list(ours.token_ids)
        assert min(ours.token_ids) >= engine.model_info.vocab_size - 20
    finally:
        from halludecode.core.registry import STRATEGIES

        STRATEGIES._entries.pop("stated_test")


@pytest.mark.parametrize("spec", ["vcd(beta=1.0)", "apc_only(beta=1.0)"])
def test_minimum_length_under_a_mask_that_would_leave_the_end_token_alone(testbed, spec):
    from halludecode.testbed import dataset

    path = min((dataset("testbed-iid", 60) / "images").iterdir())
    request = hd.Request("Is there a dog in the image? Please answer yes or no.", [path])
    sampling = hd.Sampling(max_new_tokens=8, min_new_tokens=8)
    masked = testbed.generate([request], spec, sampling)[0]
    assert len(masked.text.split()) > 4, "a banned token is not written in the end token's place"
