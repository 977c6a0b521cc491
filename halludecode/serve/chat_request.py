"""Reading a chat request: its pictures, and fields that only plain requests are served with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halludecode.core.errors import InvalidRequest

# What a request under a strategy may set; the rest belongs to plain requests.
SERVED = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens"),
        *("temperature", "top_p", "top_k", "min_p", "min_tokens", "ignore_eos", "seed", "n"),
        *("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "bad_words"),
        *("allowed_token_ids", "stop", "stop_token_ids", "include_stop_str_in_output"),
        *("skip_special_tokens", "spaces_between_special_tokens", "logprobs", "top_logprobs"),
        *("return_token_ids", "return_tokens_as_token_ids", "request_id", "user", "vllm_xargs"),
        *("metadata", "parallel_tool_calls", "include_reasoning", "stream_interval"),
    }
)


def check_served(request: Any, canonical: str) -> None:
    """Refuse fields that only plain requests are served with.

    Raises:
        InvalidRequest: The sentence names the field.
    """
    for name, field in type(request).model_fields.items():
        value = getattr(request, name)
        if name in SERVED or not value or value == field.get_default(call_default_factory=True):
            continue
        if getattr(value, "type", None) == "text":  # response_format's default
            continue
        raise InvalidRequest(
            f"{name} is not served with strategy {canonical}; leave it out, or ask for strategy "
            "'greedy'."
        )


def split_pictures(messages: Sequence[Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Chat messages with bare image places, and the pictures' URLs in order.

    Raises:
        InvalidRequest: A part is neither text nor image_url.
    """
    out: list[dict[str, Any]] = []
    urls: list[str] = []
    for i, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, str):
            content = [_part(part, f"message {i + 1}", urls) for part in content or ()]
        out.append({"role": message["role"], "content": content})
    return out, urls


def has_pictures(messages: Sequence[Any]) -> bool:
    """Whether a chat holds anything but words; its lazy parts are made lists on the way."""
    found = False
    for message in messages:
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            message["content"] = content = list(content)
            found = found or any(
                not (isinstance(part, str) or (isinstance(part, Mapping) and "text" in part))
                for part in content
            )
    return found


def _part(part: Any, where: str, urls: list[str]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, str) or kind == "text":
        return {"type": "text", "text": part if isinstance(part, str) else part["text"]}
    url = part.get("image_url") if isinstance(part, Mapping) else None
    url = url.get("url") if isinstance(url, Mapping) else url
    if not isinstance(url, str):
        raise InvalidRequest(f"{where}: a part must be text or image_url, not {kind!r}.")
    urls.append(url)
    return {"type": "image"}
