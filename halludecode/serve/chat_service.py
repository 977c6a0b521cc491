"""vLLM's chat service with strategies: three of its objects get a stand-in each, in `install`.

Stand-ins pass everything through to the object they hold but for one method. No class is changed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMValidationError

from halludecode.core.errors import HalluDecodeError, HookNeverFired
from halludecode.engines.vllm.row_metadata import KEY
from halludecode.serve import response_fields as details
from halludecode.serve.chat_request import has_pictures
from halludecode.serve.handler import ChatHandler, ChatRequest, label_of
from halludecode.serve.metrics import Watch
from halludecode.serve.policy import Busy

PLAIN = "plain"
# The chat request being handled in this context: its rows, or that it is a plain one.
CURRENT: ContextVar[ChatRequest | str | None] = ContextVar("halludecode", default=None)
BLIND = "No image in the request: the strategy changes nothing."


class StandIn:
    """Passes everything through to what it holds."""

    def __init__(self, held: Any) -> None:
        self._held = held

    def __getattr__(self, name: str) -> Any:
        return getattr(self._held, name)


class Client(StandIn):
    """The engine client: a chat request under a strategy is answered by its group of rows."""

    def __init__(self, llm: Any, front: ChatHandler) -> None:
        super().__init__(llm)
        self._front = front

    def generate(self, prompt: Any, sampling_params: Any, request_id: str, **more: Any) -> Any:
        """Outputs of one request.

        Raises:
            VLLMValidationError: A strategy is asked for where it cannot be applied.
        """
        current = CURRENT.get()
        if isinstance(current, ChatRequest):
            return self._front.answer(current, request_id)
        extra = getattr(sampling_params, "extra_args", None) or {}
        if KEY in extra:
            raise VLLMValidationError(f"vllm_xargs: {KEY!r} is reserved; leave it out.")
        if current is None:
            self._check_elsewhere(prompt, extra)
        return self._held.generate(prompt, sampling_params, request_id, **more)

    def _check_elsewhere(self, prompt: Any, extra: dict[str, Any]) -> None:
        pictured = isinstance(prompt, dict) and prompt.get("type") == "multimodal"
        wanted = extra.get("strategy") or (self._front.policy.default if pictured else "greedy")
        if wanted != "greedy":
            raise VLLMValidationError(
                f"Strategy {wanted!r} is served at /v1/chat/completions only; ask there, or for "
                "strategy 'greedy'."
            )


class Renderer(StandIn):
    """The chat renderer: rows of a strategy are rendered already."""

    async def render_chat(self, request: Any, **more: Any) -> Any:
        """The conversation and the prompt."""
        from vllm.inputs.engine import tokens_input

        current = CURRENT.get()
        if isinstance(current, ChatRequest):
            return [], [tokens_input(list(current.mains[0].prompt_token_ids))]
        return await self._held.render_chat(request, **more)


class Models(StandIn):
    """The list of models, with the operator's aliases."""

    def __init__(self, models: Any, front: ChatHandler) -> None:
        super().__init__(models)
        self._policy = front.policy

    async def show_available_models(self) -> Any:
        """What ``/v1/models`` shows."""
        made = await self._held.show_available_models()
        name = self._policy.name
        made.data += [
            made.data[0].model_copy(update={"id": f"{name}:{text}", "parent": name})
            for text in self._policy.aliases
        ]
        return made


class Chat(StandIn):
    """The chat service: finds the strategy, keeps to the limits, names what was applied."""

    def __init__(self, chat: Any, front: ChatHandler) -> None:
        super().__init__(chat)
        self._front, self._running = front, 0

    async def create_chat_completion(self, request: Any, raw_request: Any = None) -> Any:
        """Answer one chat request.

        Returns:
            vLLM's response, error, or iterator of server-sent events.
        """
        watch = Watch()
        try:
            return await self._create(request, raw_request, watch)
        except HalluDecodeError as error:
            made = refusal(error)
            watch.end(
                "failed" if made.error.code >= HTTPStatus.INTERNAL_SERVER_ERROR else "refused"
            )
            return made
        except (VLLMClientError, GracefulHTTPError):
            watch.end("refused")
            raise
        except asyncio.CancelledError:
            watch.end("left")
            raise
        except BaseException:
            watch.end("failed")
            raise

    async def _create(self, request: Any, raw_request: Any, watch: Watch) -> Any:
        policy = self._front.policy
        text, alias = policy.strategy_of(request.model, request.vllm_xargs)
        if alias:
            request.model = policy.name
        plan = await self._front.plan(text)
        watch.strategy = label_of(plan)
        pictured = has_pictures(request.messages)
        known = request.model in (None, policy.name)
        words = details.words_of(request.vllm_xargs)
        if not known or (words is None and not (plan.parts and pictured)):
            return await self._plain(request, raw_request, plan, watch, known=known)
        children = request.n or 1
        if self._running + children > policy.groups:
            raise Busy(
                f"{self._running} answers under strategies are being written, this server writes "
                f"{policy.groups} at a time; try again later."
            )
        self._running += children
        release = _Once(lambda: self._release(children))
        try:
            asked = await self._front.ask(request, plan, words or ())
            request.max_completion_tokens = asked.most
            release.also(lambda: self._front.forget(asked))
            watch.prepared(asked.rows)

            def notes() -> dict[str, Any]:
                made: dict[str, Any] = {"strategy": plan.canonical}
                if words is not None and asked.told:
                    made["halludecode"] = details.details_of(asked, self._front.decode)
                return made

            return await self._deliver(request, raw_request, asked, notes, watch, release)
        except BaseException:
            release()
            raise

    async def _plain(
        self, request: Any, raw_request: Any, plan: Any, watch: Watch, *, known: bool
    ) -> Any:
        """Left to vLLM: greedy, or without a picture; of another model than ours, refused there."""
        notes = {"strategy": plan.canonical} if known else {}
        if plan.parts and known:
            notes["strategy_warning"] = BLIND
        elif plan.parts and request.model in self._held.models.lora_requests:
            raise VLLMValidationError("Adapters are not served with strategies.")
        if "add_special_tokens" not in request.model_fields_set:
            request.add_special_tokens = self._front.special_tokens
        return await self._deliver(request, raw_request, PLAIN, lambda: notes, watch)

    def _release(self, children: int) -> None:
        self._running -= children

    async def _deliver(
        self,
        request: Any,
        raw_request: Any,
        current: ChatRequest | str,
        notes: Callable[[], dict[str, Any]],
        watch: Watch,
        release: _Once | None = None,
    ) -> Any:
        token = CURRENT.set(current)
        try:
            made = await self._held.create_chat_completion(request, raw_request)
        finally:
            CURRENT.reset(token)
        if isinstance(made, ErrorResponse):
            task = asyncio.current_task()
            left = task is not None and task.cancelling() > 0  # vLLM answers it with an error
            watch.end("left" if left else "refused" if made.error.code < 500 else "failed")
        elif isinstance(made, ChatCompletionResponse):
            for name, value in notes().items():
                setattr(made, name, value)
            watch.end("done")
        else:
            events = _events(made, notes, watch, release)
            return await _opened(events)
        if release is not None:
            release()
        return made


class _Once:
    """Calls what it was given when called first, and never again."""

    def __init__(self, *calls: Any) -> None:
        self._calls = list(calls)

    def also(self, call: Any) -> None:
        self._calls.append(call)

    def __call__(self) -> None:
        while self._calls:
            self._calls.pop()()


async def _events(
    made: AsyncIterator[str],
    notes: Callable[[], dict[str, Any]],
    watch: Watch,
    release: _Once | None,
) -> AsyncIterator[str]:
    """Server-sent events with our notes in every chunk; settles the request at the end."""
    outcome = "left"
    try:
        async for event in made:
            if event.startswith('data: {"error"'):
                outcome = "failed"
            elif event.startswith('data: {"') and (extra := notes()):
                event = f"data: {json.dumps(extra)[:-1]}, {event[len('data: {') :]}"
            yield event
        outcome = "done" if outcome == "left" else outcome
    finally:
        await made.aclose()  # type: ignore[attr-defined]
        watch.end(outcome)
        if release is not None:
            release()


async def _opened(events: AsyncIterator[str]) -> Any:
    """The events once the first is there, so that early failures have an HTTP status."""
    first = await anext(events)
    if first.startswith('data: {"error"'):
        await events.aclose()  # type: ignore[attr-defined]
        return ErrorResponse(**json.loads(first.removeprefix("data: ")))
    return _with_first(first, events)


async def _with_first(first: str, events: AsyncIterator[str]) -> AsyncIterator[str]:
    try:
        yield first
        async for event in events:
            yield event
    finally:
        await events.aclose()  # type: ignore[attr-defined]


def refusal(error: HalluDecodeError) -> ErrorResponse:
    """Our sentence as OpenAI clients expect errors; what is no fault of theirs has status 500."""
    status = HTTPStatus.BAD_REQUEST
    if isinstance(error, Busy):
        status = HTTPStatus.TOO_MANY_REQUESTS
    elif type(error) in (HalluDecodeError, HookNeverFired):
        status = HTTPStatus.INTERNAL_SERVER_ERROR
    return ErrorResponse(
        error=ErrorInfo(message=str(error), type=type(error).__name__, code=status.value)
    )


def install(state: Any, front: ChatHandler) -> None:
    """Put the stand-ins into an application's state; its engine client is a `Client` already."""
    chat = state.openai_serving_chat
    chat.online_renderer = Renderer(chat.online_renderer)
    state.openai_serving_chat = Chat(chat, front)
    state.openai_serving_models = Models(state.openai_serving_models, front)
