"""Rows beside main that begin when a token needs them: the answers of rows that always ran."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

import halludecode as hd
from halludecode.engines.vllm.frontend.late_rows import tell_if_never
from tests.support.vllm import (
    V2,
    WORDS,
    answer_together,
    requests,
    same,
    scheduler_of,
    worker_of,
)

# With settings under which the testbed, trained and sure of itself, leaves tokens open.
SPECS = (
    "vcd", "vcd(beta=0.01)", "ritual", "agla", "damro", "m3id", "sid", "pai", "vcd+m3id",
)  # fmt: skip
GREEDY = hd.Sampling(max_new_tokens=12, logprobs=3)
DRAWN = replace(GREEDY, temperature=1.5, seed=3)
SAMPLINGS = (
    GREEDY,
    replace(DRAWN, top_p=0.9, repetition_penalty=1.3, min_new_tokens=6),
    replace(GREEDY, allowed_token_ids=tuple(range(4, 90))),
    replace(DRAWN, bad_words=("a", "there"), logit_bias={7: 2.0}, n=2),
)
LATE = {spec for spec in SPECS if spec != "sid"}
on_demand = pytest.mark.skipif(V2, reason="model runner V2 begins all rows with the prompt")


@pytest.fixture
def both_ways(vllm_engine, monkeypatch):
    def answer(asked, tight=""):
        engine = vllm_engine("testbed", tight=tight)
        late = answer_together(engine, asked)
        monkeypatch.setattr(engine, "extra_rows", "always")
        always = answer_together(engine, asked)
        return engine, late, always

    return answer


def mixed(count: int, specs: tuple[str, ...]) -> list[tuple[hd.Request, str, hd.Sampling]]:
    asked = [
        (request, spec, SAMPLINGS[(i + k) % 4])
        for i, request in enumerate(requests(count))
        for k, spec in enumerate(specs)
    ]
    return [*asked, (hd.Request("Why?"), "vcd", GREEDY), (requests(1)[0], "greedy", GREEDY)]


@on_demand
@pytest.mark.parametrize("tight", ["", "cut"])
def test_answers_are_those_of_rows_that_always_run(both_ways, tight):
    """With chunked prompts and preemption, too, where "cut" has no room for whole prompts."""
    asked = mixed(4, tuple(spec for spec in SPECS if spec in LATE or not tight))
    engine, late, always = both_ways(asked, tight)
    for (_, spec, _), mine, other in zip(asked, late, always, strict=True):
        assert same(mine, other), spec
        for a, b in zip(mine.choices, other.choices, strict=True):
            assert a.token_ids == b.token_ids, spec
    began = {spec for (_, spec, _), out in zip(asked, late, strict=True) if len(out.rows) > 1}
    never = {spec for (_, spec, _), out in zip(asked, late, strict=True) if out.rows == ("main",)}
    assert began >= LATE, began
    assert never >= {"greedy", "vcd", "m3id"}, never
    counts = scheduler_of(engine).counts
    assert counts["asked"] == counts["joined"] > 0
    if tight:
        assert counts["preempted rows"] > 0
    state = worker_of(engine).model_runner.hd_state
    assert not (state.states or state.records or state.captured), "something is left"


OPEN = "agla(beta=0.001)"  # nearly every token is


@on_demand
def test_rows_that_cannot_be_made_end_their_answers_alone(vllm_engine, monkeypatch):
    engine = vllm_engine("testbed")
    opener, asked = engine._opener, requests(3)
    stock, made = opener._complete, []

    def complete(opened):
        made.append(opened)
        if any(each.prompt.question.startswith(WORDS[0]) for each in opened):
            raise hd.InvalidRequest("no rows for this one")
        stock(opened)

    monkeypatch.setattr(opener, "_complete", complete)
    outcomes = engine.generate_each(asked, OPEN, GREEDY)
    assert made
    assert isinstance(outcomes[0], hd.InvalidRequest) and "no rows" in str(outcomes[0])
    monkeypatch.undo()
    for one, want in zip(outcomes[1:], engine.generate(asked[1:], OPEN, GREEDY), strict=True):
        assert one.token_ids == want.token_ids
    assert not scheduler_of(engine).groups and not scheduler_of(engine).requests


def test_what_cannot_wait_says_why(vllm_engine, monkeypatch):
    engine = vllm_engine("testbed")
    begin = {spec: engine.rows_begin(engine.plan(spec)) for spec in (*SPECS, "vcd(beta=0)", "vhr")}
    waits = "model runner V2 draws a token of every row" if V2 else ""
    assert {spec for spec, why in begin.items() if why == waits} == LATE
    assert begin["sid"] == "its prompts are read whole, in one step"
    assert begin["vcd(beta=0)"] == "every token needs them"
    scheduling = engine.loaded.vllm_config.scheduler_config
    monkeypatch.setattr(scheduling, "async_scheduling", True)
    assert engine.rows_begin(engine.plan("vcd")) == (
        waits or "a step is scheduled before the tokens of the last one are known"
    )
    monkeypatch.setattr(engine, "extra_rows", "always")
    assert engine.rows_begin(engine.plan("vcd")) == "extra_rows is 'always'"


@pytest.mark.parametrize(
    ("v2", "asynchronous", "cure"),
    [(False, False, ""), (False, True, "async_scheduling=False"), (True, True, "MODEL_RUNNER=0")],
)
def test_an_engine_whose_rows_cannot_wait_says_so_at_its_start(caplog, v2, asynchronous, cure):
    scheduling = SimpleNamespace(async_scheduling=asynchronous)
    config = SimpleNamespace(use_v2_model_runner=v2, scheduler_config=scheduling)
    tell_if_never("always", config)
    assert not caplog.messages
    tell_if_never("on_demand", config)
    assert len(caplog.messages) == bool(cure)
    assert all(cure in message for message in caplog.messages)
