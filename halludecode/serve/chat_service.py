"""vLLM's chat service with strategies: four of its objects get a stand-in each.

Stand-ins pass everything through to the object they hold but for one method. No class is changed.
A chat request goes through vLLM's own service, which writes responses and events as for everybody;
at two places, where it renders the prompt and where it asks the engine, a stand-in gives it what
`ChatHandler` has prepared. Those two are called without the request, so it is found in a context
variable.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMValidationError

from halludecode.core.errors import HalluDecodeError
from halludecode.engines.vllm.frontend.async_bridge import EngineStopped
from halludecode.engines.vllm.row_metadata import KEY
from halludecode.serve.chat_request import ChatRequest, has_pictures
from halludecode.serve.errors import refusal
from halludecode.serve.handler import ChatHandler
from halludecode.serve.metrics import RequestMetrics, label_of
from halludecode.serve.policy import Busy
from halludecode.serve.response_fields import details_of, explain_of, words_of

PLAIN = "plain"
# The chat request being handled in this context: its rows, or that it is a plain one.
CURRENT: ContextVar[ChatRequest | str | None] = ContextVar("halludecode", default=None)
DETAILS = "halludecode"
GOES_ON = '"finish_reason":null'  # in a chunk; words of an answer have their quotes escaped
BLIND = "No image in the request: the strategy changes nothing."


class StandIn:
    """Passes everything through to what it holds."""

    def __init__(self, held: Any) -> None:
        self._held = held

    def __getattr__(self, name: str) -> Any:
        return getattr(self._held, name)


class EngineClient(StandIn):
    """The engine client: a chat request under a strategy is answered by its group of rows."""

    def __init__(self, llm: Any, handler: ChatHandler) -> None:
        super().__init__(llm)
        self._handler = handler

    def generate(self, prompt: Any, sampling_params: Any, request_id: str, **more: Any) -> Any:
        """Outputs of one request.

        Raises:
            VLLMValidationError: A strategy is asked for where it cannot be applied.
        """
        current = CURRENT.get()
        if isinstance(current, ChatRequest):
            return self._handler.answer(current, request_id)
        extra = getattr(sampling_params, "extra_args", None) or {}
        if KEY in extra:
            raise VLLMValidationError(f"vllm_xargs: {KEY!r} is reserved; leave it out.")
        if current is None:
            self._check_elsewhere(prompt, extra)
        stray = self._handler.stray_placeholders(prompt)
        if stray:
            raise VLLMValidationError(
                f"The prompt holds {stray} image placeholder(s) more than images were given; make "
                "the counts equal and keep the model's placeholder out of the question's words."
            )
        return self._held.generate(prompt, sampling_params, request_id, **more)

    def shutdown(self, timeout: float | None = None) -> None:
        """End the engine, and what waits for it: open answers end with an error at once.

        vLLM calls it from a thread once the server is told to end; with its ``shutdown_timeout``
        answers are first written for so long.
        """
        if not timeout:
            self._handler.stop()
        self._held.shutdown(timeout=timeout)
        self._handler.stop()

    def _check_elsewhere(self, prompt: Any, extra: dict[str, Any]) -> None:
        pictured = isinstance(prompt, dict) and prompt.get("type") == "multimodal"
        strategy = extra.get("strategy") or (self._handler.policy.default if pictured else "greedy")
        if strategy != "greedy":
            raise VLLMValidationError(
                f"Strategy {strategy!r} is served at /v1/chat/completions only; ask there, or for "
                "strategy 'greedy'."
            )


class ChatRenderer(StandIn):
    """The chat renderer: rows of a strategy are rendered already."""

    async def render_chat(self, request: Any, **more: Any) -> Any:
        """The conversation and the prompt."""
        from vllm.inputs.engine import tokens_input

        current = CURRENT.get()
        if isinstance(current, ChatRequest):
            return [], [tokens_input(list(current.mains[0].prompt_token_ids))]
        return await self._held.render_chat(request, **more)


class ModelList(StandIn):
    """The list of models, with the operator's aliases."""

    def __init__(self, models: Any, handler: ChatHandler) -> None:
        super().__init__(models)
        self._policy = handler.policy

    async def show_available_models(self) -> Any:
        """What ``/v1/models`` shows."""
        models = await self._held.show_available_models()
        name = self._policy.name
        models.data += [
            models.data[0].model_copy(update={"id": f"{name}:{text}", "parent": name})
            for text in self._policy.aliases
        ]
        return models


class ChatService(StandIn):
    """The chat service: finds the strategy, keeps to the limits, names what was applied."""

    def __init__(self, chat: Any, handler: ChatHandler) -> None:
        super().__init__(chat)
        self._handler, self._running = handler, 0

    async def create_chat_completion(self, request: Any, raw_request: Any = None) -> Any:
        """Answer one chat request.

        Returns:
            vLLM's response, error, or iterator of server-sent events.
        """
        metrics = RequestMetrics()
        try:
            return await self._create(request, raw_request, metrics)
        except HalluDecodeError as error:
            refused = refusal(error)
            ours = refused.error.code >= HTTPStatus.INTERNAL_SERVER_ERROR
            metrics.end("failed" if ours else "refused")
            return refused
        except (VLLMClientError, GracefulHTTPError):
            metrics.end("refused")
            raise
        except asyncio.CancelledError:
            metrics.end("left")
            raise
        except BaseException:
            metrics.end("failed")
            raise

    async def _create(self, request: Any, raw_request: Any, metrics: RequestMetrics) -> Any:
        policy, handler = self._handler.policy, self._handler
        if handler.bridge.stopped:
            raise EngineStopped("The server is shutting down.")
        text, alias = policy.strategy_of(request.model, request.vllm_xargs)
        if alias:
            request.model = policy.name
        ours = request.model in (None, policy.name)
        if ours:
            handler.check(request, None if raw_request is None else await raw_request.json())
        plan = await handler.plan(text)
        metrics.strategy = label_of(plan)
        pictured = has_pictures(request.messages)
        words = words_of(request.vllm_xargs)
        rows = words is not None or (plan.parts and pictured) or handler.draws_here(request)
        blind = plan.parts and not pictured
        if not (ours and rows):
            return await self._plain(request, raw_request, plan, metrics, ours=ours)
        if pictured and explain_of(request.vllm_xargs):
            plan = await handler.explaining(plan)
        children = 1 if request.n is None else request.n
        if self._running + children > policy.groups:
            raise Busy(
                f"{self._running} answers under strategies are being written, this server writes "
                f"{policy.groups} at a time; try again later."
            )
        self._running += children
        release = _CallOnce(lambda: self._release(children))
        try:
            chat = await self._handler.prepare(request, plan, words or ())
            self._handler.settle(request, chat)
            release.also(lambda: self._handler.forget(chat))
            metrics.prepared(chat.rows)

            def fields() -> dict[str, Any]:
                values: dict[str, Any] = {"strategy": plan.canonical}
                if blind:
                    values["strategy_warning"] = BLIND
                if words is not None and chat.report is not None:
                    values[DETAILS] = details_of(chat, self._handler)
                return values

            return await self._deliver(request, raw_request, chat, fields, metrics, release)
        except BaseException:
            release()
            raise

    async def _plain(
        self, request: Any, raw_request: Any, plan: Any, metrics: RequestMetrics, *, ours: bool
    ) -> Any:
        """Left to vLLM: greedy, or without a picture; of another model than ours, refused there."""
        fields = {"strategy": plan.canonical} if ours else {}
        if plan.parts and ours:
            fields["strategy_warning"] = BLIND
        elif plan.parts and request.model in self._held.models.lora_requests:
            raise VLLMValidationError("Adapters are not served with strategies.")
        if "add_special_tokens" not in request.model_fields_set:
            request.add_special_tokens = self._handler.special_tokens
        if request.continue_final_message:
            request.add_generation_prompt = False  # vLLM wants it said
        return await self._deliver(request, raw_request, PLAIN, lambda: fields, metrics)

    def _release(self, children: int) -> None:
        self._running -= children

    async def _deliver(
        self,
        request: Any,
        raw_request: Any,
        current: ChatRequest | str,
        fields: Callable[[], dict[str, Any]],
        metrics: RequestMetrics,
        release: _CallOnce | None = None,
    ) -> Any:
        token = CURRENT.set(current)
        try:
            response = await self._held.create_chat_completion(request, raw_request)
        finally:
            CURRENT.reset(token)
        if isinstance(response, ErrorResponse):
            task = asyncio.current_task()
            left = task is not None and task.cancelling() > 0  # vLLM answers it with an error
            metrics.end("left" if left else "refused" if response.error.code < 500 else "failed")
        elif isinstance(response, ChatCompletionResponse):
            for name, value in fields().items():
                setattr(response, name, value)
            metrics.end("done")
        else:
            events = _events(response, fields, metrics, release)
            return await _opened(events)
        if release is not None:
            release()
        return response


class _CallOnce:
    """Calls what it was given when called first, and never again."""

    def __init__(self, *calls: Any) -> None:
        self._calls = list(calls)

    def also(self, call: Any) -> None:
        self._calls.append(call)

    def __call__(self) -> None:
        while self._calls:
            self._calls.pop()()


async def _events(
    events: AsyncIterator[str],
    fields: Callable[[], dict[str, Any]],
    metrics: RequestMetrics,
    release: _CallOnce | None,
) -> AsyncIterator[str]:
    """Server-sent events with our fields in every chunk; settles the request at the end.

    A client that reads slowly gets early chunks after the answer has ended: what is said of the
    answer stands in those that end it all the same.
    """
    outcome = "left"
    try:
        async for event in events:
            if event.startswith('data: {"error"'):
                outcome = "failed"
            elif event.startswith('data: {"') and (extra := fields()):
                if GOES_ON in event:
                    extra = {k: v for k, v in extra.items() if k != DETAILS}
                event = f"data: {json.dumps(extra)[:-1]}, {event[len('data: {') :]}"
            yield event
        outcome = "done" if outcome == "left" else outcome
    finally:
        await events.aclose()  # type: ignore[attr-defined]
        metrics.end(outcome)
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


def install(state: Any, handler: ChatHandler) -> None:
    """Put the stand-ins into an application's state, whose engine client is one already."""
    chat = state.openai_serving_chat
    handler.template_defaults = chat.default_chat_template_kwargs
    chat.online_renderer = ChatRenderer(chat.online_renderer)
    state.openai_serving_chat = ChatService(chat, handler)
    state.openai_serving_models = ModelList(state.openai_serving_models, handler)
