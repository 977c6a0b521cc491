"""What our server costs a request that has no strategy: its rate beside bare vLLM's server.

    .venv/bin/python benchmarks/plain_serve.py [--requests 40] [--tokens 32] [--rounds 15]

Both servers are up and take the same new pictures in turn, 16 requests at a time; time is the
processor time of a server's own processes, which other programs touch less than the clock, and the
client's is not in it. "ours" is greedy in our server as it comes up, "after strategies" the same
once each way to act has run there. A ratio is of rates within a round; what is printed is the mean
over rounds with its 95 % interval. vLLM writes a chat's prompt without the begin token that the
model's own processor writes, and ours with it, so answers differ here and there: how many is
printed.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import openai
import psutil
from PIL import Image
from safetensors.torch import load_file, save_file

from halludecode.testbed.assets import model_path

WAYS = ("vcd", "pai", "var", "dola", "vista", "vhr")  # rows, edits, early layers, steering, heads
OPEN = 16  # requests at a time
OPTIONS = (
    *("--block-size", "32", "--kv-cache-memory-bytes", str(256 << 20), "--max-model-len", "1024"),
    *("--max-num-seqs", "48", "--dtype", "float32", "--enforce-eager"),
    *("--disable-uvicorn-access-log",),
)
BARE = ("-m", "vllm.entrypoints.openai.api_server", "--model")
OURS = ("-m", "halludecode", "serve", "--model")


class Server:
    """One server, its clients' connection and its processes.

    Args:
        name: How answers name its model.
        port: Where it listens.
        process: Its first process; what it starts is counted, too.
    """

    def __init__(self, name: str, port: int, process: psutil.Popen) -> None:
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        self.name, self._process, self._health = name, process, f"http://127.0.0.1:{port}/health"

    def wait(self, seconds: int = 300) -> None:
        """Until it answers."""
        for _ in range(seconds):
            if self._process.poll() is not None:
                raise SystemExit(f"the server of {self.name} ended with {self._process.poll()}")
            try:
                if httpx.get(self._health).is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(1)
        raise SystemExit(f"the server of {self.name} did not come up in {seconds} s")

    def seconds(self) -> float:
        """Processor time of its processes so far."""
        own = [self._process, *self._process.children(recursive=True)]
        return sum(sum(each.cpu_times()[:2]) for each in own)

    def ask(self, url: str, tokens: int, strategy: str | None = None) -> str:
        """One answer's text."""
        extra: dict[str, Any] = {"ignore_eos": True}
        if strategy:
            extra["vllm_xargs"] = {"strategy": strategy}
        words = {"type": "text", "text": "Please describe this image in detail."}
        content = [{"type": "image_url", "image_url": {"url": url}}, words]
        made = self.client.chat.completions.create(
            model=self.name,
            messages=[{"role": "user", "content": content}],  # type: ignore[list-item]
            max_tokens=tokens,
            temperature=0,
            extra_body=extra,
        )
        return str(made.choices[0].message.content)

    def timed(self, urls: list[str], tokens: int) -> tuple[float, list[str]]:
        """Requests per second of its processor time, and the answers."""
        begun = self.seconds()
        with ThreadPoolExecutor(OPEN) as pool:
            told = list(pool.map(lambda url: self.ask(url, tokens), urls))
        return len(urls) / (self.seconds() - begun), told


@contextmanager
def server(name: str, command: tuple[str, ...]) -> Iterator[Server]:
    """A server of a command, stopped at the end."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    env = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    words = [sys.executable, *command, "--port", str(port), *OPTIONS]
    process = psutil.Popen(words, env=env, stdout=subprocess.DEVNULL)
    try:
        yield Server(name, port, process)
    finally:
        if process.is_running():
            own = [*process.children(recursive=True), process]
            process.terminate()  # it ends the others
            for each in psutil.wait_procs(own, timeout=60)[1]:
                each.kill()


def renamed(folder: str) -> str:
    """The embedded model under the names that vLLM knows, which ours reads as well; its folder."""
    given = Path(str(model_path("testbed")))
    shutil.copytree(given, folder, dirs_exist_ok=True)
    for file in Path(folder).glob("*.safetensors"):
        found = {
            name.replace("vision_tower.", "vision_tower.vision_model."): tensor
            for name, tensor in load_file(file).items()
        }
        save_file(found, file, metadata={"format": "pt"})
    return folder


def pictures(count: int, seed: int) -> list[str]:
    """Pictures that no cache knows, as addresses."""
    noise, made = np.random.default_rng(seed), []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (112, 112, 3), np.uint8)).save(file, "PNG")
        made.append("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("requests", 40), ("tokens", 32), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    with (
        TemporaryDirectory() as folder,
        server(renamed(folder), (*BARE, folder)) as bare,
        server(folder, (*OURS, folder)) as ours,
    ):
        for each in (bare, ours):
            each.wait()
            each.timed(pictures(given.requests, 1), given.tokens)
        for state in ("ours", "after strategies"):
            rates: list[tuple[float, float]] = []
            other = 0
            for number in range(given.rounds):
                shown = pictures(given.requests, 10 * number + len(state))
                order = (bare, ours) if number % 2 else (ours, bare)
                found = {each: each.timed(shown, given.tokens) for each in order}
                other += sum(a != b for a, b in zip(found[bare][1], found[ours][1], strict=True))
                rates.append((found[bare][0], found[ours][0]))
            ratios = [mine / theirs for theirs, mine in rates]
            spread = 1.96 * statistics.stdev(ratios) / len(ratios) ** 0.5
            theirs, mine = (statistics.median(column) for column in zip(*rates, strict=True))
            print(
                f"{state}: {mine:.1f} requests a second, bare vLLM {theirs:.1f}: "
                f"{statistics.fmean(ratios):.3f} ± {spread:.3f}; "
                f"{other} of {given.rounds * given.requests} answers differ",
                flush=True,
            )
            for spec in WAYS:
                ours.ask(pictures(1, 5)[0], given.tokens, spec)


if __name__ == "__main__":
    main()
