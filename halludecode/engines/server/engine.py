"""Engine "server": requests are answered by running `halludecode serve`, one or several.

It takes what the engines in process take and returns what they return, so that whatever works on an
engine works on a server: ``hd.load("http://127.0.0.1:8000", engine="server")``. Requests are sent
side by side and answered one by one: what one cannot have is refused alone.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from halludecode.core import spec as hd_spec
from halludecode.core.errors import (
    HalluDecodeError,
    InvalidModel,
    InvalidParameter,
    InvalidRequest,
)
from halludecode.engines.api import Engine, Explain, Output, Request, Sampling, Timings
from halludecode.engines.server.client_errors import KEY, Unreachable, error_of, openai_client
from halludecode.engines.server.openai_format import body_of, output_of

T = TypeVar("T")
TRIES = 8  # of one request: with waits that double from half a second up to 8, half a minute
FIRST_TRIES = 3  # of the first contact
PATIENCE = 600.0  # seconds for one answer
SAME = ("model", "model_digest", "dtype", "versions", "halludecode")  # what servers must agree on


@dataclass(frozen=True)
class ServedPlan:
    """A strategy as the servers compiled it; see `core.plan.Plan`."""

    canonical: str
    rows: tuple[str, ...]
    cost: str
    controls: Mapping[str, Any]
    described: Mapping[str, Any]

    def __str__(self) -> str:
        return self.canonical

    def describe(self) -> dict[str, Any]:
        """Resolved parameters, rows, cost and artifacts, for run records."""
        return dict(self.described)


@dataclass(eq=False)
class Server:
    """One server, as the requests of one call see it."""

    url: str
    client: Any
    running: int = 0
    gone: str = ""


@dataclass(frozen=True)
class Ask:
    """How the requests of one call are answered."""

    strategy: str
    sampling: Sampling
    words: tuple[str, ...]
    explain: bool
    servers: list[Server]
    turns: asyncio.Semaphore = field(compare=False)


class ServerEngine(Engine):
    """Answers requests through running servers of one model.

    Args:
        servers: Base URL of a `halludecode serve`, or several that serve the same model; work goes
            to the one with the fewest requests running, and away from one that is gone.
        model_name: The model's name there, if it is to be checked.
        api_key: What the servers ask for; by default the environment's ``HALLUDECODE_API_KEY``.
        concurrency: Requests sent at a time.
        tries: Times a request is sent when a server is busy (429), failing (5xx) or not there.
        timeout: Seconds an answer may take.

    Raises:
        Unreachable: No server answers.
        InvalidModel: The servers serve another model, or different ones.
        InvalidParameter: A URL or number cannot be used.
        MissingExtra: The OpenAI client is not installed.
    """

    name = "server"
    takes_bytes = True  # pictures are sent as they are in their files

    def __init__(
        self,
        servers: str | Sequence[str],
        *,
        model_name: str | None = None,
        api_key: str | None = None,
        concurrency: int = 32,
        tries: int = TRIES,
        timeout: float = PATIENCE,
    ) -> None:
        listed = [servers] if isinstance(servers, str) else list(servers)
        self.servers = list(dict.fromkeys(map(base_url, listed)))
        if not self.servers:
            raise InvalidParameter("No server: give a URL, such as http://127.0.0.1:8000.")
        for name, value in (("concurrency", concurrency), ("tries", tries)):
            if value < 1:
                raise InvalidParameter(f"{name}={value}: {name} must be at least 1.")
        self._key = api_key or os.environ.get(KEY) or "none"
        self._most, self._tries, self._timeout = concurrency, tries, timeout
        self._plans: dict[str, ServedPlan] = {}
        self._about = _agreed(self._ask_all("/halludecode", {}), SAME)
        self.model_id: str = self._about["model"]
        self.provides = frozenset(self._about["provides"])
        if model_name not in (None, self.model_id):
            raise InvalidModel(f"{self.servers[0]} serves {self.model_id!r}, not {model_name!r}.")

    # Public ---------------------------------------------------------------------------------------
    def generate(
        self,
        requests: Request | Sequence[Request],
        strategy: hd_spec.Spec | ServedPlan = "greedy",
        sampling: Sampling | None = None,
        *,
        score_words: Sequence[str] = (),
        explain: Explain = False,
    ) -> list[Output]:
        """Answers in the order of the requests.

        Raises:
            HalluDecodeError: The first request that was refused or failed.
        """
        if explain not in (False, True):
            raise InvalidRequest(
                f"explain={explain!r} is not served over HTTP, explain=True is; use engine='hf'."
            )
        wanted = [requests] if isinstance(requests, Request) else list(requests)
        outcomes = self._outcomes(wanted, strategy, sampling, score_words, explain)
        for outcome in outcomes:
            if isinstance(outcome, HalluDecodeError):
                raise outcome
        return [outcome for outcome in outcomes if isinstance(outcome, Output)]

    def generate_each(
        self,
        requests: Sequence[Request],
        strategy: hd_spec.Spec | ServedPlan = "greedy",
        sampling: Sampling | None = None,
        *,
        score_words: Sequence[str] = (),
    ) -> list[Output | HalluDecodeError]:
        """One output or error per request.

        Raises:
            Unreachable: No server is there to begin with.
        """
        return self._outcomes(requests, strategy, sampling, score_words)

    def _outcomes(
        self,
        requests: Sequence[Request],
        strategy: hd_spec.Spec | ServedPlan,
        sampling: Sampling | None,
        score_words: Sequence[str],
        explain: bool = False,
    ) -> list[Output | HalluDecodeError]:
        plan = self.plan(strategy)
        drawn, begun = sampling or Sampling(), time.perf_counter()

        async def every(servers: list[Server]) -> list[Output | HalluDecodeError]:
            await self._greet_all(servers)
            turns = asyncio.Semaphore(self._most)
            ask = Ask(plan.canonical, drawn, tuple(score_words), explain, servers, turns)
            return await asyncio.gather(*[self._answer(request, ask) for request in requests])

        return _shared(self._run(every), (time.perf_counter() - begun) * 1000)

    def plan(self, strategy: hd_spec.Spec | ServedPlan) -> ServedPlan:
        """A strategy compiled by the servers, which may have to calibrate it first.

        A plan of this engine is given back as it is.

        Raises:
            HalluDecodeError: As `VLLMEngine.plan`, and what the operator does not allow.
        """
        if isinstance(strategy, ServedPlan):
            return strategy
        text = strategy if isinstance(strategy, str) else hd_spec.format(hd_spec.parse(strategy))
        if text not in self._plans:
            answers = self._ask_all("/halludecode/plan", {"strategy": text})
            plan = _agreed(answers, ("canonical", "describe"))
            self._plans[text] = self._plans[plan["canonical"]] = ServedPlan(
                plan["canonical"],
                tuple(plan["rows"]),
                plan["cost"],
                plan["controls"],
                plan["describe"],
            )
        return self._plans[text]

    def describe(self) -> dict[str, Any]:
        """The servers' model, dtype and library versions, for run records."""
        about = dict(self._about)
        device = about.pop("device", None)
        return {
            **{name: about[name] for name in ("model", "model_digest", "family", "dtype")},
            "engine": self.name,
            "device": f"server ({device})",
            "versions": {**about["versions"], "halludecode of the server": about["halludecode"]},
            "servers": self.servers,
            "served_by": about["engine"],
            "limits": about["limits"],
        }

    # Private --------------------------------------------------------------------------------------
    def _ask_all(self, path: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """What every server tells at a path of ours."""

        async def every(servers: list[Server]) -> list[Any]:
            answers = [self._about_of(server, path, query, FIRST_TRIES) for server in servers]
            return await asyncio.gather(*answers)

        return self._run(every)

    async def _greet_all(self, servers: Sequence[Server]) -> None:
        """Find out which servers are there; patiently, if none is.

        Raises:
            Unreachable: None is.
            InvalidModel: One serves another model by now.
        """
        for tries in (1, self._tries):
            await asyncio.gather(*[self._greet(server, tries) for server in servers])
            if not all(server.gone for server in servers):
                return
        raise Unreachable(_unreachable(servers[0].gone))

    async def _greet(self, server: Server, tries: int) -> None:
        try:
            about = await self._about_of(server, "/halludecode", {}, tries)
        except Unreachable as error:
            server.gone = str(error)
        else:
            server.gone = ""
            _agreed([self._about, about], SAME)

    async def _about_of(
        self, server: Server, path: str, query: Mapping[str, str], tries: int
    ) -> dict[str, Any]:
        options = {"params": query, "max_retries": tries - 1}
        try:
            about = await server.client.get(path, cast_to=object, options=options)
        except openai_client().NotFoundError:
            about = None
        except openai_client().OpenAIError as error:
            raise error_of(error, server.url) from None
        if not isinstance(about, dict):
            raise Unreachable(f"{server.url} is not a server started by `halludecode serve`.")
        return about

    async def _answer(self, request: Request, ask: Ask) -> Output | HalluDecodeError:
        async with ask.turns:
            try:
                how = (ask.strategy, ask.sampling, ask.words)
                about = self.model_id, self._about["placeholder"]
                body = body_of(request, *how, *about, ask.explain)
                return output_of(await self._send(body, ask))
            except HalluDecodeError as error:
                return error

    async def _send(self, body: Mapping[str, Any], ask: Ask) -> dict[str, Any]:
        """Send a request to the least busy server, and on to another while one is gone."""
        while True:
            there = [server for server in ask.servers if not server.gone]
            if not there:
                raise Unreachable(_unreachable(ask.servers[0].gone))
            server = min(there, key=lambda each: each.running)
            server.running += 1
            try:
                response = await server.client.chat.completions.create(**body)
                return response.model_dump()
            except openai_client().OpenAIError as error:
                ours = error_of(error, server.url)
                if not isinstance(ours, Unreachable):
                    raise ours from None
                server.gone = str(ours)
            finally:
                server.running -= 1

    def _run(self, call: Callable[[list[Server]], Awaitable[T]]) -> T:
        """Run a coroutine over clients of all servers, in a notebook too."""

        async def work() -> T:
            openai = openai_client()
            async with AsyncExitStack() as stack:
                servers = []
                for url in self.servers:
                    client = openai.AsyncOpenAI(
                        base_url=f"{url}/v1",
                        api_key=self._key,
                        max_retries=self._tries - 1,
                        timeout=self._timeout,
                    )
                    servers.append(Server(url, await stack.enter_async_context(client)))
                return await call(servers)

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(work())
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: asyncio.run(work())).result()


def base_url(url: str) -> str:
    """A server's address without ``/v1``.

    Raises:
        InvalidParameter: It is no http address.
    """
    parts = urlsplit(url if isinstance(url, str) else "")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InvalidParameter(f"Server {url!r}: give a URL, such as http://127.0.0.1:8000.")
    return url.rstrip("/").removesuffix("/v1")


def _shared(
    outcomes: Sequence[Output | HalluDecodeError], spent: float
) -> list[Output | HalluDecodeError]:
    """Outputs whose times add up to the milliseconds that all took together, side by side."""
    timings = [outcome.timings for outcome in outcomes if isinstance(outcome, Output)]
    total = sum(t.prepare_ms + t.prefill_ms + t.decode_ms for t in timings)
    part = spent / total if total else 1.0

    def scaled(t: Timings) -> Timings:
        return Timings(t.prepare_ms * part, t.prefill_ms * part, t.decode_ms * part, t.tokens)

    return [
        replace(outcome, timings=scaled(outcome.timings))
        if isinstance(outcome, Output)
        else outcome
        for outcome in outcomes
    ]


def _unreachable(why: str) -> str:
    return (
        f"No server answers any more: {why} What was answered is kept; start the server and run "
        "the same command again."
    )


def _agreed(answers: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """What the first server answers, if the others answer the same of ``names``."""
    first = answers[0]
    for name in names:
        for other in answers[1:]:
            if other.get(name) != first.get(name):
                raise InvalidModel(
                    f"The servers differ in {name}: {first.get(name)!r} and {other.get(name)!r}; "
                    "use servers that are alike."
                )
    return first
