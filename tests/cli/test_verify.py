"""`doctor --verify` says of each strategy whether the laws hold, and breaks where one does not."""

import json
from dataclasses import replace

import pytest
import torch

import halludecode as hd
from halludecode.cli import options, verify
from halludecode.core.errors import MissingExtra
from halludecode.core.registry import STRATEGIES
from halludecode.core.spec import parse
from tests.support import families


class Shared:
    """The tests' engine, which stays open; `change` is made to every answer."""

    def __init__(self, engine, change=lambda output: output):
        self.engine, self.change = engine, change

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def generate(self, *given):
        return [self.change(output) for output in self.engine.generate(*given)]


@pytest.fixture
def wrong_off():
    """A strategy that is not off at what it calls its off point."""

    @hd.strategy("wrong_off_test", off={"alpha": 0.0})
    class WrongOff(hd.Strategy):
        alpha: float = hd.param(1.0, "does nothing")

        def combine(self, step):
            return -step["main"]

    yield "wrong_off_test"
    STRATEGIES._entries.pop("wrong_off_test", None)


@pytest.fixture
def loads(testbed, monkeypatch):
    """Engine -> what its answers become; what is not in it is not installed."""
    given = {"hf": lambda output: output}

    def load(model, engine):
        if engine not in given:
            raise MissingExtra("vLLM is not installed.")
        return Shared(testbed, given[engine])

    monkeypatch.setattr(options, "load", load)
    return given


def other_last_token(output, gap):
    """The answer with another last token, ``gap`` nats behind the likeliest."""
    last = output.logprobs[-1]
    top = {last.token_id: last.logprob, last.token_id + 1: last.logprob - gap}
    changed = replace(last, token_id=last.token_id + 1, token="odd", top=top)
    choice = replace(output.choices[0], logprobs=(*output.logprobs[:-1], changed))
    return replace(output, choices=(choice,))


def words(result):
    found = json.loads(result.out)
    return {
        (spec, name): check["word"]
        for spec, by in found["strategies"].items()
        for name, check in by.items()
    }


CHOSEN = ("greedy", "vcd", "var", "opera", "adhh", "code", "edvt")


def test_the_report_has_a_line_a_strategy_and_is_fit_to_paste(cli, loads):
    given = [word for name in CHOSEN for word in ("--strategy", name)]
    result = cli("doctor", "--verify", "testbed", *given)
    assert result.code == 0, result.out
    lines = result.out.splitlines()
    assert lines[0].startswith(f"halludecode {hd.__version__}, python 3.")
    kind = "hf: llava, LlavaForConditionalGeneration, weights "
    assert lines[1].startswith(kind) and f"float32 on cpu; torch {torch.__version__}" in lines[1]
    assert lines[2] == "vllm: not run: vLLM is not installed."
    told = {line.split()[0]: line.partition(" hf: ")[2] for line in lines[5 : 5 + len(CHOSEN)]}
    assert told["greedy"] == "ok"
    assert told["code"].startswith("ok, other tokens from number ")
    for name in ("vcd", "opera"):
        assert told[name].startswith("ok, greedy's tokens, scores moved by up to "), told[name]
    assert told["var"] == (
        "changed nothing here, var edited nothing inside the model in this answer: nothing met the "
        "strategy's conditions."
    )
    assert told["adhh"].startswith("refused, adhh needs an artifact made for this model: run `")
    assert "not trained with 'edvt'" in told["edvt"]
    assert lines[-1] == (
        "1 changed nothing here, 5 ok, 1 refused. Off equals greedy, hooks fire, engines agree: "
        "these hold."
    )
    assert "600 s (--seconds)" in result.err


def test_a_strategy_that_is_not_off_breaks(cli, loads, wrong_off):
    result = cli("doctor", "--verify", "testbed", "--strategy", wrong_off)
    assert result.code == 1
    assert "hf: differs, at its off point token 1 is " in result.out
    assert f"these do not hold of {wrong_off} on hf." in result.out


def test_a_hook_that_does_not_fire_breaks(cli, loads, testbed, monkeypatch):
    monkeypatch.setattr(testbed.model, "set_attn_implementation", lambda *a, **k: None)
    result = cli("doctor", "--verify", "testbed", "--strategy", "pai", "--strategy", "vcd")
    assert result.code == 1
    assert "hf: failed, pai" in result.out and "attend was not called in layer" in result.out
    assert "these do not hold of pai on hf." in result.out  # and vcd was still run


def test_an_error_of_any_kind_is_told_and_the_others_run(cli, loads, testbed, monkeypatch):
    plan = testbed.plan

    def broken(strategy, **how):
        if isinstance(strategy, list) and strategy[0].name == "vcd":
            raise RuntimeError("first line\nsecond line")
        return plan(strategy, **how)

    monkeypatch.setattr(testbed, "plan", broken)
    result = cli("doctor", "--verify", "testbed", "--strategy", "vcd", "--strategy", "vdd")
    assert result.code == 1
    assert "vcd  hf: failed, RuntimeError: first line\nvdd  hf: ok" in result.out


@pytest.mark.parametrize(("gap", "word", "code"), [(0.5, "differs", 1), (1e-5, "ok", 0)])
def test_engines_agree_but_for_near_ties(cli, loads, gap, word, code):
    loads["vllm"] = lambda output: other_last_token(output, gap)
    result = cli("doctor", "--verify", "testbed", "--json", "--strategy", "greedy")
    assert result.code == code
    assert words(result) == {("greedy", "hf"): "ok", ("greedy", "vllm"): word}
    found = json.loads(result.out)
    assert found["broken"] == ([["greedy", "vllm"]] if code else [])
    why = found["strategies"]["greedy"]["vllm"]["why"]
    assert why.startswith("token 16 is 'odd', ") == bool(code) and ("engine hf" in why) == code


def test_what_there_is_no_time_for_is_told(cli, loads):
    result = cli("doctor", "--verify", "testbed", "--json", "--strategy", "vcd", "--seconds", "0")
    assert result.code == 0
    assert words(result) == {("vcd", "hf"): "not run"}
    assert "the 0 s were over" in result.out


def test_a_checkpoint_of_another_family_is_loaded_and_its_refusals_told(cli, tmp_path_factory):
    path = families.family_path("instructblip", tmp_path_factory)
    given = ("--strategy", "vcd", "--strategy", "damro", "--strategy", "vicrop")
    result = cli("doctor", "--verify", path, "--engine", "hf", "--json", *given)
    assert result.code == 0
    assert words(result) == {
        ("vcd", "hf"): "ok", ("damro", "hf"): "refused", ("vicrop", "hf"): "refused",
    }  # fmt: skip
    refused = json.loads(result.out)["strategies"]["damro"]["hf"]["why"]
    assert "family 'instructblip' cannot give" in refused


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("--verify /nowhere", "/nowhere: no such model folder; give a folder, a hub id, or"),
        ("--verify testbed --strategy vdc", "Unknown strategy 'vdc'. Did you mean 'vcd'"),
        ("--verify testbed --engine server", "--engine server: --verify loads the model here;"),
        ("--verify testbed --family llava", "--verify and --family are two reports; ask for one"),
        (
            "--verify testbed --engine-arg a=1",
            "--engine-arg is one engine's: name it with",
        ),
        ("--strategy vcd", "--strategy goes with --verify MODEL."),
        ("--family llava --seconds 3", "--seconds goes with --verify MODEL."),
    ],
)
def test_what_cannot_be_verified_is_one_sentence(cli, given, sentence):
    result = cli("doctor", *given.split())
    assert result.code == 2 and result.out == ""
    assert sentence in result.err and len(result.err.splitlines()) == 1


def test_an_engine_that_was_asked_for_must_be_there(cli, loads):
    result = cli("doctor", "--verify", "testbed", "--engine", "vllm")
    assert result.code == 2 and result.err.endswith("error: vLLM is not installed.\n")


def test_a_description_written_first_is_no_longer_than_an_answer():
    strategies = parse("code+vdgd(tokens=5)+vcd")
    assert [getattr(each, "tokens", 0) for each in verify._brief(strategies)] == [16, 5, 0]
