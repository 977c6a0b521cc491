"""What every route keeps to: time, length, the key, room for pictures; and how processes end."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import pytest
import uvicorn
from PIL import Image

from tests.support import LONG
from tests.support.processes import REPO, environment
from tests.support.serving import data_url

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's own
    from vllm.exceptions import VLLMValidationError

    from halludecode.serve import images, limits
    from halludecode.serve.policy import Busy, Policy


async def echo(scope, receive, send):
    if scope["type"] != "http":
        return
    length = 0
    while True:
        message = await receive()
        length += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    body = str(length).encode()
    head = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


def asked(act):
    """What ``act(port)`` gives, with a server of our protocol beside it."""

    async def run():
        config = uvicorn.Config(
            echo, port=0, http=limits.TimedProtocol, lifespan="off", log_level="critical"
        )
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            return await act(server.servers[0].sockets[0].getsockname()[1])
        finally:
            server.should_exit = True
            await task

    return asyncio.run(run())


WHOLE = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"


@pytest.mark.parametrize("cut", [0, 1, 10, 30])
def test_a_connection_without_the_end_of_headers_is_closed(monkeypatch, cut):
    monkeypatch.setattr(limits, "HEADER_SECONDS", 0.2)

    async def act(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(WHOLE[:cut])
        await asyncio.wait_for(reader.read(), LONG)  # until it is closed
        writer.close()
        return True

    assert asked(act)


def test_so_is_one_that_stops_in_its_second_request_and_whole_ones_are_not(monkeypatch):
    monkeypatch.setattr(limits, "HEADER_SECONDS", 0.3)

    async def act(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(WHOLE)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LONG)
            assert b"200" in head
            assert await reader.readexactly(1) == b"3"
            await asyncio.sleep(0.2)
        writer.write(WHOLE[:20])
        rest = await asyncio.wait_for(reader.read(), LONG)
        writer.close()
        return rest

    assert asked(act) == b""


def answered(app, messages, scope=None) -> list[dict]:
    """What an ASGI application sends, given what it receives; None is waited for in vain."""

    async def run():
        rest, sent = iter(messages), []

        async def receive():
            message = next(rest, None)
            if message is None:
                await asyncio.sleep(LONG)
            return message

        async def send(message):
            sent.append(message)

        await app(scope or {"type": "http", "path": "/", "headers": []}, receive, send)
        return sent

    return asyncio.run(run())


def part(size: int, more: bool) -> dict:
    return {"type": "http.request", "body": b"0" * size, "more_body": more}


def test_a_body_is_sent_in_time_and_within_its_length(monkeypatch):
    from fastapi import HTTPException

    limited = limits.RequestLimits(echo, Policy("testbed", images=1, image_bytes=3 << 20))
    assert answered(limited, [part(5, True), part(5, False)])[1]["body"] == b"10"
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.1)
    with pytest.raises(HTTPException) as late:
        answered(limited, [part(5, True)])
    assert late.value.status_code == 408
    with pytest.raises(HTTPException) as long:
        answered(limited, [part(9 << 20, True)])
    assert long.value.status_code == 413


@pytest.mark.parametrize(
    ("path", "method", "key", "status"),
    [
        ("/health", "GET", None, 200), ("/health", "POST", None, 401), ("/metrics", "GET", "", 200),
        ("/tokenize", "POST", None, 401), ("/tokenize", "POST", "wrong", 401),
        ("/tokenize", "POST", "secret", 200), ("/v1/models", "GET", None, 401),
        ("/healthy", "GET", None, 401), ("/docs", "GET", None, 401), ("/x", "OPTIONS", None, 200),
    ],
)  # fmt: skip
def test_the_key_guards_every_route_but_those_that_say_how_the_server_is(path, method, key, status):
    head = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
    scope = {"type": "http", "path": path, "method": method, "headers": head, "root_path": ""}
    sent = answered(limits.KeyGuard(echo, ["secret"]), [part(0, False)], scope)
    assert sent[0]["status"] == status
    assert answered(limits.KeyGuard(echo, []), [part(0, False)], scope)[0]["status"] == 200


def png_of(width: int, height: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return data_url(file.getvalue())


def test_pixels_are_counted_per_request_and_of_all_that_is_held(monkeypatch):
    monkeypatch.setattr(images, "REQUESTS_HELD", 1)
    monkeypatch.setattr(images, "WAIT", 0.2)

    async def run():
        policy = Policy("testbed", image_pixels=5000, request_pixels=10_000)
        pictures = images.install(policy)
        images.ROOM.set(images.PixelRoom(policy.request_pixels))
        async with pictures.held([png_of(50, 100), png_of(50, 100)]) as held:
            assert [picture.size for picture in held] == [(50, 100)] * 2
            with pytest.raises(VLLMValidationError, match="more than the 10,000 pixels together"):
                await pictures.fetch_image_async(png_of(10, 10))
            images.ROOM.set(images.PixelRoom(policy.request_pixels))  # another request
            with pytest.raises(Busy, match="try again later"):
                await pictures.fetch_image_async(png_of(10, 10))
            waiting = asyncio.create_task(pictures.fetch_image_async(png_of(10, 10)))
            await asyncio.sleep(0)
            held.clear()
            gc.collect()
            assert (await waiting).media.size == (10, 10)
        with pytest.raises(VLLMValidationError, match="100 x 51 pixels, this server accepts 5,000"):
            await pictures.fetch_image_async(png_of(100, 51))

    asyncio.run(run())


def test_an_engines_process_ends_with_its_parent(tmp_path):
    code = textwrap.dedent("""
        import multiprocessing, sys, time
        from halludecode.engines.vllm.compat.parent import end_with_parent

        def work():
            end_with_parent()
            print("up", flush=True)
            time.sleep(600)

        if __name__ == "__main__":
            child = multiprocessing.get_context("spawn").Process(target=work, name="EngineCore")
            child.start()
            print(child.pid, flush=True)
            time.sleep(600)
    """)
    # A file, for a spawned process imports the program of its parent.
    path = tmp_path / "program.py"
    path.write_text(code)
    command = [sys.executable, str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment(REPO)
    ) as front:
        try:
            said = {front.stdout.readline().strip() for _ in range(2)}
        finally:
            front.kill()
    pid = int((said - {"up"}).pop())
    for _ in range(1000):
        if not alive(pid):
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the engine's process outlived its parent")


def alive(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
