"""What every route keeps to: the key, the length and the time of a request, and how a server ends.

Times are for what a client can drag out: `HEADER_SECONDS` from a connection's first byte to the end
of a request's headers, `BODY_SECONDS` more to the end of its body. A client that reads slowly holds
its own answer back and nobody else's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from halludecode.serve.images import ROOM, PixelRoom
from halludecode.serve.policy import Policy

HEADER_SECONDS = 20.0
BODY_SECONDS = 60.0
END_SECONDS = 5  # for open answers after SIGTERM, which end with an error
# What may be asked without the key: how the server is, nothing of what it serves.
OPEN = frozenset({"/health", "/ping", "/version", "/metrics", "/load"})


class KeyGuard:
    """ASGI middleware: without the key only `OPEN` is answered; vLLM's own guards ``/v1`` alone.

    Args:
        app: What is guarded.
        keys: Any of which opens; none guards nothing.
    """

    def __init__(self, app: Any, keys: Sequence[str]) -> None:
        from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

        self._app = app
        self._own = AuthenticationMiddleware(app, list(keys)) if keys else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 401 to everything else."""
        from starlette.datastructures import Headers
        from starlette.responses import JSONResponse

        if self._own is not None and scope["type"] in ("http", "websocket"):
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            asks = scope.get("method") == "OPTIONS" or (
                path in OPEN and scope.get("method") in ("GET", "HEAD")
            )
            if not asks and not self._own.verify_token(Headers(scope=scope)):
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": 1008})
                    return
                unauthorised = JSONResponse({"error": "Unauthorized"}, status_code=401)
                await unauthorised(scope, receive, send)
                return
        await self._app(scope, receive, send)


class RequestLimits:
    """ASGI middleware: a request is no longer than its pictures could be, and not sent for ever.

    Args:
        app: What is guarded.
        policy: The operator's limits.
    """

    def __init__(self, app: Any, policy: Policy) -> None:
        self._app, self._policy = app, policy

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 413 as soon as it is known to be too long, 408 when it is late."""
        from fastapi import HTTPException

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most, received, whole = self._policy.body_bytes, 0, False
        end = time.monotonic() + BODY_SECONDS

        async def counted() -> Any:
            nonlocal received, whole
            try:
                # After the body `receive` waits for the client to leave.
                async with asyncio.timeout(None if whole else end - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    HTTPStatus.REQUEST_TIMEOUT,
                    f"The request was not sent within {BODY_SECONDS:g} s; send it again.",
                ) from None
            received += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if received > most:
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"The request is longer than the {most:,} bytes this server accepts; send "
                    "fewer or smaller images.",
                )
            return message

        ROOM.set(PixelRoom(self._policy.request_pixels))
        await self._app(scope, counted, send)


class TimedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Uvicorn's protocol; a connection whose request has no end of headers is closed."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """The first request is expected from now on."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """More of a request, or the beginning of the next one."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is expected any more."""
        super().connection_lost(exc)
        self._unwatch()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()  # its headers are there
        elif self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(HEADER_SECONDS, self._close_late)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close_late(self) -> None:
        self._late = None
        upgraded = self.transport.get_protocol() is not self  # to a web socket
        if not upgraded and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
