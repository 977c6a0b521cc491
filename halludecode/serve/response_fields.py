"""What a response holds beside its answer, and what the server says of itself and its strategies.

A request with ``vllm_xargs: {"details": 1}`` gets a field ``halludecode`` in its response (in the
last chunks of a streamed one): what `VLLMEngine.generate` says of an answer. `engines.server`
reads it, so that an evaluation over HTTP writes the very lines one in process does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from halludecode.core.errors import HalluDecodeError, InvalidRequest
from halludecode.engines.explain import unprobed
from halludecode.engines.outputs import effect_of
from halludecode.engines.server.openai_format import EXPLAINED
from halludecode.engines.vllm.protocol import differing_within
from halludecode.evals.results.controls import controls_of

if TYPE_CHECKING:
    from halludecode.core.plan import Plan
    from halludecode.serve.chat_request import ChatRequest
    from halludecode.serve.handler import ChatHandler

MOST_WORDS, LONGEST_WORD = 16, 100  # of score_words


def words_of(xargs: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """The words whose scores are asked for; None for a request that wants no details.

    Raises:
        InvalidRequest: They are no short list of words.
    """
    score_words = (xargs or {}).get("score_words", [])
    if not isinstance(score_words, list) or not all(
        isinstance(word, str) and word for word in score_words
    ):
        raise InvalidRequest(
            f'score_words must be a list of words, not {score_words!r}: ["yes", "no"].'
        )
    if len(score_words) > MOST_WORDS or any(len(word) > LONGEST_WORD for word in score_words):
        raise InvalidRequest(
            f"score_words: at most {MOST_WORDS} words of {LONGEST_WORD} characters are scored."
        )
    details = bool((xargs or {}).get("details")) or bool(score_words) or explain_of(xargs)
    return tuple(score_words) if details else None


def explain_of(xargs: Mapping[str, Any] | None) -> bool:
    """Whether what each token owes to the picture is asked for.

    Raises:
        InvalidRequest: It is neither yes nor no.
    """
    explain = (xargs or {}).get("explain", False)
    if explain not in (0, 1):
        raise InvalidRequest(f"explain must be 0 or 1, not {explain!r}; there are no maps here.")
    return bool(explain)


def details_of(chat: ChatRequest, handler: ChatHandler) -> dict[str, Any]:
    """The ``halludecode`` field of a finished answer.

    Args:
        chat: The request, answered.
        handler: Its own.

    Returns:
        ``effect``, ``rows``, ``scores``, ``decided`` and ``warnings`` as `Output` has them; of
        every choice its ``text`` as the tokenizer writes it, its ``token_ids``, whether a stop
        string ended it, and where that was asked for ``explanation``, of every token the numbers of
        `ExplainedToken`; ``timings`` in milliseconds.
    """
    report: Any = chat.report
    choices = [_choice(ids, handler.decode, chat.stops) for ids in chat.ids]
    for child, choice in enumerate(choices):
        explained = handler.explained(chat, child, choice["text"], choice["token_ids"])
        if explained is not None:
            choice["explanation"] = [
                {name: getattr(token, name) for name in EXPLAINED} for token in explained.tokens
            ]
    differs = differing_within(report["differs"], len(choices[0]["token_ids"]))
    counted: Any = SimpleNamespace(
        changed=report["changed"], differs=differs, started=not chat.opened.prepared.main_only
    )
    effect, warnings = effect_of(unprobed(chat.plan), counted, chat.opened.prepared)
    arrived, sent, first, done = chat.clock
    return {
        "effect": effect,
        "rows": list(chat.opened.prepared.rows),
        "scores": dict(report["scores"]),
        "decided": report["decided"],
        "warnings": list(warnings),
        "choices": choices,
        "timings": {
            "prepare_ms": (sent - arrived) * 1000,
            "prefill_ms": (first - sent) * 1000,
            "decode_ms": (done - first) * 1000,
        },
    }


def _choice(
    ids: Sequence[int], decode: Callable[[Sequence[int]], str], stops: Sequence[str]
) -> dict[str, Any]:
    """An answer up to its first stop string, which vLLM overlooks before ``min_tokens``."""
    text = decode(ids)
    stopped = any(stop in text for stop in stops)
    if stopped:
        prefixes = ((n, decode(ids[:n])) for n in range(1, len(ids) + 1))
        n, text = next((n, text) for n, text in prefixes if any(s in text for s in stops))
        text = text[: min(text.find(stop) for stop in stops if stop in text)]
        ids = ids[:n]
    return {"text": text, "token_ids": list(ids), "stopped": stopped}


def description_of(plan: Plan) -> dict[str, Any]:
    """A compiled strategy, for clients that have no model to compile it for."""
    return {
        "canonical": plan.canonical,
        "rows": list(plan.rows),
        "cost": str(plan.cost),
        "describe": plan.describe(),
        "controls": controls_of(plan),
    }


def install(app: Any, handler: ChatHandler) -> None:
    """Add ``/v1/halludecode`` and ``/v1/halludecode/plan`` to vLLM's application."""
    from fastapi.responses import JSONResponse

    from halludecode.serve.errors import refusal

    async def about() -> Any:
        return JSONResponse(await handler.describe())

    async def plan(strategy: str) -> Any:
        try:
            handler.policy.check_requested(strategy)
            compiled = await handler.plan(strategy)
            handler.policy.check_rows(compiled.canonical, len(compiled.rows), 1)
            begin = handler.rows_begin(compiled) or "at the first token that needs them"
            return JSONResponse({**description_of(compiled), "rows_begin": begin})
        except HalluDecodeError as error:
            refused = refusal(error)
            return JSONResponse(refused.model_dump(), status_code=refused.error.code)

    app.add_api_route("/v1/halludecode", about, methods=["GET"])
    app.add_api_route("/v1/halludecode/plan", plan, methods=["GET"])
