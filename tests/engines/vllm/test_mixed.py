"""Forty requests of all strategies in one batch that has to preempt, chunk and hold."""

from __future__ import annotations

import functools
import random

import pytest

import halludecode as hd
from halludecode.engines.vllm.row_metadata import metadata_of
from tests.support import families
from tests.support.vllm import (
    ACTIVE,
    answer_together,
    edge_gaps,
    requests,
    same,
    scheduler_of,
)

# Prompts of these strategies start whole, so their step must hold them.
WHOLE = ("vhr", "sid", "vhr+m3id", "cmai", "eah", "farsight", "memvr", "vasparse")
CUT = ("greedy", "vcd", "m3id", "ritual", "var", "pai", "dola", "vista", "agla", "damro", "var+vcd")
CUT += ("vdgd", "lacing", "zerotuning")


def cases(names, count: int, *, sampled: bool, seed: int = 0):
    rng = random.Random(seed)
    made = []
    for i, request in enumerate(requests(count, seed)):
        spec = "+".join(ACTIVE.get(part, part) for part in names[i % len(names)].split("+"))
        most = rng.choice([6, 33, 48])  # and hardly less, so that groups grow and are preempted
        more = {"max_new_tokens": most, "min_new_tokens": most - 2, "logprobs": 3}
        if sampled:
            more |= {"temperature": rng.choice([0.7, 1.5]), "seed": rng.randrange(1 << 30)}
            more |= {"top_p": rng.choice([1.0, 0.9]), "top_k": rng.choice([0, 20])}
            more |= {"repetition_penalty": rng.choice([1.0, 1.3])}
        made.append((request, spec, hd.Sampling(**more)))
    return made


@pytest.fixture
def preempted(monkeypatch):
    """Strategies that lost a row to preemption after it had written something."""
    from vllm.v1.core.sched.scheduler import Scheduler

    found, stock = set(), Scheduler._preempt_request

    def preempt(self, request, *args, **kwargs):
        if request.num_output_tokens > 1:
            found.add(metadata_of(request.sampling_params).plan.partition("(")[0] or "greedy")
        return stock(self, request, *args, **kwargs)

    monkeypatch.setattr(Scheduler, "_preempt_request", preempt)
    return found


def under_pressure(tight, hf, names, *, sampled: bool, whole: bool = False) -> None:
    """Answer forty requests at once and compare; what should have happened must have."""
    scheduler = scheduler_of(tight)
    scheduler.counts.clear()
    given = cases(names, 40, sampled=sampled)
    outputs = answer_together(tight, given)
    for (request, spec, sampling), output in zip(given, outputs, strict=True):
        want = hf.generate(request, spec, sampling)[0]
        gaps = functools.partial(edge_gaps, hf, request, spec, sampling)
        assert same(output, want, gaps), (spec, output.token_ids, want.token_ids)
        assert (output.effect, output.rows) == (want.effect, want.rows), spec
    for what in ("preempted groups", "whole" if whole else "held"):
        assert scheduler.counts[what] > 0, scheduler.counts
    assert not scheduler.groups and not scheduler.requests
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    assert free == scheduler.kv_cache_config.num_blocks - 1


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_a_batch_cut_into_small_steps_gives_the_tokens_of_the_hf_engine(
    vllm_engine, testbed, supplied, preempted, sampled
):
    engines = supplied(vllm_engine("testbed", tight="cut"), testbed)
    under_pressure(*engines, CUT, sampled=sampled)
    inside = {"var", "pai", "vista", "dola"}
    assert len(preempted & inside) >= 2, preempted  # edits met their tokens again


@pytest.mark.parametrize(
    "sampled",
    [pytest.param(False, id="greedy", marks=pytest.mark.full), pytest.param(True, id="sampled")],
)
def test_prompts_that_start_whole_give_the_tokens_of_the_hf_engine(
    vllm_engine, testbed, preempted, sampled
):
    tight = vllm_engine("testbed", tight="whole")
    under_pressure(tight, testbed, WHOLE, sampled=sampled, whole=True)
    assert preempted & set(WHOLE), preempted


@pytest.mark.parametrize(
    ("family", "tight"),
    [
        ("qwen2_5_vl", "cut"),
        ("internvl", "whole"),
        pytest.param("qwen2_5_vl", "whole", marks=pytest.mark.full),
        pytest.param("internvl", "cut", marks=pytest.mark.full),
    ],
)
def test_other_families_under_pressure(
    vllm_engine, family_engine, supplied, preempted, family, tight
):
    engines = supplied(vllm_engine(family, tight=tight), family_engine(family))
    names, whole = (WHOLE, True) if tight == "whole" else (CUT, False)
    under_pressure(*engines, names, sampled=family == "internvl", whole=whole)
    assert preempted & set(WHOLE) if whole else preempted


def test_a_request_alone_gives_the_tokens_it_gives_in_the_batch(vllm_engine, testbed, supplied):
    tight, hf = supplied(vllm_engine("testbed", tight="cut"), testbed)
    given = cases(CUT, len(CUT), sampled=True, seed=1)
    together = answer_together(tight, given)
    for one, output in zip(given, together, strict=True):
        gaps = functools.partial(edge_gaps, hf, *one)
        assert same(answer_together(tight, [one])[0], output, gaps), one[1]


def test_plain_traffic_is_untouched_by_edited_neighbours(vllm_engine):
    """Before, beside and after edited rows of the same prompt, vLLM's own answer is the same."""
    tight = vllm_engine("testbed", tight="cut")
    sampling = hd.Sampling(max_new_tokens=12, logprobs=3)
    asked = hd.Request("What is in it?", families.pictures()[:1])
    before = answer_together(tight, [(asked, "greedy", sampling)])[0]
    beside = answer_together(
        tight, [(asked, spec, sampling) for spec in ("pai", "greedy", ACTIVE["var"], "vista")]
    )[1]
    after = answer_together(tight, [(asked, "greedy", sampling)])[0]
    for one in (beside, after):
        assert one.token_ids == before.token_ids
        for x, y in zip(one.logprobs, before.logprobs, strict=True):
            assert abs(x.logprob - y.logprob) < 1e-4
