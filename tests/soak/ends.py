"""How a server ends: told to under load, without its engine, and with its front end killed.

Each time a server of its own is under load from clients of every kind, and then: every client hears
of the end, the processes end, and none is left.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support.serving import body, picture_url

SOON = 60.0  # seconds; what is measured takes a few, on two cores that others share too
SPECS = ("greedy", "vcd", "pai", "ritual+vcd")
WORDS = ("--max-model-len", "1024", "--kv-cache-memory-bytes", "128M", "--max-num-seqs", "32")


class Server:
    """A `halludecode serve` of its own."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.url, self._log = f"http://127.0.0.1:{self.port}", log
        words = [sys.executable, "-m", "halludecode", "serve", "--model", "testbed"]
        words += ["--port", str(self.port), *WORDS]
        settings = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        with log.open("wb") as out:
            self.process = subprocess.Popen(words, stdout=out, stderr=out, env=settings)
        self.children: list[psutil.Process] = []

    def wait(self) -> None:
        """Until it serves."""
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {self._log.read_text()[-2000:]}")
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.2)
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    @property
    def engine(self) -> psutil.Process:
        """The process of the engine."""
        return next(child for child in self.children if "EngineCore" in "".join(child.cmdline()))

    def left(self) -> list[str]:
        """Processes that are still there after a while."""
        _, alive = psutil.wait_procs(self.children, timeout=SOON)
        for process in alive:
            process.kill()
        return [" ".join(process.cmdline())[:80] for process in alive]


async def client(server: Server, number: int) -> str:
    """One request that would take long; how it ended."""
    spec = SPECS[number % len(SPECS)]
    asked = body("Describe the image.", picture_url(), strategy=spec, max_tokens=900)
    asked |= {"ignore_eos": True, **asked.pop("extra_body")}
    url = f"{server.url}/v1/chat/completions"
    kind = ("whole", "streamed", "slow")[number % 3]
    try:
        async with httpx.AsyncClient(timeout=SOON) as session:
            if kind == "whole":
                made = await session.post(url, json=asked)
                return "done" if made.status_code == 200 else f"status {made.status_code}"
            lines: list[str] = []
            async with session.stream("POST", url, json={**asked, "stream": True}) as made:
                if made.status_code != 200:
                    return f"status {made.status_code}"
                async for line in made.aiter_lines():
                    lines += [line] if line else []
                    await asyncio.sleep(0.5 if kind == "slow" and len(lines) < 20 else 0)
            told = any(line.startswith('data: {"error"') for line in lines)
            whole = lines and lines[-1] == "data: [DONE]"
            return "error in the stream" if told else "done" if whole else "cut off"
    except httpx.TimeoutException:
        return "HUNG"
    except httpx.HTTPError as error:
        return f"closed ({type(error).__name__})"


def half(server: Server) -> socket.socket:
    """A request that stops in the middle of its headers."""
    sock = socket.create_connection(("127.0.0.1", server.port))
    sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Le")
    return sock


async def under_load(server: Server, act: Any, clients: int) -> tuple[list[str], float, Any]:
    """What clients heard of an end that comes while all of them wait; its seconds and exit code."""
    halves = [half(server) for _ in range(4)]
    asking = [asyncio.create_task(client(server, i)) for i in range(clients)]
    await asyncio.sleep(3)
    act()
    begun = time.monotonic()

    def ended() -> tuple[float, int | None]:
        try:
            code = server.process.wait(SOON)
        except subprocess.TimeoutExpired:
            code = None
        return round(time.monotonic() - begun, 1), code

    seconds, code = await asyncio.to_thread(ended)
    heard = await asyncio.gather(*asking)
    for sock in halves:
        sock.close()
    return heard, seconds, code


def end(name: str, folder: Path, clients: int = 24) -> dict[str, Any]:
    """Start a server, end it in one of the ways, and say what was seen."""
    server = Server(folder / f"{name}.log")
    try:
        server.wait()
        acts = {
            "SIGTERM": lambda: server.process.send_signal(signal.SIGTERM),
            "engine killed": lambda: server.engine.kill(),
            "front end killed": lambda: server.process.kill(),
        }
        heard, seconds, code = asyncio.run(under_load(server, acts[name], clients))
        left = server.left()
    finally:
        if server.process.poll() is None:
            server.process.kill()
    counts = {one: heard.count(one) for one in sorted(set(heard))}
    good = "HUNG" not in counts and "done" not in counts and not left and code is not None
    good = good and (name != "SIGTERM" or code == 0)
    return {"good": good, "heard": counts, "left": left, "code": code, "seconds": seconds}


def every(folder: Path) -> dict[str, dict[str, Any]]:
    """All ends."""
    names = ("SIGTERM", "engine killed", "front end killed")
    return {name: end(name, folder) for name in names}
