"""What the vLLM engine refuses in process: one sentence, nothing left behind, neighbours answered.

Over HTTP the same list is in ``tests/serve/test_refusals.py``.
"""

from __future__ import annotations

import io

import pytest
from PIL import Image

import halludecode as hd
from tests.serve.test_refusals import bomb
from tests.support import families
from tests.support.serving import png
from tests.support.vllm import requests, scheduler_of, worker_of

SHORT = hd.Sampling(max_new_tokens=4)
PICTURE = png(families.pictures()[0])


def asked(*images, words: str = "What is it?") -> hd.Request:
    return hd.Request(words, images or families.pictures()[:1])


def gif_of_nothing() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "GIF")
    return file.getvalue()[:20]


# name -> (request, strategy, sampling, class, what the sentence says)
BAD = {
    "unknown strategy": (asked(), "vdc", SHORT, hd.UnknownStrategy, "Did you mean 'vcd'"),
    "out of bounds": (asked(), "vcd(alpha=-1)", SHORT, hd.InvalidParameter, "alpha must be >= 0"),
    "unknown parameter": (asked(), "vcd(alfa=1)", SHORT, hd.InvalidParameter, "'alfa'"),
    "malformed": (asked(), "vcd(" + "(" * 300, SHORT, hd.HalluDecodeError, "vcd"),
    "needs more": (asked(), "opera", SHORT, hd.UnsupportedStrategy, "opera needs 'beam search'"),
    "larger than the cache": (
        asked(),
        "vcd+ritual+m3id",
        hd.Sampling(max_new_tokens=300),
        hd.InvalidRequest,
        r"may need \d+ blocks of 32 tokens .* there are \d+",
    ),
    "prompt too long": (asked(words="Why? " * 400), "vcd", SHORT, hd.InvalidRequest, "is 512"),
    "prompt too long, plain": (
        asked(words="Why? " * 400),
        "greedy",
        SHORT,
        hd.InvalidRequest,
        "is 512",
    ),
    "missing": (asked("/no/such.png"), "vcd", SHORT, hd.InvalidRequest, "no such image file"),
    "folder": (asked("/tmp"), "vcd", SHORT, hd.InvalidRequest, "cannot be read"),
    "empty": (asked(b""), "vcd", SHORT, hd.InvalidRequest, "is empty"),
    "truncated": (asked(PICTURE[:200]), "vcd", SHORT, hd.InvalidRequest, "damaged or cut short"),
    "no picture": (asked(b"hello" * 40), "vcd", SHORT, hd.InvalidRequest, "not a readable picture"),
    "half a header": (asked(gif_of_nothing()), "vcd", SHORT, hd.InvalidRequest, "image 1"),
    "wrong type": (asked(7), "vcd", SHORT, hd.InvalidRequest, "type int is no picture"),
    "too large": (asked(bomb(60000, 60000)), "vcd", SHORT, hd.InvalidRequest, "too large|60000"),
    "URL": (asked("http://x.org/a.png"), "vcd", SHORT, hd.InvalidRequest, "are not fetched"),
    "not base64": (asked("data:image/png;base64,%"), "vcd", SHORT, hd.InvalidRequest, "base64"),
    "one picture as such": (
        hd.Request("What?", "one.png"),
        "vcd",
        SHORT,
        hd.InvalidRequest,
        "give a list of pictures",
    ),
    "places": (
        asked(words="<image> <image> What?"),
        "vcd",
        SHORT,
        hd.InvalidRequest,
        "2 <image> placeholder",
    ),
    "role": (
        hd.Request([{"role": "bot", "content": "x"}]),
        "vcd",
        SHORT,
        hd.InvalidRequest,
        "role 'bot' must be",
    ),
    "empty prompt": (asked(words=" "), "vcd", SHORT, hd.InvalidRequest, "prompt is empty"),
}


@pytest.fixture(scope="module")
def tight(vllm_engine):
    return vllm_engine("testbed", tight="cut")


@pytest.fixture(autouse=True)
def idle(tight):
    """Nothing is left in the scheduler, the worker and the cache."""
    yield
    scheduler, state = scheduler_of(tight), worker_of(tight).model_runner.hd_state
    assert not (scheduler.groups or scheduler.requests or scheduler.running)
    assert not (state.states or state.records or state.captured)
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    assert free == scheduler.kv_cache_config.num_blocks - 1
    assert not tight.loaded.engine.output_processor.get_num_unfinished_requests()


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(tight, name):
    request, spec, sampling, kind, says = BAD[name]
    for call in (
        lambda: tight.generate([request], spec, sampling),
        lambda: list(tight.stream(request, spec, sampling)),
    ):
        with pytest.raises(kind, match=says) as caught:
            call()
        assert "\n" not in str(caught.value).strip() and "Traceback" not in str(caught.value)


def test_neighbours_of_what_is_refused_are_answered(tight):
    of_requests = [entry for entry in BAD.values() if entry[1] == "vcd" and entry[2] is SHORT]
    given = [one for entry in of_requests for one in (entry[0], requests(1)[0])]
    made = tight.generate_each(given, "vcd", SHORT)
    want = tight.generate(requests(1), "vcd", SHORT)[0].token_ids
    for entry, wrong, right in zip(of_requests, made[::2], made[1::2], strict=True):
        assert isinstance(wrong, entry[3]), wrong
        assert right.token_ids == want


def test_more_answers_than_slots_wait_for_their_turn(tight, testbed):
    """Twenty answers of two rows each, in twelve slots."""
    sampling = hd.Sampling(max_new_tokens=6, temperature=1.0, seed=1, n=20)
    ours, hf = (engine.generate(requests(1), "vcd", sampling)[0] for engine in (tight, testbed))
    assert [c.token_ids for c in ours.choices] == [c.token_ids for c in hf.choices]
    assert scheduler_of(tight).max_num_running_reqs == 12


def test_sampling_out_of_bounds_is_one_sentence():
    for given in ({"temperature": -1}, {"n": 2}, {"top_p": 0}, {"max_new_tokens": 0}):
        with pytest.raises(hd.InvalidParameter, match=next(iter(given))):
            hd.Sampling(**given)
