"""Requests and comparisons shared by the vLLM tests."""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from collections.abc import Callable

import pytest

import halludecode as hd
from halludecode.core.step import Step
from tests.support import families, specs
from tests.support.processes import REPO, environment

TOLERANCE = 1e-4  # top-two gap, or distance to a mask edge, below which tokens may differ
MET: Counter[str] = Counter()  # what `same` met, printed at the end
# Parameters under which a strategy acts on any model, for longer answers than the contract's.
ACTIVE = {
    **specs.ACTIVE,
    "m3id": "m3id(lam=0.05,gate=1)",
    "adhh": "adhh(heads=(0,0,1,1,2,0,3,3),tau=0.05)",
    "spin": "spin(r=0.5)",
}
V2 = os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"  # see `make test-v2`
WORDS = ("Describe the image.", "Is there a dog in the image?", "What color is the car?", "Why?")


def requests(count: int = 4, seed: int = 0) -> list[hd.Request]:
    rng, pictures = random.Random(seed), families.pictures()
    made = []
    for i in range(count):
        words = WORDS[i % len(WORDS)] + " Please." * rng.choice([0, 0, 1, 6])
        made.append(hd.Request(words, [pictures[i % len(pictures)]]))
    return made


def edge_gaps(engine, request: hd.Request, spec: str, sampling: hd.Sampling) -> list[float]:
    """Per token of an answer, how near (nats) any word came to the edge of a plausibility mask."""
    plan = engine.plan(spec)  # first: compiling a spec calls the mask too
    found, stock = [], Step.plausible

    def plausible(self, scores, beta):
        if beta > 0:
            main = self["main"]
            edge = main.amax(-1, keepdim=True) + math.log(beta)
            found.append(float((main - edge).abs().min()))
        return stock(self, scores, beta)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "plausible", plausible)
        count = len(engine.generate(request, plan, sampling)[0].token_ids)
    each = max(1, len(found) // count)  # parts of a composition have a mask each
    return [min(found[at : at + each]) for at in range(0, len(found), each)]


def same(a: hd.Output, b: hd.Output, gaps: Callable[[], list[float]] | None = None) -> bool:
    """Equal tokens; else the first difference must be a near tie, or lie at the edge of a mask.

    Args:
        a: An answer with ``logprobs=3``.
        b: What it should be.
        gaps: Measures, per token, the distance to a mask's edge (`edge_gaps`). Where a word is kept
            by one engine and not by the other, all log-probabilities move by one number; that is
            allowed where the distance is below the tolerance, and nowhere without ``gaps``.
    """
    MET["answers"] += 1
    measured: list[float] | None = None
    for i, (x, y) in enumerate(zip(a.logprobs, b.logprobs, strict=False)):
        pairs = [(x.top[token], y.top[token]) for token in x.top.keys() & y.top.keys()]
        pairs += [(x.logprob, y.logprob)] if x.token_id == y.token_id else []
        moved = [0.0 if mine == other else mine - other for mine, other in pairs]  # no inf - inf
        if moved and max(map(abs, moved)) > 1e-3:
            measured = measured if measured is not None or gaps is None else gaps()
            if not measured or measured[i] > TOLERANCE or max(moved) - min(moved) > TOLERANCE:
                return False
            MET["steps at the edge of a mask"] += 1
        if x.token_id != y.token_id:
            first, second = sorted(x.top.values(), reverse=True)[:2]
            MET["near ties"] += first - second < TOLERANCE
            return first - second < TOLERANCE
    return a.token_ids == b.token_ids and a.finish_reason == b.finish_reason and a.text == b.text


def answer_together(engine, asked: list[tuple[hd.Request, str, hd.Sampling]]) -> list[hd.Output]:
    """Answers of requests under strategies of their own, in one batch; the first failure raises."""
    from halludecode.engines.vllm.frontend.pending import PendingRequest, answered

    pending = [(request, PendingRequest(engine.plan(spec), how)) for request, spec, how in asked]
    *_, outcomes = engine.write(pending)
    return answered(outcomes)


def served(engine, spec: str) -> bool:
    """Whether an engine has what a strategy needs."""
    try:
        return bool(engine.plan(spec))
    except hd.UnsupportedStrategy:
        return False


def scheduler_of(engine):
    """The scheduler of an engine whose core is in this process."""
    return engine.loaded.engine.engine_core.engine_core.scheduler


def worker_of(engine):
    """The worker of an engine whose core is in this process."""
    core = engine.loaded.engine.engine_core.engine_core
    return core.model_executor.driver_worker.worker


def encoder_outputs(engine):
    """Owner and name of what holds encoded pictures in an engine's worker."""
    runner = worker_of(engine).model_runner
    return (runner.encoder_cache, "encoder_outputs") if V2 else (runner, "encoder_cache")


def python_path() -> str:
    """PYTHONPATH of a process that a test starts, with what stands in for Triton where it is."""
    return environment(REPO)["PYTHONPATH"]
