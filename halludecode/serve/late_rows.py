"""Rows that join an answer of the server when a token needs them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from vllm.exceptions import VLLMValidationError

from halludecode.core.errors import HalluDecodeError
from halludecode.engines.vllm.engine import VLLMEngine
from halludecode.engines.vllm.frontend.async_bridge import AsyncBridge
from halludecode.engines.vllm.frontend.late_rows import Asks
from halludecode.serve.chat_request import ChatRequest
from halludecode.serve.metrics import JOINED, ROWS, label_of


class LateRows:
    """Hears of answers that need rows and has them made.

    Args:
        bridge: To vLLM.
        engine: Makes the rows.
        in_thread: Runs what blocks.
        drop: Drops what workers keep of a request that has ended.
    """

    def __init__(
        self,
        bridge: AsyncBridge,
        engine: VLLMEngine,
        in_thread: Callable[[Callable[[], list[Any]]], Awaitable[list[Any]]],
        drop: Callable[[ChatRequest], None],
    ) -> None:
        self._bridge, self._engine = bridge, engine
        self._in_thread, self._drop = in_thread, drop
        self._tasks: set[asyncio.Task[None]] = set()

    def expect(self, chat: ChatRequest, main: Any, queue: Any) -> None:
        """From now on rows are made when the answer of a main row needs them.

        Args:
            chat: The request.
            main: The vLLM request of the main row.
            queue: Where the reader of its outputs hears of an error.
        """

        def hear(asks: Asks) -> None:
            task = asyncio.get_running_loop().create_task(self._join(chat, main, queue, asks))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._bridge.asked[main.request_id] = hear

    def forget(self, chat: ChatRequest) -> None:
        """The request has ended; what is being made for it is not handed over."""
        chat.ended = True
        ROWS.labels(label_of(chat.plan)).dec(chat.joined)
        for main in chat.mains:
            self._bridge.asked.pop(main.request_id, None)

    async def _join(self, chat: ChatRequest, main: Any, queue: Any, asks: Asks) -> None:
        try:
            rows = await self._in_thread(lambda: self._engine.joining(chat.opened, main, asks.ids))
            if not chat.ended:
                chat.joined += len(rows)
                ROWS.labels(label_of(chat.plan)).inc(len(rows))
                JOINED.labels(label_of(chat.plan)).inc()
                for row in rows:
                    await self._bridge.deliver(row)
        except HalluDecodeError as error:
            queue.put(VLLMValidationError(str(error)))
        except Exception as error:  # the reader of the queue tells of it
            queue.put(error)
        if chat.ended:  # passes may have left something after the rest was dropped
            self._drop(chat)
