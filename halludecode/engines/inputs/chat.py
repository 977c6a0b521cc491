"""From a `Request` to a `Prompt`: chat messages, plain words, or text in the model's template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from halludecode.core.errors import InvalidRequest
from halludecode.core.prompt import Part, Picture, Prompt, Turn
from halludecode.engines.api import Request
from halludecode.engines.inputs.parts import GivenPictures

ROLES = ("system", "developer", "user", "assistant", "tool")
MORE = ("name", "tool_calls", "tool_call_id", "reasoning")  # of a message, for templates
# What a request says elsewhere, or what would change more than the words of a prompt.
RESERVED = frozenset(
    {
        *("conversation", "messages", "chat_template", "tokenize", "continue_final_message"),
        *("tools", "processor_kwargs", "return_dict", "return_tensors", "padding", "truncation"),
    }
)


def to_prompt(request: Request, placeholder: str) -> Prompt:
    """Resolve a request's pictures and put them in their places.

    Raises:
        InvalidRequest: Bad picture or message, or a picture count that does not match the
            placeholders.
    """
    if isinstance(request.images, str | bytes) or not isinstance(request.images, Sequence):
        raise InvalidRequest("Request(images=...): give a list of pictures, also for a single one.")
    given = GivenPictures(request)
    if isinstance(request.prompt, str):
        prompt = _from_text(request.prompt, given.all, placeholder)
    elif isinstance(request.prompt, Sequence):
        prompt = _from_messages(request.prompt, given)
    else:
        kind = type(request.prompt).__name__
        raise InvalidRequest(f"Request(prompt=...): give text or chat messages, not {kind}.")
    return _under_template(prompt, request)


def _under_template(prompt: Prompt, request: Request) -> Prompt:
    """The prompt with what its request says to the chat template."""
    told = request.chat_template_kwargs
    if not told and not request.continue_final_message:
        return prompt
    if prompt.raw:
        raise InvalidRequest(
            "The prompt holds the model's placeholder, so it is used as it stands, without the "
            "chat template that chat_template_kwargs and continue_final_message are for; leave "
            "the placeholder or them out."
        )
    if request.continue_final_message:
        parts = prompt.turns[-1].parts
        text = parts[-1] if parts else None
        if not isinstance(text, str) or not text.strip():
            raise InvalidRequest(
                "continue_final_message: the last message must end with the words to go on from."
            )
    rest, opened = _told(told or {})
    open_ended = bool(request.continue_final_message)
    return replace(prompt, template=rest, open_ended=open_ended, opened=opened)


def _told(told: Mapping[str, Any]) -> tuple[str, bool]:
    """Arguments of the chat template as JSON, and whether it opens the answer's turn."""
    if not isinstance(told, Mapping) or not all(isinstance(name, str) for name in told):
        raise InvalidRequest(f"chat_template_kwargs must be values by name, not {told!r}.")
    given = dict(told)
    opened = given.pop("add_generation_prompt", True)
    if not isinstance(opened, bool):
        raise InvalidRequest(f"add_generation_prompt must be true or false, not {opened!r}.")
    taken = sorted(RESERVED & given.keys())
    if taken:
        raise InvalidRequest(
            f"chat_template_kwargs: {taken[0]!r} cannot be set there; it holds what the template's "
            "own words read, such as enable_thinking."
        )
    try:
        return json.dumps(given, sort_keys=True) if given else "", opened
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"chat_template_kwargs: {error}; give plain values.") from None


def _from_text(text: str, pictures: list[Picture], placeholder: str) -> Prompt:
    if not text.strip():
        raise InvalidRequest("The prompt is empty; ask something.")
    pieces = text.split(placeholder)
    if len(pieces) == 1:
        return Prompt((Turn("user", (*pictures, text)),))
    if len(pieces) - 1 != len(pictures):
        raise InvalidRequest(
            f"The prompt has {len(pieces) - 1} {placeholder} placeholder(s) but {len(pictures)} "
            "image(s) were given; make the counts equal, or leave the placeholders out."
        )
    parts: list[Part] = [pieces[0]]
    for picture, piece in zip(pictures, pieces[1:], strict=True):
        parts += [picture, piece]
    return Prompt((Turn("user", tuple(part for part in parts if part != "")),), raw=True)


def _from_messages(messages: Sequence[Mapping[str, Any]], given: GivenPictures) -> Prompt:
    if not messages:
        raise InvalidRequest("The prompt has no messages; give at least one user turn.")
    turns = [_turn(message, f"message {i + 1}", given) for i, message in enumerate(messages)]
    rest = tuple(given.left())
    if rest and not (given.used or given.inline):  # no place named: first in the first user turn
        first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
        if first is not None:
            turns[first] = replace(turns[first], parts=(*rest, *turns[first].parts))
            return Prompt(tuple(turns))
    if rest:
        named = f" and name {given.inline} image(s) themselves" if given.inline else ""
        raise InvalidRequest(
            f"The messages have {given.used} image place(s){named} but {len(given.all)} image(s) "
            'were given; a place is {"type": "image"}.'
        )
    return Prompt(tuple(turns))


def _turn(message: Mapping[str, Any], where: str, given: GivenPictures) -> Turn:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ROLES:
        raise InvalidRequest(f"{where}: role {role!r} must be one of {', '.join(ROLES)}.")
    more = _more(message, where)
    content = message.get("content")
    if content is None and "tool_calls" in more:
        return Turn(role, (), more)
    if isinstance(content, str):
        return Turn(role, (content,), more)
    if not isinstance(content, Sequence):
        raise InvalidRequest(f"{where}: content must be text or a list of parts.")
    return Turn(role, tuple(given.read(part, where) for part in content), more)


def _more(message: Mapping[str, Any], where: str) -> str:
    """What a message has beside its role and content, as JSON; arguments of tools are parsed."""
    found = {name: message[name] for name in MORE if message.get(name)}
    if not found:
        return ""
    try:
        found = json.loads(json.dumps(found))
        for call in found.get("tool_calls", ()):
            function = call["function"]
            if isinstance(function.get("arguments"), str):  # OpenAI sends JSON, templates read it
                function["arguments"] = json.loads(function["arguments"] or "{}")
    except (TypeError, ValueError, KeyError, AttributeError):
        raise InvalidRequest(
            f"{where}: {', '.join(found)} must be plain values, and arguments of tools JSON."
        ) from None
    return json.dumps(found, sort_keys=True)
