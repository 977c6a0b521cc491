"""Engine "server" against servers that are busy, failing, dying, or not what they should be."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket

import pytest
from PIL import Image

import halludecode as hd
from halludecode.cli.app import main
from halludecode.engines.server.engine import ServerEngine, Unreachable
from halludecode.evals.runner import batching as batches
from halludecode.evals.runner.run import run_eval
from tests.support import eval_world as world
from tests.support.openai_stub import Stub

TASKS = ("pope", "chair", "mme")
ALL = 2 * (12 + 4 + 12)  # requests of two strategies: POPE that differ, captions, MME


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Waits between tries are a hundredth as long."""
    import openai._base_client as client

    monkeypatch.setattr(client, "INITIAL_RETRY_DELAY", 0.005)
    monkeypatch.setattr(client, "MAX_RETRY_DELAY", 0.08)
    monkeypatch.setitem(batches.BATCH, "server", 8)


@pytest.fixture
def source(tmp_path):
    return world.folder(tmp_path / "set")


def run(output, source, engine, **more):
    options = {"tasks": TASKS, "strategies": ["greedy", "vcd"], "prompt_preset": "opera"}
    options |= {"progress": False, "data": [source], "output": output, **more}
    return run_eval(engine, **options)


def answers(folder):
    """Lines by key, without times."""
    found = {}
    for line in world.lines(folder / "samples.jsonl"):
        line.pop("ms")
        key = tuple(line[name] for name in ("task", "split", "strategy", "id"))
        assert key not in found
        found[key] = line
    return found


@pytest.fixture
def wanted(tmp_path, source):
    """What the engine in process gives."""
    report = run(tmp_path / "wanted", source, world.FakeEngine())
    return answers(tmp_path / "wanted"), report.results


def dead_url() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


# Answers ------------------------------------------------------------------------------------------


def test_a_run_equals_the_one_in_process(tmp_path, source, wanted):
    with Stub() as stub:
        report = run(tmp_path / "run", source, hd.load(stub.url, engine="server"))
    assert answers(tmp_path / "run") == wanted[0]
    both = [world.timeless(results)["runs"] for results in (report.results, wanted[1])]
    for entry in both[0]:
        assert entry.pop("engine") == "server"
    for entry in both[1]:
        entry.pop("engine")
    assert both[0] == both[1] and report.failed == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["model"], record["model_digest"], record["engine"]) == ("fake", "0123", "server")
    assert record["versions"]["vllm"] == "0.32.0"
    assert record["model_facts"]["servers"] == [stub.url]
    assert record["strategies"]["vcd(alpha=1.0)"]["rows"] == ["main"]


def test_pictures_are_sent_byte_by_byte(tmp_path, source):
    picture = source / "images" / "pic_0.png"
    with Stub() as stub:
        engine = hd.load(f"{stub.url}/v1/", engine="server")
        run(tmp_path / "run", source, engine, tasks=["chair"], strategies=["greedy"], limit=1)
        engine.generate(hd.Request("What?", [picture, picture.read_bytes()]))
        with Image.open(picture) as opened:
            engine.generate(hd.Request("What?", [opened]))
    sent = [
        part["image_url"]["url"] for b in stub.bodies for part in b["messages"][0]["content"][:-1]
    ]
    prefix = "data:image/png;base64,"
    raw = [base64.b64decode(url.removeprefix(prefix)) for url in sent]
    assert len(raw) == 4 and all(one == picture.read_bytes() for one in raw[:3])
    with Image.open(io.BytesIO(raw[3])) as again, Image.open(picture) as opened:
        assert again.tobytes() == opened.tobytes()


def test_sampling_is_sent_whole():
    sampling = hd.Sampling(
        max_new_tokens=9, min_new_tokens=2, temperature=0.5, top_p=0.9, top_k=7, seed=3, n=2,
        repetition_penalty=1.1, stop=("x",), logprobs=2,
    )  # fmt: skip
    with Stub() as stub, pytest.raises(ValueError, match="zip"):  # the stub writes one answer
        two = stub.answer
        stub.answer = lambda body: {**two(body), "choices": two(body)["choices"] * 2}
        hd.load(stub.url, engine="server").generate(hd.Request("What?"), "vcd", sampling)
    body = {k: v for k, v in stub.bodies[0].items() if k not in ("messages", "model")}
    assert body == {
        **{"max_completion_tokens": 9, "min_tokens": 2, "temperature": 0.5, "top_p": 0.9},
        **{"top_k": 7, "seed": 3, "n": 2, "repetition_penalty": 1.1, "stop": ["x"]},
        **{"logprobs": True, "top_logprobs": 2, "return_tokens_as_token_ids": True},
        "vllm_xargs": {"strategy": "vcd(alpha=1.0)", "details": 1, "score_words": []},
    }


def test_no_more_requests_than_allowed_are_sent_at_a_time(source, tmp_path):
    with Stub(together=3) as stub:
        engine = hd.load(stub.url, engine="server", concurrency=3)
        run(tmp_path / "run", source, engine, tasks=["pope"])
    assert stub.most == 3


def test_work_is_spread_over_servers(tmp_path, source, wanted):
    with Stub() as one, Stub() as two:
        run(tmp_path / "run", source, hd.load([one.url, two.url], engine="server"))
    assert answers(tmp_path / "run") == wanted[0]
    assert min(len(one.bodies), len(two.bodies)) >= ALL // 4


def test_in_a_notebook_too():
    import asyncio

    async def cell(engine):
        return engine.generate(hd.Request("What?"), "vcd")[0].strategy

    with Stub() as stub:
        engine = hd.load(stub.url, engine="server")
        assert asyncio.run(cell(engine)) == "vcd(alpha=1.0)"


# Failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_or_failing_server_is_asked_again(tmp_path, source, wanted, status):
    def fault(number, body):
        return status if number <= 5 or number % 3 == 0 else None

    with Stub(fault) as stub:
        report = run(tmp_path / "run", source, hd.load(stub.url, engine="server", tries=20))
    assert answers(tmp_path / "run") == wanted[0] and report.failed == 0


def test_what_stays_busy_fails_after_so_many_tries(tmp_path, source):
    def fault(number, body):
        return 429 if "cup" in json.dumps(body["messages"][0]["content"][-1]) else None

    with Stub(fault) as stub:
        engine = hd.load(stub.url, engine="server", tries=3)
        report = run(tmp_path / "run", source, engine, tasks=["pope"], strategies=["greedy"])
    lines = world.lines(tmp_path / "run" / "errors.jsonl")
    assert report.failed == len(lines) > 0
    assert {line["error"] for line in lines} == {"It says 429."}
    cups = [body for body in stub.bodies if fault(0, body)]
    asked = {json.dumps(body["messages"]) for body in cups}
    assert len(cups) == 3 * len(asked)


@pytest.mark.parametrize("status", [400, 500])
def test_a_refusal_is_a_failed_sample_with_the_servers_sentence(tmp_path, source, capsys, status):
    def fault(number, body):
        return status if "cup" in json.dumps(body["messages"][0]["content"][-1]) else None

    with Stub(fault) as stub:
        words = ["eval", "--server", stub.url, "--tasks", "pope", "--strategy", "greedy"]
        words += [
            "--prompt-preset",
            "opera",
            "--data",
            str(source),
            "--output",
            str(tmp_path / "r"),
        ]
        assert main(words) == 1
        bodies = len(stub.bodies)
    lines = world.lines(tmp_path / "r" / "errors.jsonl")
    assert {(line["kind"], line["error"]) for line in lines} == {
        ("InvalidRequest", f"It says {status}.")
    }
    assert len(world.lines(tmp_path / "r" / "samples.jsonl")) + len(lines) == 16
    assert bodies == 12  # each question once: a refusal is not tried again, nor its neighbours
    assert "errors.jsonl" in capsys.readouterr().err


def test_when_one_of_two_servers_dies_the_other_does_its_work(tmp_path, source, wanted):
    with Stub() as good, Stub(lambda number, body: "die" if number == 5 else None) as dying:
        engine = hd.load([dying.url, good.url], engine="server", tries=2)
        report = run(tmp_path / "run", source, engine)
    assert answers(tmp_path / "run") == wanted[0] and report.failed == 0
    assert len(dying.bodies) < ALL // 2


def test_a_server_that_dies_ends_the_run_which_resumes(tmp_path, source, wanted):
    with Stub(lambda number, body: "die" if number == 20 else None) as stub:
        engine = hd.load(stub.url, engine="server", tries=2)
        with pytest.raises(Unreachable, match="start the server and run the same command again"):
            run(tmp_path / "run", source, engine)
    before = len(answers(tmp_path / "run"))
    assert 0 < before < len(wanted[0])
    with Stub() as stub:
        report = run(tmp_path / "run", source, hd.load(stub.url, engine="server"))
    assert answers(tmp_path / "run") == wanted[0] and report.failed == 0
    assert world.timeless(report.results)["runs"] != []
    assert len(stub.bodies) < ALL


def test_an_interrupted_run_resumes(tmp_path, source, wanted):
    def fault(number, body):
        if number == 20:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    with Stub(fault) as stub:
        engine = hd.load(stub.url, engine="server")
        try:
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "run", source, engine)
        finally:
            signal.signal(signal.SIGINT, before)
        assert 0 < len(answers(tmp_path / "run")) < len(wanted[0])
        report = run(tmp_path / "run", source, engine)
    assert answers(tmp_path / "run") == wanted[0] and report.failed == 0


# What cannot be used ------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_one_sentence_and_code_2(tmp_path, capsys):
    words = ["eval", "--server", dead_url(), "--tasks", "pope", "--strategy", "greedy"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1 and "cannot be reached" in err[0]
    assert not (tmp_path / "run").exists()


BAD = {
    "key": ({"key": "other"}, {}, hd.InvalidModel, "refuses the key .*--api-key"),
    "model": ({}, {"model_name": "llava"}, hd.InvalidModel, "serves 'fake', not 'llava'"),
    "tries": ({}, {"tries": 0}, hd.InvalidParameter, "tries must be at least 1"),
    "concurrency": ({}, {"concurrency": 0}, hd.InvalidParameter, "at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_one_sentence(name):
    stub, given, kind, says = BAD[name]
    with Stub(**stub) as server, pytest.raises(kind, match=says):
        hd.load(server.url, engine="server", **given)


def test_the_key_is_sent_and_taken_from_the_environment(monkeypatch):
    with Stub(key="mine") as stub:
        assert hd.load(stub.url, engine="server", api_key="mine").model_id == "fake"
        monkeypatch.setenv("HALLUDECODE_API_KEY", "mine")
        assert hd.load(stub.url, engine="server").model_id == "fake"


def test_a_server_of_another_kind_is_named():
    with Stub() as stub:
        stub.get = lambda handler: Stub.get(stub, _elsewhere(handler))
        with pytest.raises(Unreachable, match="not a server started by `halludecode serve`"):
            hd.load(stub.url, engine="server")


def _elsewhere(handler):
    handler.path = "/v1/nothing"
    return handler


def test_servers_must_be_alike():
    says = pytest.raises(hd.InvalidModel, match="differ in model_digest: '0123' and '4567'")
    with Stub() as one, Stub(about={"model_digest": "4567"}) as two, says:
        hd.load([one.url, two.url], engine="server")


def test_a_server_that_comes_back_with_another_model_is_noticed():
    with Stub() as stub:
        engine = hd.load(stub.url, engine="server")
        stub.about["model_digest"] = "4567"
        with pytest.raises(hd.InvalidModel, match="differ in model_digest"):
            engine.generate(hd.Request("What?"))


def test_a_misspelt_strategy_is_the_servers_sentence():
    with Stub() as stub, pytest.raises(hd.UnknownStrategy, match="Did you mean 'vcd'"):
        hd.load(stub.url, engine="server").plan("vdc")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", ""])
def test_an_address_must_be_a_url(url):
    with pytest.raises(hd.InvalidParameter, match="give a URL"):
        ServerEngine(url)


WRONG = {
    "dtype": (["--dtype", "float16"], "--dtype is for a model loaded here"),
    "batch": (["--batch-size", "4"], "--batch-size is for a model loaded here"),
    "engine": (["--engine", "hf"], "--engine hf does not go with --server"),
}


@pytest.mark.parametrize("name", WRONG)
def test_options_of_a_model_loaded_here_do_not_go_with_a_server(name, capsys, tmp_path):
    words, says = WRONG[name]
    base = ["eval", "--server", "http://127.0.0.1:1", "--tasks", "pope", "--strategy", "greedy"]
    assert main([*base, "--output", str(tmp_path / "run"), *words]) == 2
    assert says in capsys.readouterr().err
    base[1:3] = ["--model", "testbed", "--concurrency", "2"]
    assert main([*base, "--output", str(tmp_path / "run")]) == 2
    assert "--concurrency goes with --server" in capsys.readouterr().err


def test_text_in_the_models_own_template_cannot_be_sent(source):
    picture = source / "images" / "pic_0.png"
    with Stub() as stub:
        engine = hd.load(stub.url, engine="server")
        with pytest.raises(hd.InvalidRequest, match="for engines in process"):
            engine.generate(hd.Request("<image> What?", [picture]))
        with pytest.raises(hd.InvalidRequest, match="no such image file"):
            engine.generate(hd.Request("What?", ["/no/such.png"]))
        with pytest.raises(hd.InvalidRequest, match="explain"):
            engine.generate(hd.Request("What?"), explain="maps")


def test_chats_keep_their_pictures_in_place(source):
    pictures = [source / "images" / f"pic_{n}.png" for n in range(2)]
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And this?"}]},
    ]
    with Stub() as stub:
        hd.load(stub.url, engine="server").generate(hd.Request(turns, pictures))
    sent = stub.bodies[0]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "user"]
    for message, path in zip(sent[::2], pictures, strict=True):
        url = message["content"][0]["image_url"]["url"]
        assert base64.b64decode(url.partition(",")[2]) == path.read_bytes()
