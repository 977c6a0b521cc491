"""What a request says to the chat template: roles, arguments, a message to go on with."""

from __future__ import annotations

import json

import pytest

import halludecode as hd
from halludecode.core.errors import InvalidRequest
from halludecode.core.prompt import Prompt, Turn
from tests.support import families

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TEMPLATE = """{%- for message in messages -%}
[{{ message.role }}{% if message.tool_calls %} {{ message.tool_calls[0].function.arguments.a }}
{%- endif %}]
{%- if message.content is string -%}{{ message.content }}{%- else -%}
{%- for part in message.content or [] -%}
{%- if part.type == 'image' -%}<image>{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}{%- endif -%}</s>
{%- endfor -%}
{%- if enable_thinking is defined and not enable_thinking -%}(no thinking){%- endif -%}
{%- if add_generation_prompt -%}[assistant]{%- endif -%}"""


@pytest.fixture
def engine(family_engine, monkeypatch):
    found = family_engine("llava")
    monkeypatch.setattr(found.processor, "chat_template", TEMPLATE)
    return found


def said(engine, messages, **more) -> str:
    row = engine.rows(hd.Request(messages, [families.pictures()[0]], **more))["main"]
    return row.prompt


BLANK = {"role": "assistant", "content": " "}
ASK = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}


def test_roles_of_today(engine):
    chat = [
        {"role": "developer", "content": "Be brief."},
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": [
            {"type": "text", "text": "A"}, {"type": "text", "text": "B"}]},
    ]  # fmt: skip
    assert said(engine, chat) == (
        "[developer]Be brief.</s>[user]<image>What?</s>[assistant 1]</s>[tool]A\nB</s>[assistant]"
    )


def test_arguments_and_open_ends(engine):
    told = {"enable_thinking": False, "nobody_reads_it": 3}
    assert said(engine, [ASK], chat_template_kwargs=told).endswith("</s>(no thinking)[assistant]")
    bare = said(engine, [ASK], chat_template_kwargs={"add_generation_prompt": False})
    assert bare == "[user]<image>What?</s>"
    begun = [ASK, {"role": "assistant", "content": "It is"}]
    assert said(engine, begun, continue_final_message=True) == (
        "[user]<image>What?</s>[assistant]It is"
    )
    words = engine.rows(hd.Request("What?", [families.pictures()[0]], told))["main"].prompt
    assert words.endswith("(no thinking)[assistant]")


def test_every_strategys_rows_are_told_the_same(engine):
    request = hd.Request([ASK], [families.pictures()[0]], {"enable_thinking": False})
    for spec in ("m3id", "vcd"):
        for row in engine.rows(request, spec).values():
            assert "(no thinking)" in row.prompt
    keys = {Prompt((Turn("user", ("a",)),), template=told).key for told in ("", "{}", '{"a": 1}')}
    assert len(keys) == 3
    asked = Prompt((Turn("user", ("a",)),), template="{}", open_ended=True, opened=False)
    assert asked.with_instruction("b") == Prompt((Turn("user", ("b",)),), template="{}")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"chat_template_kwargs": {"chat_template": "x"}}, "'chat_template' cannot be set there"),
        ({"chat_template_kwargs": [1]}, "must be values by name"),
        ({"chat_template_kwargs": {"a": object()}}, "give plain values"),
        ({"chat_template_kwargs": {"add_generation_prompt": 1}}, "must be true or false"),
        ({"continue_final_message": True, "prompt": [ASK, BLANK]}, "end with the words to go on"),
        ({"continue_final_message": True, "prompt": "<image> a"}, "used as it stands"),
        ({"prompt": [{"role": "assistant", "tool_calls": [{"a": 1}]}]}, "arguments of tools JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_one_sentence(engine, more, says):
    asked = {"prompt": [ASK], "images": [families.pictures()[0]], **more}
    with pytest.raises(InvalidRequest, match=says):
        engine.rows(hd.Request(**asked))


def test_a_template_that_refuses_says_why(engine, monkeypatch):
    refusing = "{{ raise_exception('Only users speak here.') }}"
    monkeypatch.setattr(engine.processor, "chat_template", refusing)
    with pytest.raises(InvalidRequest, match=r"does not take this chat: Only users speak here\."):
        said(engine, [ASK])


def test_a_server_is_sent_the_same():
    from halludecode.engines.server.openai_format import body_of

    chat = [ASK, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "A"}]
    told = {"enable_thinking": False, "add_generation_prompt": False}
    request = hd.Request(chat, [families.pictures()[0]], told)
    sampling = hd.Sampling(bad_words=["a"], logit_bias={3: 1.0}, allowed_token_ids=[4])
    body = body_of(request, "vcd", sampling, (), "m", "<image>")
    assert json.loads(body["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
    assert body["logit_bias"] == {"3": 1.0}
    extra = body["extra_body"]
    assert extra["chat_template_kwargs"] == {"enable_thinking": False}
    assert (extra["add_generation_prompt"], extra["allowed_token_ids"]) == (False, [4])
    assert extra["bad_words"] == ["a"]
    begun = hd.Request([*chat, {"role": "assistant", "content": "b"}], continue_final_message=True)
    begun = hd.Request(begun.prompt, [families.pictures()[0]], continue_final_message=True)
    sent = body_of(begun, "vcd", hd.Sampling(), (), "m", "<image>")["extra_body"]
    assert sent["continue_final_message"] is True
