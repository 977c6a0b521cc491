"""Laws of every strategy on every family: off is off, batches are singles, hooks fire, no leaks."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial

import pytest
import torch

import halludecode as hd
from halludecode.core import spec as hd_spec
from halludecode.core.errors import (
    HookNeverFired,
    InvalidParameter,
    InvalidRequest,
    UnsupportedStrategy,
)
from halludecode.core.plan import compile_plan
from halludecode.core.registry import STRATEGIES
from tests.support import families, specs
from tests.support.vllm import edge_gaps
from tests.support.vllm import same as same_but_for_edges

WORDS = ["What is this?", "Describe it, please.", "Why?"]
SHORT = hd.Sampling(max_new_tokens=5, logprobs=3)


def requests() -> list[hd.Request]:
    return [hd.Request(w, [p]) for w, p in zip(WORDS, families.pictures(), strict=True)]


ANSWERS: dict[tuple[str, str, int | None], list[hd.Output]] = {}


def answers(engine, spec: str, which: int | None = None) -> list[hd.Output]:
    """What ``requests()`` get in one batch, or one of them alone: asked once, read by many laws."""
    key = (engine.model.config.model_type, spec, which)
    if key not in ANSWERS:
        asked = requests() if which is None else requests()[which : which + 1]
        ANSWERS[key] = engine.generate(asked, spec, SHORT)
    return ANSWERS[key]


def same(a: hd.Output, b: hd.Output) -> bool:
    """Equal tokens, or a difference only where the top two were closer than the tolerance."""
    for x, y in zip(a.logprobs, b.logprobs, strict=False):
        if x.token_id != y.token_id:
            first, second = sorted(x.top.values(), reverse=True)[:2]
            return first - second < specs.TOLERANCE
        if abs(x.logprob - y.logprob) > 1e-3:
            return False
    return a.finish_reason == b.finish_reason and len(a.token_ids) == len(b.token_ids)


@pytest.fixture
def family_engine(family_engine, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "artifacts"
    return lambda name: specs.supplied(family_engine(name), folder)


@pytest.fixture(params=specs.FAMILIES)
def engine(request, family_engine):
    return family_engine(request.param)


@pytest.fixture(params=specs.cases(), ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.mark.parametrize(("family", "name"), specs.refusals())
def test_what_a_family_cannot_do_is_refused(family_engine, family, name, record_property):
    engine, reason = family_engine(family), specs.refused(family, name)
    calls = engine.hf_model.calls
    said = f"family '{family}' cannot give|where this model has none, in layer"
    with pytest.raises(UnsupportedStrategy, match=said) as caught:
        engine.generate(requests(), specs.active(name), SHORT)
    assert reason in str(caught.value)
    assert engine.hf_model.calls == calls, "before any token"
    record_property("refused", reason)


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_off_point_equals_greedy(engine, name):
    plan = engine.plan(specs.off_spec(name), skip_off=False)
    if name != "greedy":
        assert len(plan.parts) == 1, "the off point must not be skipped here"
    off = engine.generate(requests(), plan, SHORT)
    for a, b in zip(off, answers(engine, "greedy"), strict=True):
        assert a.token_ids == b.token_ids


def test_strategies_act_on_a_random_model(engine, case):
    plain, edited = answers(engine, "greedy"), answers(engine, case.spec)
    moved = any(
        abs(x.logprob - y.logprob) > 1e-3
        for a, b in zip(plain, edited, strict=True)
        for x, y in zip(a.logprobs, b.logprobs, strict=True)
    )
    # APC removes a tail that a peaked random model may not have: log-probabilities still move
    assert moved == (case.name != "greedy")


def test_batch_of_n_equals_n_singles(engine, case):
    for place, batched in enumerate(answers(engine, case.spec)):
        assert same(answers(engine, case.spec, place)[0], batched)


def test_sampled_batch_equals_singles_and_seeds_repeat(engine, case):
    sampling = hd.Sampling(
        max_new_tokens=5,
        temperature=1.3,
        top_p=0.95,
        top_k=50,
        repetition_penalty=1.2,
        seed=7,
        logprobs=3,
    )
    if engine.plan(case.spec).search is not None:
        with pytest.raises(InvalidRequest, match="draws nothing"):
            engine.generate(requests(), case.spec, sampling)
        return
    together = engine.generate(requests(), case.spec, sampling)
    again = engine.generate(requests(), case.spec, sampling)
    assert [o.token_ids for o in together] == [o.token_ids for o in again]
    for request, batched in zip(requests(), together, strict=True):
        single = engine.generate([request], case.spec, sampling)[0]
        assert single.token_ids == batched.token_ids


def test_prefix_reuse_changes_nothing(engine, case):
    picture = families.pictures()[0]
    questions = [hd.Request(w, [picture]) for w in WORDS]
    plan = engine.plan(case.spec)
    engine.prefixes.clear()
    calls = engine.hf_model.calls
    reused = engine.generate(questions, plan, SHORT)
    spent = engine.hf_model.calls - calls
    shared = plan.main_reusable and not engine.family.unshared
    assert engine.reuses_prefixes([_prompt(engine, q) for q in questions], plan) == shared
    assert spent >= 5
    for question, output in zip(questions, reused, strict=True):
        assert same(engine.generate([question], plan, SHORT)[0], output)


def _prompt(engine, request):
    from halludecode.engines.inputs.chat import to_prompt

    return to_prompt(request, engine.family.placeholder)


def test_composition_does_not_depend_on_order(engine, case):
    if "+" not in case.name:
        return
    swapped = "+".join(reversed(hd_spec.split(case.spec, "+", case.spec)))
    there = answers(engine, case.spec)
    back = engine.generate(requests(), swapped, SHORT)
    assert all(same(a, b) for a, b in zip(there, back, strict=True))


def test_one_forward_per_step_for_all_rows(engine, case):
    passes = engine.plan(case.spec).cost.passes
    engine.generate(requests(), case.spec, hd.Sampling(max_new_tokens=1))  # passes are remembered
    seen: list[int] = []
    # Rows may be laid end to end: what is decoded of each is counted.
    handle = engine.model.register_forward_hook(
        lambda m, a, out: seen.append(out.logits.shape[:-1].numel())
    )
    try:
        outputs = engine.generate(
            requests(), case.spec, hd.Sampling(max_new_tokens=4, min_new_tokens=4)
        )
    finally:
        handle.remove()
    # A search tries its candidates in one forward more; its rows are requests.
    searching = engine.plan(case.spec).search is not None
    if engine.plan(case.spec).can_wait:  # random weights decide nothing: all begin with token 1
        seen[:2] = [sum(seen[:2])]
    assert len(seen) == 4 + searching, f"{passes} passes came before; 4 tokens are 4 forwards"
    assert seen[0] == 3 * len(outputs[0].rows)
    assert all(output.timings.tokens == 4 for output in outputs)


def test_rows_that_begin_late_change_no_token(engine, case, monkeypatch):
    late = answers(engine, case.spec)
    monkeypatch.setattr(engine, "extra_rows", "always")
    at_once = engine.generate(requests(), case.spec, SHORT)
    assert all(same(a, b) for a, b in zip(late, at_once, strict=True))
    assert [(o.effect, o.warnings) for o in late] == [(o.effect, o.warnings) for o in at_once]


def test_model_is_untouched_afterwards(engine, case):
    def state():
        model = engine.model
        hooks = sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m))
            for m in model.modules()
        )
        deltas = id(getattr(getattr(model, "model", None), "rope_deltas", None))
        text = model.config.get_text_config()._attn_implementation
        configs = (text, hooks, model.training, deltas)
        return configs, {k: v.clone() for k, v in model.state_dict().items()}

    before, weights = state()
    engine.generate(requests(), case.spec, SHORT)
    after, now = state()
    assert before == after
    assert all(torch.equal(weights[k], now[k]) for k in weights)


def test_declared_hooks_must_fire(engine, case, monkeypatch):
    if not engine.plan(case.spec).attending:
        return
    monkeypatch.setattr(engine.model, "set_attn_implementation", lambda *a, **k: None)
    with pytest.raises(HookNeverFired, match=r"attend was not called in layer"):
        engine.generate(requests()[:1], case.spec, SHORT)


def test_stream_is_generate(engine, case):
    whole = answers(engine, case.spec, 0)[0]
    chunks = list(engine.stream(requests()[0], case.spec, SHORT))
    assert "".join(chunk.text for chunk in chunks).strip() == whole.text
    assert chunks[-1].output.token_ids == whole.token_ids
    assert sum((chunk.token_ids for chunk in chunks), ()) == whole.token_ids


def test_several_pictures_and_turns(engine, case):
    one, two, three = families.pictures()
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": "A thing."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And this?"}]},
    ]
    asked = [hd.Request("Compare.", [one, two]), hd.Request(chat, [two, three])]
    row = families.FAMILIES[engine.model.config.model_type]
    if not row.chat:
        asked[1] = hd.Request("And these?", [two, three])
    if not row.several:
        with pytest.raises(InvalidRequest, match=r"2 images were given, but family .* reads one"):
            engine.generate(asked[:1], case.spec, SHORT)
        return
    together = engine.generate(asked, case.spec, SHORT)
    for request, batched in zip(asked, together, strict=True):
        gaps = partial(edge_gaps, engine, request, case.spec, SHORT)
        assert same_but_for_edges(engine.generate([request], case.spec, SHORT)[0], batched, gaps)
    swapped = engine.generate([hd.Request("Compare.", [two, one])], case.spec, SHORT)[0]
    assert swapped.token_ids != together[0].token_ids or swapped.logprobs != together[0].logprobs


def test_text_only_requests_are_greedy_and_warn(engine, case):
    mixed = [hd.Request("Hello there"), requests()[0]]
    outputs = engine.generate(mixed, case.spec, SHORT)
    assert outputs[0].token_ids == engine.generate(mixed[:1], "greedy", SHORT)[0].token_ids
    if case.name != "greedy":
        assert "no image" in outputs[0].warnings[0]
    assert same(answers(engine, case.spec, 0)[0], outputs[1])


def test_two_threads_two_strategies_do_not_leak(engine, case):
    expected = {s: answers(engine, s) for s in (case.spec, "greedy")}
    got: dict[str, list] = {s: [] for s in expected}

    def work(strategy: str) -> None:
        for _ in range(2):
            got[strategy].append(engine.generate(requests(), strategy, SHORT))

    threads = [threading.Thread(target=work, args=(s,)) for s in expected]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for strategy, runs in got.items():
        assert len(runs) == 2
        for run in runs:
            assert [o.token_ids for o in run] == [o.token_ids for o in expected[strategy]]


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_file_is_short_and_cites(name):
    from pathlib import Path

    cls = STRATEGIES.get(name)
    text = Path(cls.source).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    if name != "greedy":
        assert cls.paper is not None
        number = cls.paper.arxiv or cls.paper.openreview
        assert number in text.split('"""')[1], "the docstring cites the paper"
        assert number in cls.paper.bibtex(name) and number in cls.paper.url


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_documented_bounds_are_enforced(name):
    cls = STRATEGIES.get(name)
    for param in cls.params():
        for bound, outside in ((param.ge, -1), (param.gt, 0), (param.le, 1), (param.lt, 0)):
            if bound is None:
                continue
            step = 1 if "int" in param.type and "float" not in param.type else 0.5
            value = bound + step * outside if outside else bound
            with pytest.raises(InvalidParameter, match=param.name):
                cls(**{param.name: type(bound)(value) if step == 1 else value})
        with pytest.raises(InvalidParameter, match=f"{name}\\({param.name}="):
            cls(**{param.name: object()})


def test_spec_round_trips(case):
    import json

    import yaml

    parts = hd_spec.parse(case.spec)
    assert hd_spec.parse(hd_spec.format(parts)) == parts
    config = hd_spec.to_config(parts)
    assert hd_spec.parse(json.loads(json.dumps(config))) == parts
    assert hd_spec.parse(yaml.safe_load(yaml.safe_dump(config))) == parts


def test_needs_are_traced(case):
    from halludecode.core.plan import typical_model_info

    plan = compile_plan(case.spec, replace(typical_model_info(), artifact={}))
    expected = {
        "greedy": set(),
        "apc_only": set(),
        "vcd": {"rows", "pixels"},
        "m3id": {"rows"},
        "var": {"mass", "scale_weights", "token_mask"},
        "vhr": {"rows", "at_first_token", "head_outputs", "scale_heads", "whole"},
        "lacing": {"rows", "features"},
        "zerotuning": {"add_scores"},
        "agla": {"rows", "images", "activations"},
    }
    for name in case.name.split("+"):
        assert expected.get(name, set()) <= plan.needs
