"""From a `Request` to a `Prompt`: chat messages, plain words, or text in the model's template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from halludecode.core.errors import InvalidRequest
from halludecode.core.prompt import Part, Picture, Prompt, Turn
from halludecode.engines.api import Request
from halludecode.engines.inputs.images import VIDEO, load_picture

ROLES = ("system", "user", "assistant")


def to_prompt(request: Request, placeholder: str) -> Prompt:
    """Resolve a request's pictures and put them in their places.

    Raises:
        InvalidRequest: Bad picture or message, or a picture count that does not match the
            placeholders.
    """
    if isinstance(request.images, str | bytes) or not isinstance(request.images, Sequence):
        raise InvalidRequest("Request(images=...): give a list of pictures, also for a single one.")
    pictures = [load_picture(image, f"image {i + 1}") for i, image in enumerate(request.images)]
    if isinstance(request.prompt, str):
        return _from_text(request.prompt, pictures, placeholder)
    if not isinstance(request.prompt, Sequence):
        kind = type(request.prompt).__name__
        raise InvalidRequest(f"Request(prompt=...): give text or chat messages, not {kind}.")
    return _from_messages(request.prompt, pictures)


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


def _from_messages(messages: Sequence[Mapping[str, Any]], pictures: list[Picture]) -> Prompt:
    if not messages:
        raise InvalidRequest("The prompt has no messages; give at least one user turn.")
    given = iter(pictures)
    turns = [_turn(message, f"message {i + 1}", given) for i, message in enumerate(messages)]
    rest = tuple(given)
    used = len(pictures) - len(rest)
    if rest and used == 0:  # no place named: pictures come first in the first user turn
        first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
        if first is not None:
            turns[first] = Turn("user", (*rest, *turns[first].parts))
            return Prompt(tuple(turns))
    if rest:
        raise InvalidRequest(
            f"The messages have {used} image place(s) but {len(pictures)} image(s) were given."
        )
    return Prompt(tuple(turns))


def _turn(message: Mapping[str, Any], where: str, given: Iterator[Picture]) -> Turn:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ROLES:
        raise InvalidRequest(f"{where}: role {role!r} must be one of {', '.join(ROLES)}.")
    content = message.get("content")
    if isinstance(content, str):
        return Turn(role, (content,))
    if not isinstance(content, Sequence):
        raise InvalidRequest(f"{where}: content must be text or a list of parts.")
    return Turn(role, tuple(_part(part, where, given) for part in content))


def _part(part: Any, where: str, given: Iterator[Picture]) -> Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, Mapping) else url
        if not isinstance(url, str):
            raise InvalidRequest(f"{where}: image_url needs a url.")
        return load_picture(url, f"{where}: image")
    if kind == "image":
        inline = part.get("image")
        picture = (
            load_picture(inline, f"{where}: image") if inline is not None else next(given, None)
        )
        if picture is None:
            raise InvalidRequest(f"{where}: more image places than images were given.")
        return picture
    if kind in ("video", "video_url", "input_video"):
        raise InvalidRequest(f"{where}: a part {VIDEO}")
    raise InvalidRequest(f"{where}: a part must be text, image or image_url, not {kind!r}.")
