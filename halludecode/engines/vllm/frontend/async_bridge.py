"""In the front end: vLLM's asynchronous engine as our synchronous code sees it, from threads.

`VLLMEngine` and its parts call an engine that blocks. Here each such call hands a coroutine to the
engine's event loop and waits. One thread works at a time; while it waits, others have their turn,
so that passes of several requests still share vLLM's batches. Only the asynchronous engine drives
replicas (data parallelism), so in process they are reached through it, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from types import SimpleNamespace
from typing import Any

from halludecode.core.errors import HalluDecodeError
from halludecode.engines.vllm.frontend.late_rows import Asks, listen
from halludecode.engines.vllm.row_metadata import replica_of

PATIENCE = 1.0  # seconds after which a waiting thread looks whether the server still runs


class EngineStopped(HalluDecodeError):
    """The engine has been shut down; what waits for it ends."""


class AsyncBridge:
    """Stands in for `LLMEngine`.

    Args:
        llm: vLLM's `AsyncLLM`.
        loop: The event loop it lives in.
        tasks: What the model supports.

    Attributes:
        asked: By main row, who hears that its group needs rows; called in the loop's thread.
    """

    def __init__(self, llm: Any, loop: asyncio.AbstractEventLoop, tasks: Sequence[str]) -> None:
        self.llm = llm
        self.turn = threading.Lock()
        self.vllm_config = llm.vllm_config
        self.input_processor = llm.input_processor
        self.output_processor = SimpleNamespace(add_request=self._register)
        self.engine_core = SimpleNamespace(add_request=self._send, shutdown=self._shut_down)
        self._loop, self._tasks = loop, tuple(tasks)
        self._own = threading.local()
        self._pumps: set[asyncio.Task[None]] = set()
        self._stopped = False
        self.asked: dict[str, Callable[[Asks], None]] = {}
        listen(llm.output_processor, self._tell)

    def _tell(self, asks: Asks) -> None:
        if asks.request_id in self.asked:
            self.asked[asks.request_id](asks)

    def get_supported_tasks(self) -> tuple[str, ...]:
        """What the model supports."""
        return self._tasks

    @property
    def replicas(self) -> int:
        """Data-parallel copies of the model behind this engine."""
        return len(self.llm.engine_core.core_engines)

    async def deliver(self, request: Any) -> None:
        """Hand a row over; its name tells the replica."""
        if self.replicas > 1:
            request.data_parallel_rank = replica_of(request.request_id)
        await self.llm.engine_core.add_request_async(request)

    async def call_workers(
        self, method: str, args: Sequence[Any], replica: int | None = None
    ) -> list[Any]:
        """Call a method of every worker, or of those of one replica; answers of one, by rank."""
        core = self.llm.engine_core
        if replica is None or self.replicas == 1:
            return await self.llm.collective_rpc(method, args=tuple(args))
        to = core.core_engines[replica]  # vLLM's own call would give the first one's answer
        call = ("collective_rpc", method, None, tuple(args), None)
        return await core._call_utility_async(*call, engine=to)

    def collective_rpc(
        self, method: str, args: Sequence[Any] = (), replica: int | None = None
    ) -> list[Any]:
        """See `call_workers`; named as in `LLMEngine`."""
        return self._wait(self.call_workers(method, args, replica))

    def step(self) -> list[Any]:
        """Outputs of this thread's requests, at least one.

        Raises:
            Exception: What ended vLLM's engine.
        """
        outputs: list[Any] = []
        with self._aside():
            while not outputs:
                try:
                    outputs.append(self._outputs.get(timeout=PATIENCE))
                except queue.Empty:
                    self._check_open()
        while True:
            try:
                outputs.append(self._outputs.get_nowait())
            except queue.Empty:
                break
        for output in outputs:
            if isinstance(output, Exception):
                raise output
        return outputs

    def abort_request(self, names: Sequence[str], internal: bool) -> None:
        """Stop requests."""
        self._wait(self.llm.abort(list(names), internal=internal))

    @property
    def _outputs(self) -> queue.SimpleQueue[Any]:
        if not hasattr(self._own, "outputs"):
            self._own.outputs = queue.SimpleQueue()
        return self._own.outputs

    def _register(self, request: Any, *_: Any) -> None:
        self._wait(self._listen(request, self._outputs))

    def _send(self, request: Any) -> None:
        self._wait(self.deliver(request))

    async def _listen(self, request: Any, into: queue.SimpleQueue[Any]) -> None:
        from vllm.v1.engine.output_processor import RequestOutputCollector

        self.llm._run_output_handler()
        kind = request.sampling_params.output_kind
        collector = RequestOutputCollector(kind, request.request_id)
        self.llm.output_processor.add_request(request, None, None, 0, collector)
        self.asked[request.request_id] = into.put
        task = asyncio.get_running_loop().create_task(_pump(collector, into))
        task.add_done_callback(lambda _: self.asked.pop(request.request_id, None))
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)

    def _wait(self, call: Any) -> Any:
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        with self._aside():
            while not wait([future], PATIENCE).done:
                self._check_open()
        return future.result()

    def _check_open(self) -> None:
        if self._stopped or self._loop.is_closed():
            raise EngineStopped("The engine has stopped.")

    def stop(self) -> None:
        """Threads that wait for vLLM wait no longer; it is being shut down."""
        self._stopped = True

    @property
    def stopped(self) -> bool:
        """Whether it was."""
        return self._stopped

    def _shut_down(self) -> None:
        """For `start`, whose loop nobody else uses."""

        async def end() -> None:
            tasks = [*self._pumps, *filter(None, [self.llm.output_handler])]
            for task in tasks:  # or it would report that the engine died
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.llm.shutdown()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Give the turn away, if this thread has it, until the block ends."""
        mine = getattr(self._own, "turn", False)
        if not mine:
            yield
            return
        self.turn.release()
        try:
            yield
        finally:
            self.turn.acquire()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """This thread's turn, but for where it waits for vLLM."""
        with self.turn:
            self._own.turn = True
            try:
                yield
            finally:
                self._own.turn = False


def start(args: Any) -> AsyncBridge:
    """Start vLLM's asynchronous engine in a thread of its own.

    Args:
        args: vLLM's `AsyncEngineArgs`.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    loop = asyncio.new_event_loop()

    def run() -> None:
        loop.run_forever()
        loop.close()

    async def begin() -> AsyncBridge:
        llm = AsyncLLM.from_engine_args(args)
        return AsyncBridge(llm, loop, await llm.get_supported_tasks())

    threading.Thread(target=run, name="halludecode-vllm", daemon=True).start()
    try:
        return asyncio.run_coroutine_threadsafe(begin(), loop).result()
    except BaseException:
        loop.call_soon_threadsafe(loop.stop)
        raise


async def _pump(collector: Any, into: queue.SimpleQueue[Any]) -> None:
    finished = False
    while not finished:
        try:
            output = collector.get_nowait() or await collector.get()
        except Exception as error:
            into.put(error)
            return
        finished = output.finished
        into.put(output)
