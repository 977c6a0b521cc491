"""A chat request under a strategy, from its messages to the rows vLLM gets and their answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar

from vllm.exceptions import GenerationError, VLLMValidationError

from halludecode import __version__
from halludecode.core.errors import HookNeverFired, InvalidRequest
from halludecode.core.plan import Plan
from halludecode.core.prompt import Prompt, Turn
from halludecode.engines.api import Request, Sampling
from halludecode.engines.inputs.processor import LRU
from halludecode.engines.vllm.engine import OpenRequest, VLLMEngine
from halludecode.engines.vllm.frontend.async_bridge import AsyncBridge
from halludecode.engines.vllm.frontend.requests import RequestGroup
from halludecode.engines.vllm.protocol import DROP_STATE, REPORT, differing_within, error_class
from halludecode.engines.vllm.row_metadata import replica_of
from halludecode.serve.chat_request import check_served, split_pictures
from halludecode.serve.images import Pictures
from halludecode.serve.metrics import CHANGED, TOKENS
from halludecode.serve.policy import Policy

T = TypeVar("T")
KEPT = 256  # compiled strategies
THREADS = 32  # requests being prepared at a time; most of them wait for vLLM


@dataclass(eq=False)
class ChatRequest:
    """One request, ready for vLLM.

    Args:
        opened: Its rows as they were made.
        group: The same as vLLM gets them, per child.
        most: Most tokens written.
        stops: Strings that end an answer.
        started: Whether it was handed to vLLM; from then on `ChatHandler.answer` cleans up.
        clock: Seconds at arrival, when handed over, at the first token, at the end.
        ids: Tokens written so far, per child.
        told: What the workers noted of the first child, once it is done.
    """

    opened: OpenRequest
    group: RequestGroup
    most: int
    stops: tuple[str, ...] = ()
    started: bool = False
    clock: list[float] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Our name of it."""
        return self.opened.name

    @property
    def plan(self) -> Plan:
        """What acts."""
        return self.opened.plan

    @property
    def mains(self) -> list[Any]:
        """The main row of every child."""
        return [rows[0] for rows in self.group.members]

    @property
    def rows(self) -> int:
        """Rows it occupies."""
        return sum(len(rows) for rows in self.group.members)

    def begin(self) -> None:
        """It is handed to vLLM now."""
        self.clock.append(time.perf_counter())
        self.ids = [[] for _ in self.group.members]

    def note(self, output: Any) -> int:
        """Keep an output's tokens; returns how many there are."""
        for one in output.outputs:
            self.ids[one.index] += one.token_ids
        if len(self.clock) == 2:
            self.clock.append(_first_token(output, self.clock[1]))
        return sum(len(one.token_ids) for one in output.outputs)


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
        # The model's own processor begins a prompt with these unless its template does; vLLM's chat
        # leaves them out, so that plain requests would read another prompt than rows do.
        self.special_tokens = _begun_by_tokenizer(engine)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._threads = ThreadPoolExecutor(THREADS, "halludecode")

    async def plan(self, text: str) -> Plan:
        """A strategy compiled for this model; its first use may calibrate it."""
        known = self._plans.get(text)
        if known is not None:
            return known
        task = asyncio.get_running_loop().create_task(self._compiled(text))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)  # it goes on when this client leaves

    async def ask(self, request: Any, plan: Plan, words: Sequence[str] = ()) -> ChatRequest:
        """Fetch pictures, run passes before the answers, make rows.

        Args:
            request: As vLLM read it.
            plan: What acts.
            words: Words whose first-step scores are wanted.

        Raises:
            HalluDecodeError: The request cannot be served; the sentence says why.
        """
        begun = time.perf_counter()
        check_served(request, plan.canonical)
        self.policy.check_rows(plan.canonical, len(plan.rows), request.n or 1)
        messages, urls = split_pictures(request.messages)
        if len(urls) > self.policy.images:
            raise InvalidRequest(
                f"The request has {len(urls)} images, this server accepts {self.policy.images}; "
                "send fewer."
            )
        found = await asyncio.gather(*map(self._pictures.fetch_image_async, urls))
        asked = Request(messages, [one.media for one in found])
        made = await self._in_thread(lambda: self._make(request, asked, plan, words), self.forget)
        made.clock.append(begun)
        return made

    async def answer(self, asked: ChatRequest, request_id: str) -> AsyncIterator[Any]:
        """VLLM's outputs of the main rows, as `AsyncLLM.generate` gives them.

        Raises:
            GenerationError, VLLMValidationError: The answer is void; the sentence says why.
        """
        from vllm.v1.engine.output_processor import RequestOutputCollector

        llm, mains, label = self.llm, asked.mains, label_of(asked.plan)
        llm.check_admission(len(mains), request_id)
        llm._run_output_handler()
        queue = RequestOutputCollector(mains[0].sampling_params.output_kind, asked.name)
        parent = _parent(asked, request_id) if len(mains) > 1 else None
        done, asked.started = False, True
        asked.begin()
        try:
            for child, main in enumerate(mains):
                main.external_req_id = request_id
                llm.output_processor.add_request(main, None, parent, child, queue)
            for rows in asked.group.members:
                for row in rows:
                    await self.bridge.deliver(row)
            while not done:
                output = queue.get_nowait() or await queue.get()
                _check(output)
                TOKENS.labels(label).inc(asked.note(output))
                done = output.finished
                if done:
                    await self._judge(asked)
                yield output
        finally:
            if not done:
                names = [asked.name] if parent else [main.request_id for main in mains]
                await llm.abort(names, internal=True)
            queue.close()
            self._drop(asked)

    def forget(self, asked: ChatRequest) -> None:
        """Drop what workers keep of a request that was never handed to vLLM."""
        if not asked.started:
            self._drop(asked)

    def _drop(self, asked: ChatRequest) -> None:
        """Goes on by itself; only after the rows have ended, which still read what is kept."""
        names, at = [main.request_id for main in asked.mains], replica_of(asked.name)

        async def tell() -> None:
            await self.bridge.call_workers(REPORT, (names,), at)
            await self.bridge.call_workers(DROP_STATE, ([asked.name],), at)

        task = asyncio.get_running_loop().create_task(tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _compiled(self, text: str) -> Plan:
        async with self._compiling:  # while an artifact is on trial nobody else may use its part
            known = self._plans.get(text)
            if known is None:
                known = await self._in_thread(lambda: self._engine.plan(text))
                self._plans.put(text, known)
        return known

    async def describe(self) -> dict[str, Any]:
        """The model, what computes it, and the operator's limits."""
        policy, engine = self.policy, self._engine
        told = await self._in_thread(engine.describe)
        return {
            **told,
            "halludecode": __version__,
            "model": policy.name,
            "provides": sorted(engine.provides),
            "placeholder": engine.family.placeholder,
            "context": engine.context,
            "default": policy.default,
            "allowed": None if policy.allowed is None else sorted(policy.allowed),
            "limits": {"rows": policy.rows, "answers": policy.groups, "images": policy.images},
        }

    def decode(self, ids: Sequence[int]) -> str:
        """Text as `VLLMEngine` writes it."""
        return self._engine.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _make(self, request: Any, asked: Request, plan: Plan, words: Sequence[str]) -> ChatRequest:
        engine = self._engine
        opened = engine.open([asked], plan)[0]
        try:
            rows = opened.prepared.rows.values()
            longest = max(len(row.input_ids) for row in rows if row.life == "answer")
            most = self._most(request, engine.context - longest)
            params = self._params(request, most)
            sampling = Sampling(
                max_new_tokens=most, temperature=params.temperature, seed=request.seed, n=params.n
            )
            group = engine.group(opened, sampling, words)
            for members in group.members:
                self._set_params(members[0], params)
            return ChatRequest(opened, group, most, _listed(request.stop))
        except BaseException:
            engine.forget([opened])
            raise

    def _most(self, request: Any, room: int) -> int:
        given = request.max_completion_tokens or request.max_tokens
        return max(min(given or self._defaults.get("max_tokens") or room, room), 1)

    def _params(self, request: Any, most: int) -> Any:
        """VLLM's parameters of the request, but for what a group sets itself."""
        ends = [] if request.ignore_eos else self._engine.end_tokens
        ours = {"ignore_eos": True, "stop_token_ids": [*(request.stop_token_ids or []), *ends]}
        made = request.model_copy(update={**ours, "seed": None, "vllm_xargs": None})
        return made.to_sampling_params(most, self._defaults)

    def _set_params(self, main: Any, params: Any) -> None:
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

    async def _judge(self, asked: ChatRequest) -> None:
        """What the workers noted while the answer was written."""
        names = [main.request_id for main in asked.mains]
        label = label_of(asked.plan)
        notes: Sequence[Mapping[str, Any]] = (
            await self.bridge.call_workers(REPORT, (names,), replica_of(asked.name))
        )[0]
        for note, ids in zip(notes, asked.ids, strict=True):
            if note["error"]:
                wrong_use = note["kind"] and error_class(note["kind"]) is not HookNeverFired
                raise (VLLMValidationError if wrong_use else GenerationError)(note["error"])
            CHANGED.labels(label).inc(differing_within(note["differs"], len(ids)) or 0)
        asked.told = notes[0]
        asked.clock.append(time.perf_counter())

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


def _first_token(output: Any, sent: float) -> float:
    """When the first token was there; an answer that comes whole tells it in its statistics."""
    latency = getattr(output.metrics, "first_token_latency", 0.0) if output.finished else 0.0
    now = time.perf_counter()
    return min(sent + latency, now) if output.finished else now


def _listed(stop: Any) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def _begun_by_tokenizer(engine: VLLMEngine) -> bool:
    bos = getattr(engine.tokenizer, "bos_token", None)
    return not (bos and engine.inputs.render(Prompt((Turn("user", ("?",)),))).startswith(bos))


def label_of(plan: Plan) -> str:
    """Names of a plan's strategies, without parameters."""
    return "+".join(part.strategy.name for part in plan.parts) or "greedy"


def _parent(asked: ChatRequest, request_id: str) -> Any:
    """VLLM's record of a request with several answers."""
    from vllm.v1.engine.parallel_sampling import ParentRequest

    params = asked.mains[0].sampling_params.clone()
    params.n = len(asked.mains)
    made = ParentRequest(
        SimpleNamespace(request_id=asked.name, external_req_id=request_id, params=params)  # type: ignore[arg-type]
    )
    made.child_requests = {main.request_id for main in asked.mains}
    return made


def _check(output: Any) -> None:
    for one in output.outputs:
        if one.finish_reason == "error":
            raise GenerationError(f"vLLM gave the request up: {one.stop_reason or 'no reason'}.")
