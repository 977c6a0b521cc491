"""The fields of a chat request: none is dropped in silence, whatever its value.

A field that is not known is refused with what it may have meant, one that a strategy cannot be
served with by its name. What is false, zero or empty was still said: only null is no value.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from halludecode.core.errors import InvalidRequest
from halludecode.core.request import MOST_BIAS
from halludecode.serve.policy import XARGS

# What a request whose rows are ours may set; the rest belongs to plain requests.
SERVED = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens"),
        *("temperature", "top_p", "top_k", "min_p", "min_tokens", "ignore_eos", "seed", "n"),
        *("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "bad_words"),
        *("allowed_token_ids", "stop", "stop_token_ids", "include_stop_str_in_output"),
        *("skip_special_tokens", "spaces_between_special_tokens", "logprobs", "top_logprobs"),
        *("return_token_ids", "return_tokens_as_token_ids", "request_id", "user", "vllm_xargs"),
        *("parallel_tool_calls", "include_reasoning", "stream_interval"),
        *("response_format", "structured_outputs", "chat_template_kwargs", "reasoning_effort"),
        *("add_generation_prompt", "continue_final_message", "add_special_tokens", "documents"),
        *("session_id", "media_io_kwargs"),
    }
)
# Of OpenAI's, unknown to vLLM; they say nothing of the answer.
HARMLESS = frozenset(
    {
        *("store", "service_tier", "safety_identifier", "prompt_cache_key", "metadata"),
        "prompt_cache_retention",
    }
)
GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
OF_MESSAGE = frozenset(
    {
        *("role", "content", "name", "tool_calls", "tool_call_id", "reasoning", "tools", "task"),
        *("reasoning_content", "refusal", "annotations", "audio", "function_call"),
    }
)
OF_PART = frozenset(
    {
        *("type", "text", "image_url", "image_pil", "image_embeds", "input_image", "uuid"),
        *("audio_url", "audio_embeds", "input_audio", "video_url", "video", "file", "refusal"),
        *("prompt_embeds", "thinking", "data", "name", "cache_control", "detail"),
    }
)
OF_URL = frozenset({"url", "detail", "uuid", "format"})
BRIEF = 80  # characters of a name that a sentence repeats


def check_known(request: Any, body: Any) -> None:
    """Refuse fields that nobody reads.

    Args:
        request: As vLLM read it.
        body: The same as it was sent; None where it is not at hand.

    Raises:
        InvalidRequest: The sentence names the field, and what it may have meant.
    """
    fields = type(request).model_fields
    for name, value in (request.model_extra or {}).items():
        if name not in HARMLESS and value is not None:
            raise InvalidRequest(_unknown_field(name, fields))
    for name in ("add_generation_prompt", "continue_final_message"):
        if name in (request.chat_template_kwargs or {}):
            raise InvalidRequest(
                f"chat_template_kwargs: {name} is a field of the request; give it there."
            )
    options = getattr(request, "stream_options", None)
    if options is not None and options.model_extra:
        name = next(iter(options.model_extra))
        raise InvalidRequest(_unknown("stream_options", name, type(options).model_fields))
    if isinstance(body, Mapping):
        for where, found, known in _inside(body.get("messages")):
            for name in found.keys() - known:
                if found[name] is not None:
                    raise InvalidRequest(_unknown(where, name, known))
            if found.get("type") == "text" and not isinstance(found.get("text"), str):
                raise InvalidRequest(f"{where} of type 'text' needs its text.")


def _inside(messages: Any) -> Iterator[tuple[str, Mapping[str, Any], Collection[str]]]:
    """Messages, their parts and the pictures' addresses, with the names that are known of each."""
    for i, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, Mapping):
            continue
        where = f"message {i + 1}"
        yield where, message, OF_MESSAGE
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping):
                yield f"{where}: a part", part, OF_PART
                if isinstance(part.get("image_url"), Mapping):
                    yield f"{where}: image_url", part["image_url"], OF_URL


def _unknown_field(name: str, fields: Collection[str]) -> str:
    if name in GUIDED:
        return f"{name} is no field any more; send structured_outputs: {{{GUIDED[name]!r}: ...}}."
    if name in ("strategy", "details", "score_words"):
        return f"{name} belongs into vllm_xargs, as in {XARGS}."
    return _unknown("The request", name, fields)


def _unknown(where: str, name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, [*known, "strategy"], n=1, cutoff=0.7)
    meant = f" Did you mean {close[0]!r}?" if close else " Leave it out."
    if close == ["strategy"]:
        meant = f" Did you mean 'strategy'? It belongs into vllm_xargs, as in {XARGS}."
    return f"{where} has a field {name[:BRIEF]!r}, which nobody reads.{meant}"


def unserved(request: Any) -> Iterator[str]:
    """Names of fields that were given and that only vLLM's own path serves."""
    for name in request.model_fields_set & type(request).model_fields.keys():
        value = getattr(request, name)
        definition = type(request).model_fields[name]
        default = definition.get_default(call_default_factory=True)
        if name not in SERVED and value is not None and value != default:
            yield name


def check_served(request: Any, canonical: str) -> None:
    """Refuse fields that only plain requests are served with.

    Raises:
        InvalidRequest: The sentence names the field.
    """
    for name in sorted(unserved(request), reverse=True):  # tools before tool_choice
        raise InvalidRequest(
            f"{name} is not served with strategy {canonical}; leave it out, or ask for strategy "
            "'greedy'."
        )


def check_numbers(request: Any, context: int, most_answers: int) -> None:
    """Refuse counts that no request can have.

    Args:
        request: As vLLM read it.
        context: Most tokens of a row.
        most_answers: Written at a time.

    Raises:
        InvalidRequest: The sentence names the field and its bounds.
    """
    for name in ("max_completion_tokens", "max_tokens"):
        value = getattr(request, name)
        if value is not None and not 1 <= value <= context:
            raise InvalidRequest(
                f"{name}={value}: it must be in [1, {context}], the model's context."
            )
    if request.n is not None and not 1 <= request.n <= most_answers:
        raise InvalidRequest(
            f"n={request.n}: it must be in [1, {most_answers}], the answers that this server "
            "writes at a time."
        )


def max_tokens(request: Any, defaults: Mapping[str, Any], room: int) -> int:
    """Most tokens of a request's answer.

    Args:
        request: As vLLM read it.
        defaults: The model's own.
        room: Tokens left in the context.
    """
    given = request.max_completion_tokens
    if given is None:
        given = request.max_tokens
    if given is None:
        given = defaults.get("max_tokens", room)
    return max(min(given, room), 1)


def bias_of(request: Any) -> dict[int, float] | None:
    """``logit_bias`` by token id.

    Raises:
        InvalidRequest: A key is no id, or a bias beyond OpenAI's bounds, which vLLM would cut.
    """
    if request.logit_bias is None:
        return None
    biases: dict[int, float] = {}
    for token, bias in request.logit_bias.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise InvalidRequest(f"logit_bias: {token[:BRIEF]!r} is no token id.")
        if not -MOST_BIAS <= bias <= MOST_BIAS:
            raise InvalidRequest(
                f"logit_bias: {bias:g} of token {token} must be in [-{MOST_BIAS}, {MOST_BIAS}]."
            )
        biases[int(token)] = bias
    return biases
