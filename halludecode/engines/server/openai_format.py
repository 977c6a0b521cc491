"""From a `Request` to what an OpenAI client sends, and from its answer to an `Output`."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from halludecode.core.errors import InvalidRequest
from halludecode.core.prompt import Picture
from halludecode.engines.api import (
    Choice,
    ExplainedToken,
    Explanation,
    Output,
    Request,
    Sampling,
    Timings,
    TokenLogprob,
)
from halludecode.engines.inputs.chat import to_prompt
from halludecode.engines.inputs.images import _read, load_picture
from halludecode.engines.inputs.pixels import is_array

EXPLAINED = ("text", "token_id", "grounding", "entropy", "mass")  # of `ExplainedToken`


def body_of(
    request: Request,
    strategy: str,
    sampling: Sampling,
    words: Sequence[str],
    model: str,
    placeholder: str,
    explain: bool = False,
) -> dict[str, Any]:
    """Keyword arguments for the OpenAI client's ``chat.completions.create``.

    Args:
        request: What is asked.
        strategy: Its canonical text.
        sampling: How tokens are drawn.
        words: Words whose first-step scores are wanted.
        model: The model's name at the server.
        placeholder: Its image placeholder.
        explain: Whether the answer is to be explained token by token.

    Raises:
        InvalidRequest: A picture cannot be read, or the prompt cannot be sent.
    """
    xargs = {"strategy": strategy, "details": 1, "score_words": list(words)}
    if explain:
        xargs["explain"] = 1
    drawn, extra = _drawn(sampling)
    if request.chat_template_kwargs:
        told = dict(request.chat_template_kwargs)
        if "add_generation_prompt" in told:
            extra["add_generation_prompt"] = told.pop("add_generation_prompt")
        extra["chat_template_kwargs"] = told
    if request.continue_final_message:
        extra["continue_final_message"] = True
    return {
        "model": model,
        "messages": messages_of(request, placeholder),
        **drawn,
        "extra_body": {"vllm_xargs": xargs, "return_tokens_as_token_ids": True, **extra},
    }


def _drawn(sampling: Sampling) -> tuple[dict[str, Any], dict[str, Any]]:
    """How tokens are drawn: OpenAI's arguments, and vLLM's beside them."""
    ours = {
        "max_completion_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "n": sampling.n,
    }
    if sampling.stop:
        ours["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        ours["seed"] = sampling.seed
    if sampling.logprobs is not None:
        ours |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    if sampling.logit_bias:
        ours["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    theirs: dict[str, Any] = {
        "min_tokens": sampling.min_new_tokens,
        "top_k": sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty,
    }
    if sampling.bad_words:
        theirs["bad_words"] = list(sampling.bad_words)
    if sampling.allowed_token_ids is not None:
        theirs["allowed_token_ids"] = list(sampling.allowed_token_ids)
    return ours, theirs


def output_of(response: Mapping[str, Any]) -> Output:
    """An answer as the engines give it.

    Raises:
        InvalidRequest: It lacks what `halludecode serve` adds.
    """
    details = response.get("halludecode")
    if not isinstance(details, Mapping):
        raise InvalidRequest("The server's answer has no field 'halludecode'; update the server.")
    theirs = sorted(response["choices"], key=lambda choice: choice["index"])
    choices = tuple(_choice(*pair) for pair in zip(details["choices"], theirs, strict=True))
    return Output(
        choices=choices,
        strategy=response["strategy"],
        effect=details["effect"],
        timings=Timings(
            **details["timings"], tokens=sum(len(choice.token_ids) for choice in choices)
        ),
        rows=tuple(details["rows"]),
        scores=details["scores"],
        warnings=tuple(details["warnings"]),
        decided=details.get("decided", False),
    )


def _choice(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Choice:
    ids = tuple(ours["token_ids"])
    stopped = ours["stopped"] or theirs["finish_reason"] == "stop"
    logprobs = _logprobs(theirs)
    return Choice(
        ours["text"],
        ids,
        "stop" if stopped else "length",
        None if logprobs is None else logprobs[: len(ids)],
        _explanation(ours.get("explanation")),
    )


def _explanation(tokens: Any) -> Explanation | None:
    if tokens is None:
        return None
    return Explanation(tuple(ExplainedToken(*map(each.get, EXPLAINED)) for each in tokens))


def _logprobs(choice: Mapping[str, Any]) -> tuple[TokenLogprob, ...] | None:
    content = (choice.get("logprobs") or {}).get("content")
    if content is None:
        return None
    return tuple(
        TokenLogprob(
            _id(entry),
            bytes(entry["bytes"] or ()).decode(errors="replace"),
            _value(entry),
            {_id(top): _value(top) for top in entry["top_logprobs"]},
        )
        for entry in content
    )


def _id(entry: Mapping[str, Any]) -> int:
    return int(entry["token"].removeprefix("token_id:"))


def _value(entry: Mapping[str, Any]) -> float:
    return -math.inf if entry["logprob"] <= -9999 else entry["logprob"]  # JSON has no infinity


def messages_of(request: Request, placeholder: str) -> list[dict[str, Any]]:
    """Messages that a server reads as the engines in process read the request.

    Args:
        request: Pictures in files, bytes and data URLs are sent byte by byte as they are, without
            being decoded; what cannot be read the server will say.
        placeholder: The model's image placeholder.

    Raises:
        InvalidRequest: A picture or the prompt cannot be sent.
    """
    pictures: Any = request.images
    if isinstance(pictures, Sequence) and not isinstance(pictures, str | bytes):
        ground = request.background
        urls = [data_url(image, f"image {i + 1}", ground) for i, image in enumerate(pictures)]
        pictures = [Picture(None, url) for url in urls]  # type: ignore[arg-type]
    prompt = to_prompt(replace(request, images=pictures), placeholder)
    if prompt.raw:
        raise InvalidRequest(
            f"The prompt holds the model's placeholder {placeholder}, which is for engines in "
            "process; send chat messages, or leave it out."
        )
    return [
        {
            "role": turn.role,
            "content": [_part(part) for part in turn.parts],
            **(_sent(json.loads(turn.more)) if turn.more else {}),
        }
        for turn in prompt.turns
    ]


def _sent(more: dict[str, Any]) -> dict[str, Any]:
    """What a message has beside its parts, arguments of tools as the JSON that OpenAI sends."""
    for call in more.get("tool_calls", ()):
        call["function"]["arguments"] = json.dumps(call["function"].get("arguments", {}))
    return more


def data_url(source: Any, where: str = "image", background: Any = "white") -> str:
    """A picture as a data URL: bytes as they are; what is decoded, or has a ground, as PNG.

    Raises:
        InvalidRequest: It cannot be read.
    """
    from PIL import Image

    grounded = background != "white"  # else the server's, which is white as well
    if isinstance(source, str) and source.startswith("data:") and not grounded:
        return source
    if grounded or is_array(source) or isinstance(source, Image.Image | Picture):
        file = io.BytesIO()
        load_picture(source, where, background).image.save(file, "PNG")
        return _url(file.getvalue(), "image/png")
    name, data = _read(source, where)
    if not data:
        raise InvalidRequest(f"{name} is empty (0 bytes); give a PNG, JPEG or WebP file.")
    return _url(data, _kind(data))


def _kind(data: bytes) -> str:
    """Media type by a file's first bytes; the server looks for itself."""
    kinds = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
    fitting = (kind for start, kind in kinds.items() if data.startswith(start))
    return next(fitting, "application/octet-stream")


def _url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    # Stand-ins are their own URL; pictures inside messages were decoded.
    url = part.key if part.image is None else data_url(part)
    return {"type": "image_url", "image_url": {"url": url}}
