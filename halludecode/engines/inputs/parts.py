"""Parts of a chat message, in the forms of transformers, OpenAI and their kin: words and pictures.

A part that names its picture is that picture, wherever else pictures are given; what names none is
a place for the next one of `Request.images`. Nothing that a part says is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from halludecode.core.errors import InvalidRequest
from halludecode.core.prompt import Part, Picture
from halludecode.core.request import Request
from halludecode.engines.inputs.images import load_picture

WORDS = ("text", "input_text", "output_text")
PICTURES = ("image", "image_url", "input_image", "image_pil")
# What names a picture -> the form it is in; "source" is Anthropic's.
NAMING = ("image", "url", "path", "base64", "image_url", "image_pil", "source")
HARMLESS = ("type", "detail", "cache_control", "uuid")  # none of them changes what is read


class GivenPictures:
    """The pictures of a request, handed out to the places of its messages in order.

    Attributes:
        inline: How many were named in the messages themselves.
        used: How many places were filled.
    """

    def __init__(self, request: Request) -> None:
        self._background = request.background
        self.all = [self.load(image, f"image {i + 1}") for i, image in enumerate(request.images)]
        self._rest = iter(self.all)
        self.inline = self.used = 0

    def load(self, source: Any, where: str) -> Picture:
        """One picture on the request's ground."""
        return load_picture(source, where, self._background)

    def read(self, part: Any, where: str) -> Part:
        """A part's words or picture.

        Raises:
            InvalidRequest: It is neither, or says what nobody reads.
        """
        if isinstance(part, str):
            return part
        if not isinstance(part, Mapping):
            raise InvalidRequest(f"{where}: a part must be text or a map, not {part!r:.80}.")
        said = {name: value for name, value in part.items() if value is not None}
        kind = said.get("type") or next((name for name in ("text", "image_url", "image")
                                         if name in said), None)  # fmt: skip
        if kind in WORDS:
            if isinstance(said.get("text"), str):
                self._check(said, ("text",), where)
                return said["text"]
            raise InvalidRequest(f"{where}: a part of type {kind!r} needs its text.")
        if kind not in PICTURES:
            raise InvalidRequest(
                f"{where}: a part must be text, image, image_url or input_image, not {kind!r}."
            )
        self._check(said, NAMING, where)
        names = [name for name in NAMING if name in said]
        if len(names) > 1:
            raise InvalidRequest(
                f"{where}: {' and '.join(names)} in one part name two pictures; give one."
            )
        if names:
            self.inline += 1
            source = _source(names[0], said[names[0]], where)
            return self.load(source, f"{where}: image")
        if kind != "image":
            raise InvalidRequest(f"{where}: {kind} needs a url.")
        picture = next(self._rest, None)
        if picture is None:
            raise InvalidRequest(f"{where}: more image places than images were given.")
        self.used += 1
        return picture

    def left(self) -> Iterator[Picture]:
        """Those without a place."""
        return self._rest

    def _check(self, said: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
        unread = [name for name in said if name not in (*known, *HARMLESS)]
        if unread:
            raise InvalidRequest(
                f"{where}: a part says {unread[0]!r}, which nobody reads; leave it out, or name a "
                "picture with image, url, path or base64."
            )


def _source(name: str, value: Any, where: str) -> Any:
    """What `load_picture` takes, of what a part says under a name."""
    if name == "image_url" and isinstance(value, Mapping):
        value = value.get("url")
    if name == "source" and isinstance(value, Mapping):
        name = "base64" if value.get("type") == "base64" else "url"
        value = value.get("data" if name == "base64" else "url")
    if name in ("url", "base64", "image_url", "source") and not isinstance(value, str):
        raise InvalidRequest(f"{where}: {name} needs a url." if "url" in name else
                             f"{where}: {name} needs the picture as text.")  # fmt: skip
    if name == "base64" and value[:5].lower() != "data:":
        return f"data:image;base64,{value}"
    return value
