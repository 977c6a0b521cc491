"""What fails ends its own request alone, with a sentence, and leaves nothing behind."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch

import halludecode as hd
from halludecode.core import spec as hd_spec
from halludecode.core.artifact import Artifact
from halludecode.core.registry import STRATEGIES
from halludecode.core.strategy import Strategy, strategy
from halludecode.engines.inputs.processor import LRU
from halludecode.engines.vllm.frontend import opening
from halludecode.engines.vllm.worker import attention, hooks
from tests.support import families
from tests.support.vllm import (
    V2,
    answer_together,
    encoder_outputs,
    requests,
    same,
    scheduler_of,
    worker_of,
)

LONG = hd.Sampling(max_new_tokens=30, min_new_tokens=29, logprobs=3)


@pytest.fixture
def ours(vllm_engine):
    engine = vllm_engine("testbed")
    yield engine
    scheduler, worker = scheduler_of(engine), worker_of(engine)
    left = (scheduler.groups, scheduler.requests, scheduler.running, list(scheduler.waiting))
    assert not any(left), left
    assert not any((scheduler._failed, scheduler._group_of, engine_requests(engine)))
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    assert free == scheduler.kv_cache_config.num_blocks - 1
    state = worker.model_runner.hd_state
    assert not state.states and not state.records and not state.captured
    plain = hd.Sampling(max_new_tokens=4, logprobs=3)
    assert len(engine.generate(requests(1), "vcd", plain)[0].token_ids) > 0


def engine_requests(engine):
    return engine.loaded.engine.output_processor.get_num_unfinished_requests()


def while_running(monkeypatch, engine, step: int, act):
    """Call ``act`` after some steps of the scheduler."""
    scheduler, taken = scheduler_of(engine), []
    stock = scheduler.schedule

    def schedule(*args, **kwargs):
        taken.append(1)
        if len(taken) == step:
            act(scheduler)
        return stock(*args, **kwargs)

    monkeypatch.setattr(scheduler, "schedule", schedule)


def test_a_row_aborted_alone_ends_its_request_with_a_sentence(ours, monkeypatch):
    def abort(scheduler):
        from vllm.v1.request import RequestStatus

        name = next(i for i in scheduler.requests if "#" in i)
        scheduler.finish_requests([name], RequestStatus.FINISHED_ABORTED)

    monkeypatch.setattr(ours, "extra_rows", "always")
    while_running(monkeypatch, ours, 8, abort)
    with pytest.raises(hd.InvalidRequest, match="a row of its group was ended alone"):
        ours.generate(requests(3), "vcd", LONG)


def test_rows_that_diverge_are_noticed(ours, monkeypatch):
    from halludecode.engines.vllm.worker.sampler import GroupSampling

    stock = GroupSampling.settle
    taken = []

    def settle(self, tokens):
        stock(self, tokens)
        taken.append(1)
        if len(taken) == 6:
            tokens[-1] += 1

    monkeypatch.setattr(GroupSampling, "settle", settle)
    monkeypatch.setattr(ours, "extra_rows", "always")
    with pytest.raises(hd.InvalidRequest, match="its rows diverged"):
        ours.generate(requests(1), "vcd", LONG)


@pytest.mark.parametrize("spec", ["vcd", "damro"])
def test_features_that_vllm_lost_are_made_again(vllm_engine, monkeypatch, spec):
    """A miss in the encoder's cache would end the engine."""
    engine, lost = vllm_engine("testbed"), set()
    scheduler, (owner, name) = scheduler_of(engine), encoder_outputs(engine)
    outputs = getattr(owner, name)

    class Forgetful(type(outputs)):
        def get(self, identifier, default=None):
            if identifier in self and identifier not in lost:
                lost.add(identifier)
                del self[identifier]
            return super().get(identifier, default)

    few = hd.Sampling(max_new_tokens=6, logprobs=3)
    forgetful = Forgetful(worker_of(engine).model_runner) if V2 else Forgetful()
    answers = []
    for cache in (forgetful, outputs):
        monkeypatch.setattr(owner, name, cache)
        cache.clear()
        scheduler.encoder_cache_manager.reset()
        assert scheduler.reset_prefix_cache()
        answers.append([one.token_ids for one in engine.generate(requests(2), spec, few)])
    assert len(lost) >= 2
    assert answers[0] == answers[1]


def test_a_client_that_leaves_takes_its_group_along(ours):
    stream = ours.stream(requests(1)[0], "vcd+ritual", LONG)
    next(stream)
    assert scheduler_of(ours).groups
    stream.close()
    ours.generate(requests(1), "greedy", hd.Sampling(max_new_tokens=1))


@pytest.fixture
def faulty():
    """Strategies that fail inside the model, in their rule, and before their rows exist."""

    @strategy("fails_attend")
    class FailsAttend(Strategy):
        def attend(self, a):
            a.mass(a.image)
            if a.image.of("main").shape[-1] > 50:  # longer than what tracing shows
                raise IndexError("no such head")

    @strategy("fails_combine")
    class FailsCombine(Strategy):
        def combine(self, step):
            if int(step.t.max()) == 3:
                raise ZeroDivisionError("nothing to divide")
            return step["main"]

    @strategy("silent")
    class Silent(Strategy):
        def steer(self, h):
            return h.x

    yield
    for name in ("fails_attend", "fails_combine", "silent"):
        STRATEGIES._entries.pop(name, None)


def test_a_hook_that_fails_voids_its_answers_alone(ours, faulty):
    for name, why in (("fails_attend", "no such head"), ("fails_combine", "nothing to divide")):
        with pytest.raises(hd.HalluDecodeError, match=why):
            ours.generate(requests(2), name, LONG)


def test_neighbours_of_a_failing_request_are_answered(ours, faulty, testbed):
    from halludecode.engines.vllm.frontend.output_reader import OutputReader

    given = [(requests(1)[0], "fails_combine", LONG), *((r, "vcd", LONG) for r in requests(3))]
    reported = []
    stock = OutputReader.reports

    def reports(self):
        own = stock(self)
        reported.extend(own)
        return own

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OutputReader, "reports", reports)
        with pytest.raises(hd.HalluDecodeError, match="nothing to divide"):
            answer_together(ours, given)
    assert [bool(report["error"]) for report in reported] == [True, False, False, False]
    wanted = testbed.generate(requests(3), "vcd", LONG)
    for a, b in zip(answer_together(ours, given[1:]), wanted, strict=True):
        assert same(a, b)


def test_a_hook_that_never_fires_is_an_error(ours, faulty, monkeypatch):
    from halludecode.engines.vllm.worker.forward_context import WorkerForward

    monkeypatch.setattr(WorkerForward, "layer_output", lambda self, layer, hidden, residual: None)
    with pytest.raises(hd.HookNeverFired, match=r"silent.steer was not called in layer\(s\)"):
        ours.generate(requests(1), "silent", hd.Sampling(max_new_tokens=3))


def test_a_cache_that_is_read_wrongly_is_an_error(ours, monkeypatch):
    from halludecode.engines.vllm.worker import kv_cache as paged

    runner = worker_of(ours).model_runner
    monkeypatch.setattr(runner._hd_checked, "_done", set())
    stock = paged.read
    monkeypatch.setattr(paged, "read", lambda *a, **k: tuple(x.flip(-1) for x in stock(*a, **k)))
    with pytest.raises(hd.HookNeverFired, match="differs from the kernel's"):
        ours.generate(requests(1), "pai", hd.Sampling(max_new_tokens=3))


def test_prompts_that_must_be_whole_and_cannot_are_refused_with_numbers(vllm_engine):
    tight = vllm_engine("testbed", tight="cut")
    with pytest.raises(hd.InvalidRequest, match=r"\d+ tokens, and a step of vLLM holds 52 "):
        tight.generate(requests(1), "vhr", hd.Sampling(max_new_tokens=3))


def test_more_rows_than_slots_are_refused_with_numbers(ours):
    from halludecode.engines.vllm.frontend.capacity import check_rows

    rows = list(ours.rows(requests(1)[0], "vcd").values()) * 30
    with pytest.raises(hd.InvalidRequest, match="takes 60 rows, vLLM runs at most 48"):
        check_rows(rows, ours.plan("vcd"), 4, ours.loaded.vllm_config)


def test_cuda_graphs_refuse_nothing_and_rounded_head_outputs_edits(ours, monkeypatch):
    from vllm.config import CUDAGraphMode

    compiled = ours.loaded.vllm_config.compilation_config
    monkeypatch.setattr(compiled, "cudagraph_mode", CUDAGraphMode.FULL_AND_PIECEWISE)
    monkeypatch.setattr(compiled.pass_config, "fuse_attn_quant", True)
    monkeypatch.setattr(ours, "_plans", LRU(8))
    for spec in ("vcd", "vista", "dola", "agla"):
        ours.plan(spec)
    for spec in ("pai", "vhr"):
        with pytest.raises(hd.UnsupportedStrategy, match=r"which fuse_attn_quant .*without it"):
            ours.plan(spec)


def test_reading_a_tower_that_ranks_share_by_pictures_is_refused(ours, monkeypatch):
    config = ours.loaded.vllm_config
    monkeypatch.setattr(config.parallel_config, "tensor_parallel_size", 2)
    monkeypatch.setattr(config.model_config.multimodal_config, "mm_encoder_tp_mode", "data")
    monkeypatch.setattr(ours, "_plans", LRU(8))
    ours.plan("vcd+pai+vhr")
    with pytest.raises(
        hd.UnsupportedStrategy, match="needs 'vision-tower attention', which ranks with pictures"
    ):
        ours.plan("damro")


def test_artifacts_of_one_engine_are_found_by_the_other(ours, testbed):
    assert ours.digest == testbed.digest


def test_one_failing_request_leaves_the_others_their_answers(ours, testbed, monkeypatch):
    def abort(scheduler):
        from vllm.v1.request import RequestStatus

        name = next(i for i in scheduler.requests if "#" in i)
        scheduler.finish_requests([name], RequestStatus.FINISHED_ABORTED)

    monkeypatch.setattr(ours, "extra_rows", "always")
    while_running(monkeypatch, ours, 8, abort)
    asked = [hd.Request("What?", ["/no/such.png"]), *requests(3)]
    made = ours.generate_each(asked, "vcd", LONG)
    failed = [isinstance(one, hd.InvalidRequest) for one in made]
    assert failed[0] and "no such image file" in str(made[0])
    assert sum(failed) == 2 and "ended alone" in str(made[failed.index(True, 1)])
    wanted = testbed.generate(requests(3), "vcd", LONG)
    for one, want, void in zip(made[1:], wanted, failed[1:], strict=True):
        assert void or same(one, want)


def test_a_request_whose_look_fails_leaves_the_others_theirs(ours, testbed):
    too_long = hd.Request("Why? " * 2000, families.pictures()[:1])
    made = ours.generate_each([too_long, *requests(2)], "agla", hd.Sampling(max_new_tokens=4))
    assert isinstance(made[0], hd.InvalidRequest) and "context is" in str(made[0])
    wanted = testbed.generate(requests(2), "agla", hd.Sampling(max_new_tokens=4))
    assert [one.token_ids for one in made[1:]] == [one.token_ids for one in wanted]


def test_a_forward_that_calls_no_hook_at_all_is_an_error(ours, faulty, monkeypatch):
    """As a replayed graph would be."""
    runner = worker_of(ours).model_runner
    for module in runner.get_model().modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs"):
            monkeypatch.setattr(module, kind, OrderedDict())
    for layer in runner.vllm_config.compilation_config.static_forward_context.values():
        if hasattr(layer.impl, "hd_runner"):
            monkeypatch.setattr(layer.impl, "hd_runner", SimpleNamespace(hd_forward=lambda: None))
    few = hd.Sampling(max_new_tokens=3)
    for spec, why in (("silent", "steer was not called"), ("pai", "attend was not called")):
        with pytest.raises(hd.HookNeverFired, match=why):
            ours.generate(requests(1), spec, few)
    with pytest.raises(hd.HookNeverFired, match=r"entering layer \d+ was never seen"):
        ours.generate(requests(1), "dola", few)


def test_workers_forget_the_artifacts_that_were_used_longest_ago(ours, monkeypatch):
    sent = []
    monkeypatch.setattr(opening, "KEPT", 2)
    monkeypatch.setattr(ours._opener, "_sent", {})
    monkeypatch.setattr(ours.loaded, "call_workers", lambda *given: sent.append(given[1:]))
    made = Artifact("var", {}, "model", {"dims": torch.tensor([1])})

    def send(p, artifact=made):
        part = SimpleNamespace(
            strategy=STRATEGIES.get("var")(p=p), model_info=SimpleNamespace(artifact=artifact)
        )
        ours._opener._send_artifacts(SimpleNamespace(parts=[part]))

    for p in (0.1, 0.2, 0.1, 0.3):
        send(p)
    send(0.4, None)
    texts = [hd_spec.format((STRATEGIES.get("var")(p=p),)) for p in (0.1, 0.2, 0.3)]
    assert list(ours._opener._sent) == [texts[0], texts[2]]
    assert [text for text, artifact in sent if artifact is not None] == texts
    assert (texts[1], None) in sent and len(sent) == 4


def test_compiled_strategies_are_bounded(ours, monkeypatch):
    plans_known = LRU(3)
    monkeypatch.setattr(ours, "_plans", plans_known)
    plans = [ours.plan(f"vcd(alpha={n})") for n in range(1, 6)]
    assert plans_known.size == 3
    assert ours.plan("vcd(alpha=5)") is plans[-1] and ours.plan("vcd(alpha=1)") is not plans[0]


@pytest.mark.filterwarnings("ignore")  # vLLM's own
@pytest.mark.skipif(V2, reason="Triton, or what stands in for it, is here")
def test_the_other_model_runner_needs_triton(monkeypatch):
    import vllm.envs

    vllm.envs.disable_envs_cache()  # engines before this one have read the variable for good
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises(hd.InvalidModel, match=r"cannot start \(Model Runner V2 requires Triton\)"):
        hd.load("testbed", engine="vllm")


def test_pictures_too_many_or_unreadable_are_one_sentence(ours):
    picture = families.pictures()[0]
    with pytest.raises(hd.InvalidRequest, match="no such image file"):
        ours.generate(hd.Request("What?", ["/no/such.png"]), "vcd")
    assert torch.is_grad_enabled()
    with pytest.raises(hd.InvalidRequest, match="placeholder"):
        ours.generate(hd.Request("<image> <image> What?", [picture]), "vcd")


def test_a_backend_that_hides_its_keys_fails_only_what_reads_them(ours, monkeypatch):
    def blind(number, query, cache, block_table, scaling, out, window):
        return attention.Layer(number, query, cache, None, scaling, out)

    monkeypatch.setattr(hooks, "attention", SimpleNamespace(Layer=blind))
    monkeypatch.setattr(ours, "extra_rows", "always")  # or no pass may be needed
    asked = hd.Request("Describe the image.", families.pictures()[:1])
    short = hd.Sampling(max_new_tokens=3)
    for spec in ("pai", "agla"):  # an edit, a pass before
        with pytest.raises(hd.UnsupportedStrategy, match="start with attention_backend="):
            ours.generate(asked, spec, short)
    for spec in ("greedy", "vhr", "vcd"):
        assert ours.generate(asked, spec, short)[0].token_ids
