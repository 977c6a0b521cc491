"""The adapters over stand-ins of their harnesses; `try_*.sh` here run the real packages."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest

import halludecode as hd
from halludecode.adapters.engine_options import unquoted, whole_strategy
from tests.support import families, harnesses
from tests.support.openai_stub import Stub

SPEC = "vcd(alpha=0.5,beta=0.2)"
ASKED = ["Is there a dog in the image?", "Describe the image.", "What is it?"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def harness(monkeypatch):
    harnesses.LOGGED.clear()
    for name, module in harnesses.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("lmms_eval", "inspect_ai", "vlmevalkit"):
        monkeypatch.delitem(sys.modules, f"halludecode.adapters.{name}", raising=False)


@pytest.fixture
def loaded(monkeypatch, testbed):
    """What `halludecode.load` was given, which gives the engine of all tests."""
    calls: list[tuple] = []

    def load(model, engine="hf", **options):
        calls.append((model, engine, options))
        return testbed

    monkeypatch.setattr("halludecode.api.load", load)
    return calls


def model_of(**args):
    return import_module("halludecode.adapters.lmms_eval").HalluDecode(**args)


def requests_of(model, told=({"max_new_tokens": 6},), picture="image"):
    """Requests as lmms-eval makes them for chat models."""
    pictures = families.pictures()
    model.task_dict = {"task": {"test": list(range(len(ASKED)))}}

    def messages(doc):
        shown = {"type": picture, "url": pictures[doc]}
        return [{"role": "user", "content": [shown, {"type": "text", "text": ASKED[doc]}]}]

    return [
        SimpleNamespace(args=(ASKED[i], messages, told[i % len(told)], i, "task", "test"))
        for i in range(len(ASKED))
    ]


def test_entry_points_are_those_of_the_harnesses():
    found = [p for group in ("lmms_eval.models", "inspect_ai") for p in entry_points(group=group)]
    own = {p.group: p.value for p in found if p.value.startswith("halludecode.adapters")}
    declared = (ROOT / "pyproject.toml").read_text()
    wanted = {"lmms_eval.models": "halludecode.adapters.lmms_eval:manifest",
              "inspect_ai": "halludecode.adapters.inspect_ai"}  # fmt: skip
    assert all(f'halludecode = "{value}"' in declared for value in wanted.values())
    assert not own or own == wanted  # none where the installation is older than they are
    manifest = import_module("halludecode.adapters.lmms_eval").manifest()
    module, _, name = manifest.chat_class_path.rpartition(".")
    assert getattr(import_module(module), name).is_simple is False


def test_importing_them_loads_nothing_that_computes():
    code = [sys.executable, str(ROOT / "tests/support/harnesses.py")]
    done = subprocess.run(code, capture_output=True, text=True, check=True, cwd=ROOT,
                          env={"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("batch_size", [1, 2])
def test_lmms_eval_gets_our_own_answers_in_its_order(loaded, testbed, batch_size):
    model = model_of(pretrained="testbed", strategy=f'"{SPEC}"', batch_size=batch_size)
    assert loaded == [("testbed", "hf", {"batch_size": batch_size})]
    told = ({"max_new_tokens": 6, "until": ["\n\n"], "top_p": 0, "temperature": 0},
            {"max_new_tokens": 3, "do_sample": False, "num_beams": 1, "fps": 1})  # fmt: skip
    answers = model.generate_until(requests_of(model, told))
    for i, answer in enumerate(answers):
        sampling = hd.Sampling(max_new_tokens=told[i % 2]["max_new_tokens"])
        request = hd.Request(ASKED[i], [families.pictures()[i]])
        own = testbed.generate(request, SPEC, sampling)[0]
        assert (answer.text, answer.token_counts.output_tokens) == (own.text, len(own.token_ids))
    assert [kept[2] for kept in model.cache_hook.kept if kept[1][0] == ASKED[0]] == [
        answers[0].text
    ]
    unread, logged = harnesses.LOGGED
    assert "fps=1 is not read" in unread
    assert logged["additional_metrics"]["strategy"] == model.plan.canonical


def test_stop_words_of_a_task_end_an_answer(loaded):
    model = model_of(pretrained="testbed")
    whole = model.generate_until(requests_of(model))[1].text
    word = whole.split()[2]
    cut = model.generate_until(requests_of(model, ({"max_new_tokens": 6, "until": word},)))[1].text
    assert cut.strip() == whole.partition(word)[0].strip() != ""


def test_a_strategy_that_was_cut_shows_the_spelling_that_survives(loaded):
    # What lmms-eval 0.7.3 makes of strategy=vcd(alpha=0.5,beta=0.2),dtype=float32
    cut = {"strategy": "vcd(alpha=0.5", "beta": "0.2)", "dtype": "float32"}
    with pytest.raises(hd.InvalidParameter) as caught:
        model_of(pretrained="testbed", **cut)
    assert str(caught.value).endswith(f"--model_args 'pretrained=...,strategy=\"{SPEC}\"'.")
    assert not loaded
    for spelling in (SPEC, f'"{SPEC}"', f" '{SPEC}' "):
        assert whole_strategy(spelling, {}, "{}") == SPEC
    assert unquoted("'") == "'" and unquoted(3) == "3"


REFUSED = {
    "beams": ({"num_beams": 5}, "image", "num_beams=5"),
    "video": ({}, "video", "task, document 0: video is not served"),
    "numbers": ({"max_new_tokens": 0}, "image", "max_new_tokens"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_lmms_eval_asks_in_vain_is_one_sentence(loaded, name):
    told, picture, says = REFUSED[name]
    model = model_of(pretrained="testbed")
    with pytest.raises(hd.HalluDecodeError, match=says):
        model.generate_until(requests_of(model, (told,), picture))


def test_a_failed_request_names_its_document(loaded, monkeypatch, testbed):
    model = model_of(pretrained="testbed")
    failed = [hd.InvalidRequest("too long.")]
    monkeypatch.setattr(testbed, "generate_each", lambda *_: failed)
    with pytest.raises(hd.InvalidRequest, match=r"^task, document 0: too long\.$"):
        model.generate_until(requests_of(model))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"batch_size": "auto"}, "give a number"),
        ({"strategy": "vdc"}, "Unknown strategy 'vdc'"),
        ({"engine": "vllm"}, "data_parallel_size"),
    ],
)
def test_what_cannot_be_made_is_said_before_a_model_is_loaded(loaded, monkeypatch, args, says):
    monkeypatch.setenv("WORLD_SIZE", "2" if "engine" in args else "1")
    with pytest.raises(hd.HalluDecodeError, match=says):
        model_of(pretrained="testbed", **args)
    assert not loaded


def test_a_url_is_a_server_whose_requests_go_together(loaded):
    model = model_of(pretrained="http://127.0.0.1:1", batch_size="1", api_key="x")
    assert loaded == [("http://127.0.0.1:1", "server", {"api_key": "x"})]
    assert [*model._batches(requests_of(model))] == [[0, 1, 2]]


# Inspect ------------------------------------------------------------------------------------------


def inspected(stub, config, content, **args):
    api = import_module("halludecode.adapters.inspect_ai").HalluDecodeAPI(
        "fake", stub.url, config=config, **args
    )
    message = SimpleNamespace(role="user", content=content)
    return asyncio.run(api.generate([message], [], "none", config))


def shown(kind="image"):
    from halludecode.engines.server.openai_format import data_url

    picture = SimpleNamespace(type=kind, image=data_url(families.pictures()[0]))
    return [picture, SimpleNamespace(type="text", text="Is there a dog in the image?")]


def test_inspect_sends_pictures_and_keeps_what_the_strategy_did():
    config = harnesses.GenerateConfig(max_tokens=7, temperature=0.0, max_connections=3)
    with Stub() as stub:
        cut = SPEC.split(",")  # what Inspect makes of -M "strategy=vcd(alpha=0.5,beta=0.2)"
        output = inspected(stub, config, shown(), strategy=cut)
        (body,) = stub.bodies
    assert body["max_completion_tokens"] == 7
    assert body["messages"][0]["content"][0]["image_url"]["url"] == shown()[0].image
    assert body["vllm_xargs"]["strategy"].startswith(SPEC)  # as the stub compiles it
    assert body["vllm_xargs"]["explain"] == 1
    assert output.choices[0].stop_reason == "stop"
    told = output.metadata
    assert (told["strategy"], told["effect"]) == (body["vllm_xargs"]["strategy"], 0)
    assert told["grounding"] == pytest.approx(0.75)
    assert [token["text"] for token in told["tokens"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("config", "content", "says"),
    [
        ({"best_of": 2}, "?", "best_of is not served"),
        ({}, [SimpleNamespace(type="audio")], "audio; text and images"),
        ({"temperature": -1.0}, "?", "temperature must be"),
    ],
)
def test_what_inspect_asks_in_vain_is_one_sentence(config, content, says):
    with Stub() as stub, pytest.raises(hd.HalluDecodeError, match=says):
        inspected(stub, harnesses.GenerateConfig(**config), content)


# VLMEvalKit ---------------------------------------------------------------------------------------


def test_vlmevalkit_runs_what_is_registered(loaded, testbed, tmp_path):
    path = tmp_path / "picture.png"
    families.pictures()[0].save(path)
    run, register = harnesses.Run(), import_module("halludecode.adapters.vlmevalkit").register
    register(run.supported_VLM, "mine", "testbed", SPEC, max_new_tokens=6, dtype="float32")
    assert not loaded  # only when run.py wants it
    question = [{"type": "image", "value": str(path)}, {"type": "text", "value": ASKED[1]}]
    answers = run.main("mine", [question, "What is it?"], use_vllm=True)
    assert loaded == [("testbed", "vllm", {"dtype": "float32"})]
    requests = [hd.Request(ASKED[1], [path]), hd.Request("What is it?")]
    own = testbed.generate(requests, SPEC, hd.Sampling(max_new_tokens=6))
    assert answers == [output.text for output in own]
    with pytest.raises(hd.UnknownStrategy):
        register(run.supported_VLM, "other", "testbed", "vdc")
