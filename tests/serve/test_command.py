"""``halludecode serve`` refuses what it cannot start with, before it loads anything."""

from __future__ import annotations

import asyncio
import gc
import os
import socket

import pytest

import halludecode as hd
from halludecode.cli.app import main

BAD = {
    "strategy": (["--strategy", "vdc"], "Did you mean 'vcd'"),
    "alias": (["--alias", "vcd(alpha=-1)"], "alpha must be >= 0"),
    "not allowed": (["--allow", "vcd", "--strategy", "vhr"], "'vhr' is not allowed"),
    "folder": (["--allowed-local-media-path", "./no/such"], "no such folder"),
    "unknown option": (["--no-such-option", "1"], "no-such-option"),
    "ours": (["--scheduler-cls", "x.y"], "--scheduler-cls cannot be set"),
    "domains": (["--allowed-media-domains", "x.org"], "use --image-domain"),
    "stages": (["--pipeline-parallel-size", "2"], "use --tensor-parallel-size"),
    "front ends": (["--api-server-count", "2"], "--api-server-count is not served"),
    "tools": (["--enable-auto-tool-choice"], "requires --tool-call-parser"),
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("VLLM_WORKER_MULTIPROC_METHOD", "VLLM_USE_V2_MODEL_RUNNER"):
        monkeypatch.setenv(name, os.environ.get(name, "spawn" if "METHOD" in name else "0"))


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore")  # vLLM's own
def test_wrong_usage_is_one_line_and_code_2(name, capfd):
    words, says = BAD[name]
    assert main(["serve", "--model", "testbed", *words]) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and says in last


@pytest.mark.filterwarnings("ignore")
def test_a_port_in_use_is_named(capfd):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--model", "testbed", "--port", str(port)]) == 2
    gc.collect()  # vLLM leaves its own socket open
    assert f"127.0.0.1:{port}" in capfd.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(("status", "marked"), [(500, True), (429, False), (503, False)])
def test_clients_are_told_not_to_repeat_what_would_fail_again(status, marked):
    from halludecode.serve.app import NoRetryHeader

    sent = []

    async def failing(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message)

    asyncio.run(NoRetryHeader(failing)({"type": "http"}, None, send))
    assert ((b"x-should-retry", b"false") in sent[0]["headers"]) == marked
    assert len(sent) == 2


@pytest.mark.filterwarnings("ignore")
def test_only_what_a_client_did_is_its_fault():
    from halludecode.serve.errors import refusal

    found = {kind: refusal(kind("Why.")).error for kind in (hd.HalluDecodeError, hd.InvalidRequest)}
    found |= {hd.HookNeverFired: refusal(hd.HookNeverFired("Why.")).error}
    assert [one.code for one in found.values()] == [500, 400, 500]
    assert {one.message for one in found.values()} == {"Why."}
