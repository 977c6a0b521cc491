"""Soak of `halludecode serve`: thousands of mixed requests, then nothing may be left behind.

    python -m tests.soak --requests 2000

Requests are drawn from a pool of distinct ones (see `pool`), each of which is first asked alone.
They are asked plainly or streamed, many at a time, by clients of whom some leave in the middle,
some read slowly and some send half a request, of a server whose cache is too small for all. Every
answer must be the one given alone (of a client that left, its beginning). At the end every KV block
must be free, no request, job, note or task left, memory flat. In all but the shortest soaks some
groups must have been preempted and, on model runner V1, others joined by rows that began late; what
was not seen is told. Then servers are ended under load, see `ends`.
One line of JSON is printed; the exit code is 1 where something was not as it should be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # `inside` is sent to the worker as a function
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # on a CPU: worker and scheduler in one process
    }
)

from tests.soak import ends, inside
from tests.soak.pool import Asked, pool

OPTIONS = {
    "--kv-cache-memory-bytes": "64M",
    "--block-size": "32",
    "--num-gpu-blocks-override": "56",
    "--max-model-len": "512",
    "--max-num-seqs": "24",
    "--max-num-batched-tokens": "640",
    "--uvicorn-log-level": "error",
}
GROUPS = 40  # answers under strategies at a time; more are refused with 429 and sent again
KINDS = {"plain": 42, "streamed": 30, "leaves": 13, "impatient": 5, "slow": 6, "half": 4}
GROWTH = 0.1  # of a process's memory in the second half of the requests
SHORT = 100  # requests below which nobody may have run out of room
LEAST = 64  # MiB that are no growth
IDLE = 120.0  # seconds the server has to become idle


class Soak:
    """Asks, compares and counts.

    Args:
        url: The server's.
        clients: Requests at a time.
    """

    def __init__(self, url: str, clients: int) -> None:
        import openai

        self.openai = openai
        self.client = openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=100, timeout=300
        )
        self.turns = asyncio.Semaphore(clients)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.tokens, self.done, self.every = 0, 0, 1 << 30
        self.memory: list[list[int]] = []  # at the start and after every quarter

    def told(self) -> dict[str, Any]:
        """What happened."""
        return {
            **dict(self.counts),
            "wrong": len(self.wrong),
            "examples": self.wrong[:5],
            "tokens": self.tokens,
            "memory_mib": self.memory,
        }

    async def alone(self, asked: Asked) -> None:
        """Ask while nothing else runs, and remember."""
        body = dict(asked.body)
        if asked.greedy:
            body |= {"logprobs": True, "top_logprobs": 2}
        made = await self.client.chat.completions.create(**body)
        asked.alone = [list(choice.token_ids) for choice in made.choices]
        asked.texts = [choice.message.content for choice in made.choices]
        if asked.greedy:
            for entry in made.choices[0].logprobs.content:
                first, second = sorted(top.logprob for top in entry.top_logprobs)[-2:][::-1]
                asked.gaps.append(first - second)

    async def one(self, asked: Asked, kind: str, after: int) -> None:
        """Ask in company, in one of the ways, and compare."""
        async with self.turns:
            try:
                await getattr(self, f"_{kind}")(asked, after)
                self.counts[kind] += 1
            except Exception as error:
                self._say(asked, kind, "".join(traceback.format_exception_only(error)).strip())
            self.done += 1
            if self.done % self.every == 0:
                self.memory.append(memory())

    async def _plain(self, asked: Asked, after: int) -> None:
        made = await self.client.chat.completions.create(**asked.body)
        ids = [list(choice.token_ids) for choice in made.choices]
        texts = [choice.message.content for choice in made.choices]
        self._compare(asked, "plain", ids, texts)

    async def _slow(self, asked: Asked, after: int) -> None:
        """Read an answer bit by bit; it is held back, and nobody else's."""
        ids, texts = await self._read(asked, None, pause=0.05 * after)
        self._compare(asked, "slow", ids, texts)

    async def _half(self, asked: Asked, after: int) -> None:
        """Send the beginning of a request, wait a little and go."""
        words = json.dumps({"model": "testbed", "messages": asked.body["messages"]}).encode()
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        )
        sent = head + b"Content-Length: %d\r\n\r\n" % (len(words) + 1) + words
        _, writer = await asyncio.open_connection("127.0.0.1", self.client.base_url.port)
        writer.write(sent[: len(sent) * after // 12])
        await writer.drain()
        await asyncio.sleep(0.05 * after)
        writer.close()

    async def _streamed(self, asked: Asked, after: int) -> None:
        ids, texts = await self._read(asked, None)
        self._compare(asked, "streamed", ids, texts)

    async def _leaves(self, asked: Asked, after: int) -> None:
        ids, _ = await self._read(asked, after)
        for have, want in zip(ids, asked.alone, strict=True):
            if have != want[: len(have)] and not asked.tied(have):
                self._say(asked, "leaves", f"{have} does not begin {want}")

    async def _impatient(self, asked: Asked, after: int) -> None:
        hasty = self.client.with_options(timeout=0.02 * after, max_retries=0)
        try:
            await hasty.chat.completions.create(**asked.body)
        except (self.openai.APITimeoutError, self.openai.RateLimitError):
            return

    async def _read(
        self, asked: Asked, after: int | None, pause: float = 0
    ) -> tuple[list[list[int]], list[str]]:
        ids: list[list[int]] = [[] for _ in asked.alone]
        texts = ["" for _ in asked.alone]
        stream = await self.client.chat.completions.create(**asked.body, stream=True)
        number = 0
        async for chunk in stream:
            number += 1
            await asyncio.sleep(pause)
            for choice in chunk.choices:
                ids[choice.index] += getattr(choice, "token_ids", None) or []
                texts[choice.index] += choice.delta.content or ""
            if after is not None and number >= after:
                await stream.close()
                break
        return ids, texts

    def _compare(self, asked: Asked, kind: str, ids: list[list[int]], texts: list[str]) -> None:
        self.tokens += sum(map(len, ids))
        if ids == asked.alone and texts == asked.texts:
            return
        if len(ids) == 1 and asked.tied(ids[0]):
            self.counts["ties"] += 1
            return
        self._say(asked, kind, f"{ids} {texts}, alone {asked.alone} {asked.texts}")

    def _say(self, asked: Asked, kind: str, what: str) -> None:
        strategy = asked.body["extra_body"]["vllm_xargs"]["strategy"]
        sampled = {k: v for k, v in asked.body.items() if k not in ("messages", "extra_body")}
        self.wrong.append(f"{kind} {strategy} {sampled}: {what}")


async def served(port: int, artifacts: Path) -> tuple[asyncio.Task[None], dict[str, Any]]:
    """The server in this process, up; and its front end's objects."""
    import httpx

    from halludecode.serve import app
    from halludecode.serve import chat_service as chat
    from halludecode.serve.policy import Policy

    found: dict[str, Any] = {}
    stock = chat.install

    def install(state: Any, handler: Any) -> None:
        stock(state, handler)
        found.update(handler=handler, chat=state.openai_serving_chat)

    chat.install = install
    policy = Policy(name="testbed", groups=GROUPS)
    words = [word for pair in OPTIONS.items() for word in pair]
    words += ["--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"]
    args = app.arguments(policy, words)
    args.model, args.served_model_name, args.extra_rows = "testbed", ["testbed"], "on_demand"
    task = asyncio.create_task(app._serve("testbed", policy, args, artifacts))
    async with httpx.AsyncClient() as client:
        while True:
            if task.done():
                task.result()
                raise RuntimeError("the server ended")
            try:
                await client.get(f"http://127.0.0.1:{port}/health")
                return task, found
            except httpx.HTTPError:
                await asyncio.sleep(0.2)


async def left_in(found: dict[str, Any]) -> dict[str, int]:
    """What is not zero once the server has had time to become idle."""
    end = time.monotonic() + IDLE
    while True:
        told = (await found["handler"].llm.collective_rpc(inside.of_worker))[0]
        told |= inside.of_front_end(found["handler"], found["chat"])
        left = {name: count for name, count in told.items() if count}
        if not left or time.monotonic() > end:
            return left
        await asyncio.sleep(0.1)


def memory() -> list[int]:
    """MiB that this process and its children hold, one by one."""
    import psutil

    me = psutil.Process()
    return [p.memory_info().rss >> 20 for p in (me, *me.children(recursive=True))]


def grown(memory: list[list[int]]) -> list[str]:
    """Processes that grew in the second half, in words; the first half fills what is kept."""
    if len(memory) < 5:
        return []
    return [
        f"process {i}: {then} to {now} MiB"
        for i, (then, now) in enumerate(zip(memory[2], memory[4], strict=False))
        if now - then > max(LEAST, GROWTH * then)
    ]


async def soak(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Serve, ask, look."""
    from halludecode.testbed import write_dataset

    source = write_dataset(folder / "set", "iid", 12)
    asked = pool(given.pool, sorted((source / "images").iterdir()), given.seed)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    task, found = await served(port, folder / "artifacts")
    try:
        run, begun = Soak(f"http://127.0.0.1:{port}", given.clients), time.perf_counter()
        for one in asked:
            await run.alone(one)
        first, started = time.perf_counter() - begun, time.perf_counter()
        run.memory, run.every = [memory()], max(1, given.requests // 4)
        rng = random.Random(given.seed)
        kinds = rng.choices(list(KINDS), list(KINDS.values()), k=given.requests)
        draws = [(rng.choice(asked), kind, rng.randint(1, 12)) for kind in kinds]
        drawing = asyncio.gather(*[run.one(*draw) for draw in draws])
        await asyncio.wait({drawing, task}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():  # its engine died; what it said is on standard error
            drawing.cancel()
            raise RuntimeError(f"the server ended after {run.done} requests")
        spent = time.perf_counter() - started
        await run.client.close()
        left = await left_in(found)
        v2 = bool(found["handler"].llm.vllm_config.use_v2_model_runner)
        counted = (await found["handler"].llm.collective_rpc(inside.counts_of_worker))[0]
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await task
    return {
        **{"requests": given.requests, "distinct": len(asked), "clients": given.clients},
        **run.told(),
        "grown": grown(run.memory),
        **{"left": left, "scheduler": counted, "v2": v2},
        **{"alone_seconds": round(first, 1), "seconds": round(spent, 1)},
    }


def unseen(told: dict[str, Any]) -> list[str]:
    """What should have happened and did not: runner V2 begins all rows with the prompt."""
    wanted = {"preempted groups"} if told["v2"] else {"preempted groups", "joined"}
    return sorted(name for name in wanted if not told["scheduler"].get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--pool", type=int, default=240, help="distinct requests")
    parser.add_argument("--clients", type=int, default=48, help="requests at a time")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = asyncio.run(soak(given, Path(folder)))
        told["ends"] = ends.every(Path(folder))
    told["unseen"] = unseen(told)
    sys.stdout.write(json.dumps(told) + "\n")
    bad = told["wrong"] or told["left"] or told["grown"]
    bad = bad or (told["unseen"] and given.requests >= SHORT)
    return int(bool(bad or not all(end["good"] for end in told["ends"].values())))


if __name__ == "__main__":
    sys.exit(main())
