"""Requests to the server, as its users write them."""

from __future__ import annotations

import base64
import io

from tests.support import families

KEY = "secret"
VAR = "var(dims=(3,13,40),tau=2.0,min_mass=0.05,rho=0.2)+vcd"


def png(picture) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def ask(words: str, *urls: str) -> list[dict]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": words}]}]


def picture_url(number: int = 0) -> str:
    pictures = families.pictures()
    return data_url(png(pictures[number % len(pictures)]))


def body(words: str = "Describe the image.", *urls: str, strategy: str | None = None, **more):
    """Keyword arguments of `chat.completions.create`; greedy, with token ids."""
    extra = {"return_token_ids": True, **more.pop("extra_body", {})}
    if strategy is not None:
        extra["vllm_xargs"] = {"strategy": strategy}
    return {
        "model": "testbed",
        "messages": ask(words, *(urls or (picture_url(),))),
        "max_tokens": 10,
        "temperature": 0,
        "extra_body": extra,
        **more,
    }
