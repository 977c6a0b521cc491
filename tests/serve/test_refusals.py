"""What the server refuses: one sentence, the right status, and it goes on answering."""

from __future__ import annotations

import asyncio
import struct
import zlib

import httpx
import openai
import pytest
from PIL import Image

from tests.serve.conftest import DEFAULT
from tests.support import families
from tests.support.serving import KEY, ask, body, data_url, picture_url, png

LONG = "Why? " * 400
BEARER = {"Authorization": f"Bearer {KEY}"}
OPEN = ("/health", "/ping", "/version", "/metrics", "/load")
BOT = {"role": "bot", "content": "x"}
PICTURE = png(families.pictures()[0])
LARGE = data_url(png(Image.new("RGB", (1000, 900), "red")))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    made = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + made


def noise() -> bytes:
    return png(Image.effect_noise((800, 800), 200))


# name -> (what of the request, status, what the sentence says)
BAD = {
    "unknown strategy": ({"strategy": "vdc"}, 400, "Unknown strategy 'vdc'. Did you mean 'vcd'"),
    "out of bounds": ({"strategy": "vcd(alpha=-1)"}, 400, "alpha must be >= 0"),
    "unknown parameter": ({"strategy": "vcd(alfa=1)"}, 400, "no parameter 'alfa'"),
    "malformed": ({"strategy": "vcd(" + "(" * 300}, 400, "vcd"),
    "endless": ({"strategy": "+".join(["vcd"] * 400)}, 400, "at most 1000"),
    "no text": ({"extra_body": {"vllm_xargs": {"strategy": 5}}}, 400, "must be text"),
    "beside": (
        {"extra_body": {"vllm_xargs": {"strategy": "vcd", "alpha": 2}}},
        400,
        "belong inside",
    ),
    "needs more": ({"strategy": "opera"}, 400, "opera needs 'beam search'; engine 'vllm'"),
    "not allowed": ({"strategy": "pai"}, 400, "'pai' is not allowed on this server; allowed:"),
    "two names": ({"model": "testbed:vcd", "strategy": "vhr"}, 400, "name one"),
    "unknown alias": ({"model": "testbed:nope"}, 400, "Unknown strategy 'nope'"),
    "unknown model": ({"model": "other"}, 404, "does not exist"),
    "too many rows": (
        {"strategy": "vcd", "n": 5, "temperature": 1.0},
        400,
        r"takes 10 rows \(2 each\), this server allows 8",
    ),
    "larger than the cache": (
        {"strategy": "vcd+ritual+m3id", "max_tokens": 400},
        400,
        r"may need \d+ blocks of 32 tokens .* there are 59",
    ),
    "prompt too long": ({"words": LONG, "strategy": "vcd"}, 400, "context is 512"),
    "prompt too long, plain": ({"words": LONG, "strategy": "greedy"}, 400, "512"),
    "no image bytes": ({"url": "data:image/png;base64,"}, 400, "is empty"),
    "not base64": ({"url": "data:image/png;base64,%%%"}, 400, "not valid base64"),
    "not a data URL": ({"url": "data:image/png,abc"}, 400, "not a base64 data URL"),
    "no URL": ({"url": "somewhere/one.png"}, 400, "must start with data:"),
    "truncated": ({"url": data_url(PICTURE[: len(PICTURE) // 2])}, 400, "damaged or cut short"),
    "no picture": ({"url": data_url(b"hello" * 40)}, 400, "not a readable picture"),
    "too many bytes": ({"url": data_url(noise())}, 400, r"bytes, this server accepts 262,144"),
    "too many pixels": ({"url": data_url(bomb(1200, 1200))}, 400, "1200 x 1200 pixels"),
    "bomb": ({"url": data_url(bomb(60000, 60000))}, 400, "too large|60000 x 60000"),
    "too many images": (
        {"urls": [picture_url()] * 3, "strategy": "vcd"},
        400,
        "3 images, this server accepts 2",
    ),
    "domain": ({"url": "http://localhost:1/one.png"}, 400, "'localhost' are not allowed"),
    "user part": ({"url": "http://127.0.0.1@localhost:1/a.png"}, 400, "'localhost'"),
    "no such page": ({"url": "{web}/none.png"}, 422, "404"),
    "redirect": ({"url": "{web}/moved.png"}, 400, "redirects are not followed"),
    "long download": ({"url": "{web}/long.png"}, 400, "more than the 262,144 bytes"),
    "closed port": ({"url": "http://127.0.0.1:1/one.png"}, 422, "could not be fetched"),
    "outside": ({"url": "file://{folder}/../outside.png"}, 400, "outside the folder"),
    "escaped": ({"url": "file://{folder}/%2e%2e/outside.png"}, 400, "outside the folder"),
    "link": ({"url": "file://{folder}/link.png"}, 400, "outside the folder"),
    "missing file": ({"url": "file://{folder}/none.png"}, 400, "No such image file: none.png"),
    "tools": (
        {
            "strategy": "vcd",
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        },
        400,
        "tools is not served with strategy vcd",
    ),
    "structured, of no word here": (
        {"strategy": "vcd", "response_format": {"type": "json_object"}},
        400,
        "every token is banned",
    ),
    "an image part without one": ({"parts": [{"type": "image_url"}]}, 400, None),
    "an image part of nothing": (
        {"parts": [{"type": "image_url", "image_url": {"url": ""}}]},
        400,
        "must start with data:",
    ),
    "sound": (
        {"parts": [{"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AA"}}]},
        400,
        "a part must be text, image_url or input_image, not 'audio_url'",
    ),
    "video": (
        {"parts": [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA"}}]},
        400,
        "a part is a video, and only pictures are read: take frames from it",
    ),
    "role": ({"messages": [BOT, *ask("And this?", picture_url())]}, 400, "role 'bot' must be"),
    "no tokens": ({"max_tokens": 0}, 400, r"max_tokens=0: it must be in \[1, 512\]"),
    "fewer than none": ({"max_tokens": -5}, 400, r"max_tokens=-5: it must be in \[1, 512\]"),
    "endless answer": ({"max_tokens": 10**9}, 400, r"it must be in \[1, 512\]"),
    "no answers": ({"n": 0}, 400, r"n=0: it must be in \[1, 16\]"),
    "300 answers": ({"n": 300, "temperature": 1.0}, 400, r"n=300: it must be in \[1, 16\]"),
    "enormous": ({"strategy": "vcd(alpha=1e308)"}, 400, r"alpha must be at most 1e\+30 in size"),
    "map": ({"strategy": "vhr(map='/dev/zero')"}, 400, "may not name files of the server"),
    "text without text": (
        {"parts": [{"type": "image_url", "image_url": {"url": picture_url()}}, {"type": "text"}]},
        400,
        "message 1: a part of type 'text' needs its text",
    ),
    "a misspelt part": (
        {"parts": [{"type": "text", "tetx": "a"}]},
        400,
        "a part has a field 'tetx', which nobody reads. Did you mean 'text'",
    ),
    "a misspelt message": (
        {"messages": [{"role": "user", "content": "a", "nmae": "b"}]},
        400,
        "message 1 has a field 'nmae', which nobody reads. Did you mean 'name'",
    ),
    "misspelt": ({"extra_body": {"temprature": 1}}, 400, "Did you mean 'temperature'"),
    "misspelt strategy": (
        {"extra_body": {"vllm_xargs": {"strategyy": "vcd"}}},
        400,
        "'strategyy', which nobody reads. Did you mean 'strategy'",
    ),
    "strategy on top": ({"extra_body": {"strategy": "vcd"}}, 400, "belongs into vllm_xargs"),
    "an old name": (
        {"extra_body": {"guided_choice": ["yes", "no"]}},
        400,
        "guided_choice is no field any more; send structured_outputs: {'choice'",
    ),
    "zero is said": ({"extra_body": {"prompt_logprobs": 0}}, 400, "prompt_logprobs is not served"),
    "another beginning": (
        {"extra_body": {"add_special_tokens": False}},
        400,
        "rows of a strategy begin as the model's own processor begins",
    ),
    "told twice": (
        {"extra_body": {"chat_template_kwargs": {"add_generation_prompt": False}}},
        400,
        "add_generation_prompt is a field of the request",
    ),
    "another template": (
        {"extra_body": {"chat_template_kwargs": {"chat_template": "x"}}},
        400,
        "'chat_template' cannot be set there",
    ),
    "placeholder": ({"words": "What does <image> mean?"}, 400, "holds 2 image placeholder"),
    "no such token": ({"extra_body": {"allowed_token_ids": [10**6]}}, 400, "is no token of this"),
    "nothing allowed": ({"extra_body": {"allowed_token_ids": []}}, 400, "one token id at least"),
    "an empty word": ({"extra_body": {"bad_words": [""]}}, 400, "empty"),
    "a bias beyond": (
        {"logit_bias": {"20": 500}},
        400,
        r"500 of token 20 must be in \[-100, 100\]",
    ),
    "a bias of no token": ({"logit_bias": {"dog": 1}}, 400, "'dog' is no token id"),
    "a long file name": ({"url": "file://{folder}/" + "a" * 3000}, 400, "No such image file: aaa"),
    "a folder": ({"url": "file://{folder}/folder"}, 400, "No such image file: folder"),
    "a file too long": ({"url": "file://{folder}/long.png"}, 400, "400,000 bytes, this server"),
    "half an address": ({"url": "http://[::1"}, 400, "The image URL cannot be read"),
    "trickled": ({"url": "{web}/slow.png"}, 422, "not within 1.5 s"),
    "pixels together": (
        {"urls": [LARGE, LARGE]},
        400,
        "more than the 1,500,000 pixels together that this server accepts",
    ),
    "reserved": ({"extra_body": {"vllm_xargs": {"hd": "x"}}, "plain": True}, 400, "reserved"),
    "equal answers": ({"strategy": "vcd", "n": 2}, 400, "greedy"),
}


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def asked_of(what: dict, served) -> dict:
    what = dict(what)
    words = what.pop("words", "Describe the image.")
    urls = what.pop("urls", None) or [what.pop("url", picture_url())]
    named = "extra_body" in what or what.get("model", "testbed") != "testbed"
    if "strategy" not in what and not named:
        what["strategy"] = "vcd"
    parts = what.pop("parts", None)
    if parts:
        words_part = {"type": "text", "text": words}
        what["messages"] = [{"role": "user", "content": [*parts, words_part]}]
    if what.pop("plain", False):
        what["model"] = "testbed:greedy"
    places = {"{web}": served.web, "{folder}": str(served.folder)}
    for name, value in places.items():
        urls = [url.replace(name, value) for url in urls]
    return body(words, *urls, **what)


STREAMED = ("unknown strategy", "too many rows", "larger than the cache", "truncated", "domain")


@pytest.mark.parametrize(
    ("name", "stream"), [*((name, False) for name in BAD), *((name, True) for name in STREAMED)]
)
def test_bad_input_is_one_sentence_with_the_right_status(served, client, name, stream):
    what, status, says = BAD[name]
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**asked_of(what, served), stream=stream)
    assert caught.value.status_code == status, caught.value.message
    sentence = caught.value.body["message"]
    assert "Traceback" not in sentence and "\n" not in sentence.strip()
    assert str(served.folder) not in sentence
    if says is not None:
        caught.match(says)


ALIKE = (
    *("bomb", "truncated", "outside", "domain", "too many bytes", "pixels together", "trickled"),
    *("no tokens", "no answers", "300 answers", "misspelt", "strategy on top", "an old name"),
    *("text without text", "a misspelt part", "placeholder", "no such token", "a bias beyond"),
    *("structured, of no word here", "a file too long", "half an address", "nothing allowed"),
)


@pytest.mark.parametrize("name", ALIKE)
def test_plain_requests_keep_to_the_same_limits(served, client, name):
    what, status, says = BAD[name]
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**asked_of({**what, "strategy": "greedy"}, served))
    assert caught.value.status_code == status
    caught.match("image placeholder" if name == "placeholder" else says)


def test_other_endpoints_refuse_strategies(client):
    with pytest.raises(openai.BadRequestError, match="/v1/chat/completions only"):
        client.completions.create(
            model="testbed", prompt="a", extra_body={"vllm_xargs": {"strategy": "vcd"}}
        )
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="testbed:greedy", prompt="a")
    picture = {"type": "input_image", "image_url": picture_url(), "detail": "auto"}
    words = {"type": "input_text", "text": "What is it?"}
    asked = {"model": "testbed", "max_output_tokens": 5}
    with pytest.raises(openai.BadRequestError, match="/v1/chat/completions only"):  # the default
        client.responses.create(input=[{"role": "user", "content": [picture, words]}], **asked)
    assert client.responses.create(input=[{"role": "user", "content": [words]}], **asked).output


def test_all_of_v1_needs_the_key(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(**body(strategy="vcd"))
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    for path in ("/health", "/metrics"):
        assert httpx.get(served.url + path).status_code == 200
    asked = {"model": "testbed", "prompt": "a", "messages": [], "text_1": "a", "text_2": ["b"]}
    for path in httpx.get(f"{served.url}/openapi.json", headers=BEARER).json()["paths"]:
        for method in ("GET", "POST", "DELETE"):
            status = httpx.request(method, served.url + path, json=asked).status_code
            known = path in OPEN and method == "GET"
            assert status == (200 if known else 401), (method, path)


def test_a_request_may_not_name_a_file_at_any_route(served):
    for route in ("/v1/halludecode/plan", "/v1/halludecode/plan/"):
        for file in ("/dev/zero", "/etc/hostname", "/no/such/file"):
            query = {"strategy": f"vhr(map={file!r})"}
            answer = httpx.get(
                served.url + route, params=query, headers=BEARER, follow_redirects=True
            )
            assert answer.status_code == 400
            assert "may not name files of the server" in answer.json()["error"]["message"]
    long = httpx.get(
        f"{served.url}/v1/halludecode/plan",
        params={"strategy": "vcd" + "+vcd" * 400},
        headers=BEARER,
    )
    assert "at most 1000 are read" in long.json()["error"]["message"]


def test_a_request_longer_than_its_pictures_could_be_is_cut_off(served):
    head = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    url = f"{served.url}/v1/chat/completions"
    answer = httpx.post(url, headers=head, content=b'{"x": "' + b"0" * 6_000_000, timeout=120)
    assert answer.status_code == 413
    assert "bytes this server accepts" in answer.json()["error"]["message"]


def test_more_answers_than_the_operator_allows_at_a_time_are_429(served):
    async def one(client):
        more = {"max_tokens": 100, "n": 2, "temperature": 1.0, "extra_body": {"ignore_eos": True}}
        try:
            return (await client.chat.completions.create(**body(strategy="vcd", **more))).strategy
        except openai.RateLimitError as error:
            assert "16 at a time" in error.body["message"]
            return None

    async def every():
        url = f"{served.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            return await asyncio.gather(*[one(client) for _ in range(14)])

    answers = asyncio.run(every())
    assert None in answers and sum(answer is not None for answer in answers) >= 8


def test_the_engine_is_alive_after_all_of_it(served, client):
    made = client.chat.completions.create(**body())
    assert made.strategy.startswith(DEFAULT.split("(")[0])
    assert made.choices[0].token_ids
    assert served.process.poll() is None
