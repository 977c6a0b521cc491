"""A stand-in for `halludecode serve`: answers as `FakeEngine` does, and fails when told to.

It speaks what `ServerEngine` reads, so that failures can be tested in milliseconds; that the real
server speaks the same is tested against the real one.
"""

from __future__ import annotations

import http.server
import json
import threading
import time
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

from halludecode import __version__
from halludecode.core.errors import HalluDecodeError
from halludecode.engines.api import Request, Sampling
from halludecode.engines.inputs.images import load_picture
from tests.support import LONG
from tests.support.eval_world import FakeEngine

ABOUT = {
    "model": "fake",
    "model_digest": "0123",
    "family": "llava",
    "engine": "vllm",
    "dtype": "float32",
    "device": "cpu",
    "versions": {"vllm": "0.32.0"},
    "halludecode": __version__,
    "provides": ["rows"],
    "placeholder": "<image>",
    "context": 512,
    "limits": {"rows": 8},
}


class Stub:
    """One server.

    Args:
        fault: Number of the request (from 1) and its body -> a status, "die", or None.
        about: What is told otherwise than in `ABOUT`.
        key: The key it asks for.
        together: The first so many requests are answered when all of them are there.
    """

    def __init__(self, fault=None, about=None, key=None, together=1) -> None:
        self.engine, self.bodies, self.heads = FakeEngine(), [], []
        self.most = self.running = 0
        self._lock, self._fault, self._key = threading.Lock(), fault or (lambda n, body: None), key
        self._together = threading.Barrier(together, lambda: time.sleep(0.2 * (together > 1)))
        self.about = {**ABOUT, **(about or {})}
        stub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                stub.get(self)

            def do_POST(self) -> None:
                stub.post(self)

            def log_message(self, *args: object) -> None:
                pass

        class Web(http.server.ThreadingHTTPServer):
            def handle_error(self, request, client_address) -> None:
                pass  # clients that hang up

        self._web = Web(("127.0.0.1", 0), Handler)
        self._web.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._web.server_port}"
        threading.Thread(target=self._web.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> Stub:
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        with suppress(OSError):
            self._web.socket.shutdown(2)
        self._web.server_close()
        self._web.shutdown()

    def get(self, handler) -> None:
        path = urlsplit(handler.path)
        if self._key and handler.headers["Authorization"] != f"Bearer {self._key}":
            reply(handler, 401, {"error": "Unauthorized"})
        elif path.path == "/v1/halludecode":
            reply(handler, 200, self.about)
        elif path.path == "/v1/halludecode/plan":
            try:
                plan = self.engine.plan(parse_qs(path.query)["strategy"][0])
            except HalluDecodeError as error:
                reply(handler, 400, refusal(str(error), type(error).__name__))
                return
            controls = {"net_scale": 1.0, "cutoff": 0.1, "read_against": [], "note": ""}
            told = {"canonical": plan.canonical, "rows": plan.rows, "cost": plan.cost}
            reply(handler, 200, {**told, "describe": plan.describe(), "controls": controls})
        else:
            reply(handler, 404, {"error": {"message": "Not Found"}})

    def post(self, handler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.bodies.append(body)
            self.running += 1
            self.most = max(self.most, self.running)
            number = len(self.bodies)
            what = self._fault(number, body)
        try:
            if number <= self._together.parties:
                self._together.wait(LONG)  # and once all are there a moment for one too many
            if what == "die":
                self.die()
                handler.close_connection = True
            elif what is not None:
                reply(
                    handler, what, refusal(f"It says {what}.", "InvalidRequest"), final=what == 500
                )
            else:
                reply(handler, 200, self.answer(body))
        finally:
            with self._lock:
                self.running -= 1

    def answer(self, body) -> dict:
        parts, xargs = body["messages"][0]["content"], body["vllm_xargs"]
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        words = next(part["text"] for part in parts if part["type"] == "text")
        request = Request(words, [load_picture(url).image for url in urls])
        sampling = Sampling(body["max_completion_tokens"], temperature=body["temperature"])
        with self._lock:
            output = self.engine.generate(
                [request], xargs["strategy"], sampling, score_words=xargs["score_words"]
            )[0]
        message = {"role": "assistant", "content": f"({output.text})"}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        told = {"text": output.text, "token_ids": list(output.token_ids), "stopped": False}
        if xargs.get("explain"):
            told["explanation"] = [
                {"text": text, "token_id": i, "grounding": value, "entropy": 1.0, "mass": 0.5}
                for i, (text, value) in enumerate([("a", 1.0), ("b", 0.5)])
            ]
        return {
            **{"id": "1", "object": "chat.completion", "created": 1, "model": "fake"},
            "choices": [choice],
            "strategy": xargs["strategy"],
            "halludecode": {
                **{"effect": output.effect, "rows": output.rows, "scores": output.scores},
                **{"warnings": [], "choices": [told]},
                "timings": {"prepare_ms": 1.0, "prefill_ms": 1.0, "decode_ms": 1.0},
            },
        }


def refusal(sentence: str, kind: str) -> dict:
    return {"error": {"message": sentence, "type": kind, "param": None, "code": 400}}


def reply(handler, status: int, body: dict, final: bool = False) -> None:
    data = json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    if final:
        handler.send_header("x-should-retry", "false")
    handler.end_headers()
    handler.wfile.write(data)
