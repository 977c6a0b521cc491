"""The vLLM engine answers as the HF engine does: rows, sampling, stops, logprobs, streams."""

from __future__ import annotations

import pytest

import halludecode as hd
from tests.support import families
from tests.support.vllm import V2, requests, same, scheduler_of

ROWS = ["greedy", "vcd", "m3id", "ritual", "apc_only", "scaled(scale=2.0)", "vcd+ritual+m3id"]
GREEDY = hd.Sampling(max_new_tokens=10, logprobs=3)
SAMPLED = hd.Sampling(
    max_new_tokens=10,
    min_new_tokens=4,
    temperature=1.2,
    top_p=0.9,
    top_k=50,
    repetition_penalty=1.2,
    seed=5,
    logprobs=3,
)


@pytest.fixture(scope="module")
def engines(vllm_engine, testbed):
    return vllm_engine("testbed"), testbed


@pytest.mark.parametrize("spec", ROWS)
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_row_strategies_give_the_tokens_of_the_hf_engine(engines, spec, sampling):
    ours, hf = engines
    a = ours.generate(requests(), spec, sampling, score_words=("yes", "no"))
    b = hf.generate(requests(), spec, sampling, score_words=("yes", "no"))
    for x, y in zip(a, b, strict=True):
        assert same(x, y)
        assert (x.effect, x.strategy) == (y.effect, y.strategy)
        # Without those that no token needed; V2 begins all with the prompt.
        assert x.rows == (ours.plan(spec).rows if V2 else y.rows)
        assert x.scores == pytest.approx(y.scores, abs=1e-3)


def test_n_answers_are_those_of_the_hf_engine(engines):
    sampling = hd.Sampling(max_new_tokens=8, temperature=2.0, seed=3, n=3)
    a, b = (engine.generate(requests(2), "m3id", sampling) for engine in engines)
    for x, y in zip(a, b, strict=True):
        assert [c.token_ids for c in x.choices] == [c.token_ids for c in y.choices]
    assert len({c.token_ids for x in a for c in x.choices}) > 2


def test_stop_strings_end_where_the_hf_engine_ends(engines):
    plain = engines[1].generate(requests(1), "greedy", hd.Sampling(max_new_tokens=12))[0]
    stop = plain.text[3:6]
    sampling = hd.Sampling(max_new_tokens=12, stop=stop)
    a, b = (engine.generate(requests(1), "greedy", sampling)[0] for engine in engines)
    assert (a.text, a.token_ids, a.finish_reason) == (b.text, b.token_ids, b.finish_reason)
    assert a.finish_reason == "stop" and stop not in a.text


def test_chats_with_several_pictures_and_without(engines):
    p = families.pictures()
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And this?"}]},
    ]
    asked = [hd.Request(turns, p[:2]), hd.Request("Is it red?"), hd.Request("Both?", p[1:])]
    for spec in ("greedy", "vcd"):
        a, b = (engine.generate(asked, spec, GREEDY) for engine in engines)
        for x, y in zip(a, b, strict=True):
            assert same(x, y)
            assert x.warnings == y.warnings


def test_a_stream_ends_with_the_output_of_generate(engines):
    ours = engines[0]
    whole = ours.generate(requests(1), "vcd", hd.Sampling(max_new_tokens=10))[0]
    chunks = list(ours.stream(requests(1)[0], "vcd", hd.Sampling(max_new_tokens=10)))
    assert "".join(c.text for c in chunks) == whole.text
    assert sum((c.token_ids for c in chunks), ()) == whole.token_ids
    assert chunks[-1].output.token_ids == whole.token_ids
    assert len(chunks) > 2


def test_a_dropped_stream_leaves_nothing_behind(engines):
    ours = engines[0]
    stream = ours.stream(requests(1)[0], "vcd", hd.Sampling(max_new_tokens=40))
    next(stream)
    stream.close()
    ours.generate(requests(1), "greedy", hd.Sampling(max_new_tokens=2))
    scheduler = scheduler_of(ours)
    assert not scheduler.groups and not scheduler.requests and not scheduler.running


def test_rows_show_what_is_fed(engines):
    a, b = (engine.rows(requests(1)[0], "vcd") for engine in engines)
    assert a.keys() == b.keys()
    for name, row in a.items():
        assert row.input_ids.tolist() == b[name].input_ids.tolist()
        assert (row.pixel_values == b[name].pixel_values).all()


def test_a_request_that_can_never_fit_is_refused_with_numbers(engines, vllm_engine):
    tight = vllm_engine("testbed", tight="cut")
    with pytest.raises(hd.InvalidRequest, match=r"context is 512"):
        tight.generate(hd.Request("Why? " * 400, families.pictures()[:1]), "vcd")
    with pytest.raises(hd.InvalidRequest, match=r"blocks of 32 tokens .* there are \d+"):
        tight.generate(requests(1), "vcd+ritual+m3id", hd.Sampling(max_new_tokens=300))


def test_what_is_not_served_is_refused_by_name(engines):
    with pytest.raises(hd.UnsupportedStrategy, match=r"'beam search'.*'vllm'"):
        engines[0].generate(requests(1), "opera")


def test_wrong_options_and_names_are_one_sentence():
    with pytest.raises(hd.InvalidRequest, match="no_such_option"):
        hd.load("testbed", engine="vllm", no_such_option=1)
    with pytest.raises(hd.InvalidRequest, match="worker_cls"):
        hd.load("testbed", engine="vllm", worker_cls="x.Y")
    with pytest.raises(hd.InvalidModel, match="no such model folder"):
        hd.load("./no/such/folder", engine="vllm")


def test_a_stream_loses_nothing_to_what_is_asked_meanwhile(engines):
    ours = engines[0]
    sampling = hd.Sampling(max_new_tokens=12, min_new_tokens=11)
    whole = ours.generate(requests(2)[1], "vcd", sampling)[0]
    stream = ours.stream(requests(2)[1], "vcd", sampling)
    chunks = [next(stream)]
    between = ours.generate(requests(1), "m3id", sampling)[0]
    chunks += list(stream)
    assert "".join(c.text for c in chunks) == whole.text
    assert chunks[-1].output.token_ids == whole.token_ids
    assert between.token_ids == ours.generate(requests(1), "m3id", sampling)[0].token_ids


def test_threads_take_turns(engines):
    from concurrent.futures import ThreadPoolExecutor

    ours = engines[0]
    sampling = hd.Sampling(max_new_tokens=8, min_new_tokens=7)
    specs = ["vcd", "greedy", "pai", "agla"]
    wanted = [ours.generate(requests(2), spec, sampling) for spec in specs]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda spec: ours.generate(requests(2), spec, sampling), specs))
    for a, b in zip(made, wanted, strict=True):
        assert [x.token_ids for x in a] == [y.token_ids for y in b]
