"""One server for all tests of this folder: the testbed model, a small KV cache, tight limits."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import LONG, families
from tests.support.serving import KEY, png

DEFAULT = "m3id(lam=0.05,gate=1)"
OPTIONS = {
    "--strategy": [DEFAULT],
    "--alias": ["vcd(alpha=0.5)", "greedy"],
    "--allow": ["vcd", "var", "m3id", "vhr", "ritual", "vista", "opera"],
    "--max-rows": ["8"],
    "--max-groups": ["16"],
    "--max-images": ["2"],
    "--max-image-mb": ["0.25"],
    "--max-image-pixels": ["1000000"],
    "--max-request-pixels": ["1500000"],
    "--image-fetch-seconds": ["1.5"],
    "--image-domain": ["127.0.0.1"],
    # vLLM's own
    "--api-key": [KEY],
    "--kv-cache-memory-bytes": ["64M"],
    "--block-size": ["32"],
    "--num-gpu-blocks-override": ["60"],
    "--max-model-len": ["512"],
    "--max-num-seqs": ["32"],
    "--max-num-batched-tokens": ["1024"],
}
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Served:
    """Where the server is, and where it may read pictures."""

    url: str
    folder: Path
    web: str  # an allowed site
    process: subprocess.Popen


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """The running server."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "one.png").write_bytes(png(families.pictures()[0]))
    (folder.parent / "outside.png").write_bytes(png(families.pictures()[0]))
    (folder / "folder").mkdir()
    (folder / "long.png").write_bytes(b"0" * 400_000)
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    words = [word for name, values in OPTIONS.items() for v in values for word in (name, v)]
    words += ["--allowed-local-media-path", str(folder)]
    words += ["--artifacts", str(folder.parent / "artifacts")]
    site, web = _site(folder)
    try:
        with running(words, tmp_path_factory.mktemp("log") / "server.log") as (url, process):
            yield Served(url, folder, web, process)
    finally:
        site.shutdown()
        site.server_close()


@contextmanager
def running(words: list[str], log: Path, **more: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """A server of the testbed model: where it is, and its process; it must stop in order."""
    port = _free_port()
    command = [sys.executable, "-m", "halludecode", "serve", "--model", "testbed"]
    command += ["--port", str(port), *words]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            env={**os.environ, **SETTINGS, **more},
            start_new_session=True,
        )
        try:
            _wait(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(LONG)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
    assert process.returncode == 0


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(6000):  # seconds on an idle machine, minutes on a busy one
        if process.poll() is not None:
            pytest.fail(f"the server ended: {log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"the server did not start: {log.read_text()[-3000:]}")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _site(folder: Path) -> tuple[http.server.ThreadingHTTPServer, str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/moved.png":
                self.send_response(302)
                self.send_header("Location", f"http://localhost:{self.server.server_port}/one.png")
                self.end_headers()
                return
            if self.path == "/slow.png":  # a byte now and then, until nobody reads any more
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                with contextlib.suppress(OSError):
                    while True:
                        self.wfile.write(b"0")
                        time.sleep(0.2)
                return
            found = {"/one.png": (folder / "one.png").read_bytes(), "/long.png": b"0" * 400_000}
            body = found.get(self.path, b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    return site, f"http://127.0.0.1:{site.server_port}"
