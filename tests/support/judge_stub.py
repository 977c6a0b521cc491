"""A language model that judges: says what it is told to, in turn, and keeps what it was asked."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Stub(http.server.ThreadingHTTPServer):
    """Replies are parts of a message, or an HTTP status."""

    def __init__(self, *replies: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.asked = list(replies), []

    @property
    def url(self) -> str:
        """Where it is asked."""
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    """One request: the next reply."""

    server: Stub

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        reply = self.server.replies.pop(0)
        status = reply if isinstance(reply, int) else 200
        told = {"role": "assistant", "content": None, **(reply if status == 200 else {})}
        choice = {"index": 0, "message": told, "finish_reason": told.pop("finish_reason", "stop")}
        made = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge-2024"}
        made |= {"choices": [choice]} if status == 200 else {"error": {"message": "no such judge"}}
        data = json.dumps(made).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def judges() -> Iterator[Callable[..., Stub]]:
    """Starts a judge that gives these replies; all are ended afterwards."""
    servers: list[Stub] = []

    def start(*replies: Any) -> Stub:
        servers.append(Stub(*replies))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
