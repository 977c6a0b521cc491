"""Chat requests under strategies, from their messages to the rows vLLM gets and their answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, TypeVar

from vllm.exceptions import GenerationError, GracefulHTTPError, VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError

from halludecode import __version__
from halludecode.core.errors import HalluDecodeError, HookNeverFired, InvalidRequest
from halludecode.core.plan import Plan
from halludecode.engines.api import Request, Sampling
from halludecode.engines.explain import BLIND, explaining
from halludecode.engines.inputs.processor import LRU
from halludecode.engines.vllm.engine import VLLMEngine
from halludecode.engines.vllm.frontend.async_bridge import AsyncBridge
from halludecode.engines.vllm.frontend.pending import explained
from halludecode.engines.vllm.frontend.requests import vllm_temperature
from halludecode.engines.vllm.protocol import (
    DROP_STATE,
    REPORT,
    GroupReport,
    differing_within,
    error_class,
)
from halludecode.engines.vllm.row_metadata import replica_of
from halludecode.serve.chat_request import (
    ChatRequest,
    begun_by_tokenizer,
    check_output,
    listed,
    parent_of,
    split_pictures,
    without_pictures,
)
from halludecode.serve.images import Pictures
from halludecode.serve.late_rows import LateRows
from halludecode.serve.metrics import CHANGED, TOKENS, label_of
from halludecode.serve.policy import Policy
from halludecode.serve.request_fields import (
    bias_of,
    check_known,
    check_numbers,
    check_served,
    max_tokens,
    unserved,
)

T = TypeVar("T")
KEPT = 256  # compiled strategies
THREADS = 32  # requests being prepared at a time; most of them wait for vLLM


class ChatHandler:
    """Makes rows of chat requests and follows their answers.

    Args:
        engine: Our engine over the bridge.
        bridge: To vLLM.
        policy: The operator's choices.
        pictures: Where pictures come from.
    """

    def __init__(
        self, engine: VLLMEngine, bridge: AsyncBridge, policy: Policy, pictures: Pictures
    ) -> None:
        self.policy, self.bridge, self.llm = policy, bridge, bridge.llm
        self._engine, self._pictures = engine, pictures
        self._defaults = self.llm.model_config.get_diff_sampling_param()
        self._plans: LRU[Plan] = LRU(KEPT)
        self._compiling = asyncio.Lock()
        # What the processor begins a prompt with, if its template does not; vLLM leaves it out.
        self.special_tokens = begun_by_tokenizer(engine)
        self.template_defaults: dict[str, Any] = {}  # the operator's, for the chat template
        self._tasks: set[asyncio.Task[Any]] = set()
        self._threads = ThreadPoolExecutor(THREADS, "halludecode")
        self._loop = asyncio.get_running_loop()
        self.rows_begin = engine.rows_begin
        self._late = LateRows(bridge, engine, self._in_thread, self._drop)

    async def plan(self, text: str) -> Plan:
        """A strategy compiled for this model; its first use may calibrate it."""
        if (plan := self._plans.get(text)) is not None:
            return plan
        task = asyncio.get_running_loop().create_task(self._compiled(text))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)  # it goes on when this client leaves

    async def explaining(self, plan: Plan) -> Plan:
        """See `VLLMEngine.explaining`."""
        return await self._in_thread(lambda: self._engine.explaining(plan))

    async def prepare(
        self, request: Any, plan: Plan, score_words: Sequence[str] = ()
    ) -> ChatRequest:
        """Fetch pictures, run passes before the answers, make rows.

        Args:
            request: As vLLM read it.
            plan: What acts.
            score_words: Words whose first-step scores are wanted.

        Raises:
            HalluDecodeError: The request cannot be served; the sentence says why.
        """
        arrived = time.perf_counter()
        check_served(request, plan.canonical)
        rows = {*plan.rows, *(() if explaining(plan) is None else (BLIND,))}
        self.policy.check_rows(plan.canonical, len(rows), request.n or 1)
        told = self._told_template(request)
        messages, urls = split_pictures(request.messages)
        most = min(self.policy.images, self._engine.loaded.picture_limit)
        if len(urls) > most:
            raise InvalidRequest(
                f"The request has {len(urls)} images, this server accepts {most}; send fewer."
            )
        async with self._pictures.held(urls, request.media_io_kwargs) as pictures:
            question = Request(messages, pictures, told, request.continue_final_message)
            chat = await self._in_thread(
                lambda: self._make(request, question, plan, score_words), self.forget
            )
        chat.clock.append(arrived)
        return chat

    def check(self, request: Any, body: Any) -> None:
        """What every chat request must keep to, plain or not.

        Args:
            request: As vLLM read it.
            body: As it was sent.

        Raises:
            InvalidRequest: The sentence names the field.
        """
        check_known(request, body)
        check_numbers(request, self._engine.context, self.policy.groups)

    def draws_here(self, request: Any) -> bool:
        """Whether a plain request asks for what vLLM would do in another way than our engines.

        Seeded noise of its own, temperatures it would change, bans that leave nothing to write.
        What is asked beside, such as tools, may be of the kind that only vLLM itself serves.
        """
        temperature = self._temperature(request)
        seeded = request.seed is not None or temperature != vllm_temperature(temperature)
        rules = (request.allowed_token_ids, request.bad_words or None, request.logit_bias)
        drawn = temperature > 0 and seeded
        structure = request.extract_structured_outputs()
        ruled = any(rule is not None for rule in (*rules, structure))
        return (drawn or ruled) and not any(unserved(request))

    def settle(self, request: Any, chat: ChatRequest) -> None:
        """Fields as vLLM's service may read them, which makes parameters of its own of them."""
        request.max_completion_tokens = chat.max_tokens
        request.temperature = vllm_temperature(self._temperature(request))

    def stray_placeholders(self, prompt: Any) -> int:
        """Image tokens of a prompt of vLLM's beyond those of its pictures."""
        ids = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
        count = list(ids or ()).count(self._engine.inputs.image_token)
        places = (prompt.get("mm_placeholders") or {}).get("image", ()) if count else ()
        return count - sum(place.get_num_embeds() for place in places)

    def _told_template(self, request: Any) -> dict[str, Any]:
        """What the chat template is told, as vLLM's own renderer would tell it.

        Raises:
            InvalidRequest: The prompt would not begin as the model's own processor begins it.
        """
        said = "add_special_tokens" in request.model_fields_set
        if said and request.add_special_tokens != self.special_tokens:
            raise InvalidRequest(
                f"add_special_tokens={request.add_special_tokens}: rows of a strategy begin as the "
                "model's own processor begins a prompt; leave it out."
            )
        given = request.build_chat_params(None, "auto").with_defaults(self.template_defaults)
        told = {k: v for k, v in given.chat_template_kwargs.items() if v is not None}
        if not isinstance(told.pop("continue_final_message", False), bool):
            raise InvalidRequest("continue_final_message must be true or false.")
        if request.continue_final_message:
            told.pop("add_generation_prompt", None)
        return told

    def _temperature(self, request: Any) -> float:
        given = request.temperature
        return float(self._defaults.get("temperature", 1.0) if given is None else given)

    async def answer(self, chat: ChatRequest, request_id: str) -> AsyncIterator[Any]:
        """VLLM's outputs of the main rows, as `AsyncLLM.generate` gives them.

        As there, a request is registered with the output processor before its rows are sent, and
        aborted by its name where its client leaves; the scheduler then ends its other rows.

        Raises:
            GenerationError, VLLMValidationError: The answer is void; the sentence says why.
        """
        from vllm.v1.engine.output_processor import RequestOutputCollector

        llm, mains, label = self.llm, chat.mains, label_of(chat.plan)
        llm.check_admission(len(mains), request_id)
        llm._run_output_handler()
        queue = RequestOutputCollector(mains[0].sampling_params.output_kind, chat.name)
        parent = parent_of(chat, request_id) if len(mains) > 1 else None
        done = False
        chat.start()
        try:
            for child, main in enumerate(mains):
                main.external_req_id = request_id
                llm.output_processor.add_request(main, None, parent, child, queue)
            for rows in chat.group.members:
                self._late.expect(chat, rows[0], queue)
                for row in rows:
                    await self.bridge.deliver(row)
            while not done:
                output = queue.get_nowait() or await queue.get()
                if any(choice.finish_reason == "error" for choice in output.outputs):
                    await self._read_reports(chat)  # which may say why
                    check_output(output)
                TOKENS.labels(label).inc(chat.add_tokens(output))
                done = output.finished
                if done:
                    await self._read_reports(chat)
                yield output
        finally:
            self._late.forget(chat)
            if not done:
                names = [chat.name] if parent else [main.request_id for main in mains]
                await llm.abort(names, internal=True)
            queue.close()
            self._drop(chat)

    def stop(self) -> None:
        """The engine ends: everybody who waits for it is told; may be called from a thread."""
        self.bridge.stop()
        ended = GracefulHTTPError("The server is shutting down.", HTTPStatus.SERVICE_UNAVAILABLE)

        def tell() -> None:
            if self.llm.output_handler is not None:
                self.llm.output_handler.cancel()  # or it would report that the engine died
            self.llm.output_processor.propagate_error(ended)

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(tell)

    def forget(self, chat: ChatRequest) -> None:
        """Drop what workers keep of a request that was never handed to vLLM."""
        if not chat.started:
            self._drop(chat)

    def _drop(self, chat: ChatRequest) -> None:
        """Goes on by itself; only after the rows have ended, which still read what is kept."""
        names, at = [main.request_id for main in chat.mains], replica_of(chat.name)

        async def drop() -> None:
            with contextlib.suppress(EngineDeadError):  # which has dropped everything
                await self.bridge.call_workers(REPORT, (names,), at)
                await self.bridge.call_workers(DROP_STATE, ([chat.name],), at)

        task = asyncio.get_running_loop().create_task(drop())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _compiled(self, text: str) -> Plan:
        async with self._compiling:  # while an artifact is on trial nobody else may use its part
            plan = self._plans.get(text)
            if plan is None:
                try:
                    plan = await self._in_thread(lambda: self._engine.plan(text))
                except HalluDecodeError as error:  # where the server keeps its files is its own
                    folder = str(self._engine.calibrator.store.folder)
                    raise type(error)(str(error).replace(folder, "the server's folder")) from None
                self._plans.put(text, plan)
        return plan

    async def describe(self) -> dict[str, Any]:
        """The model, what computes it, and the operator's limits."""
        policy, engine = self.policy, self._engine
        described = await self._in_thread(engine.describe)
        return {
            **described,
            "halludecode": __version__,
            "model": policy.name,
            "provides": sorted(engine.provides),
            "extra_rows": engine.extra_rows,
            "placeholder": engine.family.placeholder,
            "context": engine.context,
            "default": policy.default,
            "allowed": None if policy.allowed is None else sorted(policy.allowed),
            "limits": {"rows": policy.rows, "answers": policy.groups, "images": policy.images},
        }

    def explained(self, chat: ChatRequest, child: int, text: str, ids: Sequence[int]) -> Any:
        """One answer token by token; None where that was not asked for."""
        how = self._engine.family, self._engine.processor.tokenizer.decode
        return explained(chat.plan, chat.opened.prepared, (text, ids, chat.readings[child]), *how)

    def decode(self, ids: Sequence[int]) -> str:
        """Text as `VLLMEngine` writes it."""
        return self._engine.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _make(
        self, request: Any, question: Request, plan: Plan, score_words: Sequence[str]
    ) -> ChatRequest:
        engine = self._engine
        opened = engine.open([question], plan)[0]
        try:
            rows = opened.prepared.rows.values()
            longest = max(len(row.input_ids) for row in rows if row.life == "answer")
            most = max_tokens(request, self._defaults, engine.context - longest)
            params = self._params(request, most)
            sampling = Sampling(
                max_new_tokens=most,
                min_new_tokens=request.min_tokens,
                temperature=self._temperature(request),
                seed=None if request.seed == -1 else request.seed,  # as vLLM reads it
                n=params.n,
                allowed_token_ids=request.allowed_token_ids,
                bad_words=request.bad_words,
                logit_bias=bias_of(request),
            )
            group = engine.group(opened, sampling, score_words)
            for members in group.members:
                self._set_params(members[0], params)
            # Decoded pictures are not kept for as long as the answer takes.
            return ChatRequest(without_pictures(opened), group, most, listed(request.stop))
        except BaseException:
            engine.forget([opened])
            raise

    def _params(self, request: Any, max_tokens: int) -> Any:
        """VLLM's parameters of the request, but for what a group sets itself."""
        ends = [] if request.ignore_eos else self._engine.end_tokens
        ours = {
            "ignore_eos": True,
            "stop_token_ids": [*(request.stop_token_ids or []), *ends],
            "temperature": vllm_temperature(self._temperature(request)),
            **dict.fromkeys(("seed", "vllm_xargs", "allowed_token_ids", "logit_bias")),
        }
        adapted = request.model_copy(update=ours)
        return adapted.to_sampling_params(max_tokens, self._defaults)

    def _set_params(self, main: Any, params: Any) -> None:
        """Give a main row the request's parameters, checked as vLLM checks everybody's."""
        from vllm.inputs.engine import tokens_input

        merged = params.clone()
        own = main.sampling_params
        merged.n, merged.max_tokens, merged.extra_args = 1, own.max_tokens, own.extra_args
        merged.skip_reading_prefix_cache = own.skip_reading_prefix_cache
        checked = self.bridge.input_processor.process_inputs(
            main.request_id,
            tokens_input(list(main.prompt_token_ids)),
            merged,
            supported_tasks=self.bridge.get_supported_tasks(),
        )
        main.sampling_params = checked.sampling_params

    async def _read_reports(self, chat: ChatRequest) -> None:
        """What the workers report of a written answer; a void one is an error."""
        names = [main.request_id for main in chat.mains]
        label = label_of(chat.plan)
        reports: Sequence[GroupReport] = (
            await self.bridge.call_workers(REPORT, (names,), replica_of(chat.name))
        )[0]
        for report, ids in zip(reports, chat.ids, strict=True):
            if report["error"]:
                kind = report["kind"]
                wrong_use = kind and error_class(kind) is not HookNeverFired
                raise (VLLMValidationError if wrong_use else GenerationError)(report["error"])
            CHANGED.labels(label).inc(differing_within(report["differs"], len(ids)) or 0)
        chat.report, chat.readings = reports[0], [report["readings"] for report in reports]
        chat.clock.append(time.perf_counter())

    async def _in_thread(
        self, call: Callable[[], T], discard: Callable[[T], None] | None = None
    ) -> T:
        """Run blocking code of ours; a result nobody waits for any more is discarded."""

        def work() -> T:
            with self.bridge.working():
                return call()

        task = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if discard is not None:
                task.add_done_callback(
                    lambda t: None if t.cancelled() or t.exception() else discard(t.result())
                )
            raise
