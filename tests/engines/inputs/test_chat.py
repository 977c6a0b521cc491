"""Requests become prompts: plain words, raw templates, chats; counts must match."""

from __future__ import annotations

import pytest
from PIL import Image

from halludecode.core.errors import InvalidRequest
from halludecode.engines.api import Request
from halludecode.engines.inputs.chat import to_prompt

A, B = (Image.new("RGB", (3, 3), (c, 0, 0)) for c in (1, 2))


def parts(request: Request) -> list[list[str]]:
    prompt = to_prompt(request, "<image>")
    return [[p if isinstance(p, str) else "#" for p in turn.parts] for turn in prompt.turns]


def test_words_come_after_their_pictures():
    assert parts(Request("What?", [A, B])) == [["#", "#", "What?"]]
    assert parts(Request("Hello")) == [["Hello"]]


def test_a_placeholder_makes_a_raw_prompt():
    raw = to_prompt(Request("USER: <image>\nWhat? <image>", [A, B]), "<image>")
    assert raw.raw
    assert [p for p in raw.turns[0].parts if isinstance(p, str)] == ["USER: ", "\nWhat? "]


def test_chats_place_pictures():
    text = {"type": "text", "text": "x"}
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [text, {"type": "image"}]},
    ]
    assert parts(Request(chat, [A])) == [["s"], ["x", "#"]]
    inline = [{"role": "user", "content": [{"type": "image", "image": A}, text]}]
    assert parts(Request(inline)) == [["#", "x"]]
    assert parts(Request([{"role": "user", "content": "x"}], [A, B])) == [["#", "#", "x"]]
    import base64
    import io

    out = io.BytesIO()
    A.save(out, "PNG")
    url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    openai = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, text]}]
    assert parts(Request(openai)) == [["#", "x"]]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("  "), "empty"),
        (Request("a <image> b <image>", [A]), "2 <image> placeholder.* 1 image"),
        (Request([]), "no messages"),
        (Request([{"role": "bot", "content": "x"}]), "message 1: role 'bot'"),
        (Request([{"role": "user", "content": 5}]), "content must be text"),
        (Request([{"role": "user", "content": [{"type": "audio"}]}]), "not 'audio'"),
        (
            Request([{"role": "user", "content": [{"type": "video_url"}]}]),
            "message 1: a part is a video, .* frames .* as pictures, in order",
        ),
        (Request([{"role": "user", "content": [{"type": "image"}]}]), "more image places"),
        (
            Request([{"role": "user", "content": [{"type": "image"}]}], [A, B]),
            "1 image place.* 2 image",
        ),
        (Request("x", A), "give a list"),
    ],
)
def test_bad_requests_say_what_is_wrong(request_, words):
    with pytest.raises(InvalidRequest, match=words):
        to_prompt(request_, "<image>")
