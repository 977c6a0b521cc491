"""Compiled models are ours or nobody's, and no step is run by a graph that leaves out its edits.

CUDA graphs need a GPU. Here vLLM's own dispatcher chooses them for steps of a real engine, and what
stands in for a replay calls none of our hooks, or in pieces those of attention alone, as there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

import halludecode as hd
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.engines.vllm.worker import graphs, hooks
from halludecode.engines.vllm.worker.forward_context import WorkerForward
from tests.support import specs
from tests.support.vllm import ACTIVE, V2, requests, served, worker_of

SHORT = hd.Sampling(max_new_tokens=6)
LAYER_HOOKS = ("layer_input", "layer_output", "mlp_output")
# What a step is run by where all of its rows are under a strategy; prompts here are chunks, too.
GRAPHS = {
    "greedy": "FULL",
    "vcd": "FULL",
    "pai": "PIECEWISE",
    "vhr": "PIECEWISE",
    "vcd+pai": "PIECEWISE",
    "vista": "NONE",
    "dola": "NONE",
    ACTIVE["var"]: "NONE",
    "only": "NONE",
    "memvr": "NONE",
    "vista+pai": "NONE",
}


@pytest.mark.parametrize("spec", GRAPHS)
def test_a_plan_says_which_graphs_would_leave_it_out(spec):
    plan = compile_plan(spec, replace(typical_model_info(), artifact={}))
    first = [mode for mode in ("FULL", "PIECEWISE") if mode not in graphs.left_out(plan, False)]
    assert (*first, "NONE")[0] == GRAPHS[spec]
    assert graphs.left_out(plan, True) == graphs.ALL, "activations are read between layers"
    assert not graphs.left_out(None, False)


def test_a_model_that_was_compiled_without_our_operations_is_not_taken(monkeypatch):
    from vllm.config import VllmConfig

    plain, ours = VllmConfig(), VllmConfig()
    assert plain.compute_hash() == ours.compute_hash(), "vLLM's folder, whoever its worker is"
    graphs.salt(ours)
    assert plain.compute_hash() != ours.compute_hash()
    other = VllmConfig(additional_config={"theirs": 1})
    graphs.salt(other)
    assert other.additional_config == {"theirs": 1, "halludecode": graphs.digest()}
    monkeypatch.setattr(graphs, "digest", lambda: "of another release")
    later = VllmConfig()
    graphs.salt(later)
    assert later.compute_hash() not in (plain.compute_hash(), ours.compute_hash())


def test_a_folder_for_compiled_models_is_shared_with_nobody(tmp_path):
    """VLLM takes a folder that it is given as it is, and what lies there by its place alone."""
    compiled = SimpleNamespace(cache_dir=str(tmp_path))
    config = SimpleNamespace(additional_config={}, compilation_config=compiled)
    for _ in range(2):
        graphs.salt(config)
        assert compiled.cache_dir == str(tmp_path / graphs.digest())
    config.additional_config = object()
    with pytest.raises(hd.HalluDecodeError, match=r"additional_config= is a object.*give a dict"):
        graphs.salt(config)


def test_the_worker_salts_before_it_loads(vllm_engine):
    config = vllm_engine("testbed").loaded.vllm_config  # its worker is in this process
    assert config.additional_config["halludecode"] == graphs.digest()


def test_operations_are_called_in_every_compiled_forward(monkeypatch):
    """One traced without a strategy serves those with one; it reads and edits nothing without."""
    import torch

    def layers(hidden, residual):
        torch.ops.halludecode.entering(hidden, residual, 0)
        torch.ops.halludecode.mlp(hidden, residual, 0)
        torch.ops.halludecode.leaving(hidden, residual, 0)
        return hidden + residual

    traced: list[Any] = []

    def backend(graph, inputs):
        traced.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)  # see conftest.py
    compiled = torch.compile(layers, backend=backend, fullgraph=True)
    x, y = torch.ones(3, 2), torch.ones(3, 2)
    with torch._dynamo.config.patch(disable=False):
        assert compiled(x.clone(), y.clone()).eq(2).all()
        met = served_by(compiled, x, y)
        assert compiled(x.clone(), y.clone()).eq(2).all()
    assert met == ["entering", "mlp", "leaving"] and len(traced) == 1


def served_by(compiled, x, y) -> list[str]:
    """What a strategy in the second of three rows was asked by a compiled model."""
    import torch

    met: list[str] = []
    mask = torch.tensor([False, True, False])[:, None]  # the second row is edited

    class Forward:
        def layer_input(self, layer, hidden, residual):
            met.append("entering")

        def mlp_output(self, layer, output, given):
            met.append("mlp")
            return output + mask

        def layer_output(self, layer, hidden, residual):
            met.append("leaving")
            return (hidden + residual) * (1 + mask.float()), torch.zeros_like(residual)

    token = hooks.current_runner.set(SimpleNamespace(hd_forward=Forward))
    try:
        assert compiled(x.clone(), y.clone()).tolist() == [[2, 2], [6, 6], [2, 2]]
    finally:
        hooks.current_runner.reset(token)
    return met


def as_on_a_gpu(monkeypatch, engine) -> Counter[str]:
    """Graphs of every size for an engine of this process, and by which its steps are run."""
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import get_forward_context

    runner = worker_of(engine).model_runner
    config, dispatcher = runner.compilation_config, runner.cudagraph_dispatcher
    most = engine.loaded.vllm_config.scheduler_config.max_num_batched_tokens
    monkeypatch.setattr(config, "cudagraph_capture_sizes", list(range(1, most + 1)))
    monkeypatch.setattr(config, "max_cudagraph_capture_size", most)
    both = CUDAGraphMode.FULL_AND_PIECEWISE
    for name, value in (("cudagraph_mode", dispatcher.cudagraph_mode), ("keys_initialized", True)):
        monkeypatch.setattr(dispatcher, name, value)  # to be put back
    keys = {CUDAGraphMode.PIECEWISE: set[Any](), CUDAGraphMode.FULL: set[Any]()}
    monkeypatch.setattr(dispatcher, "cudagraph_keys", keys)
    dispatcher.initialize_cudagraph_keys(both)
    run, modes = runner._model_forward, Counter[str]()

    def replayed(*args: Any, **kwargs: Any) -> Any:
        mode = get_forward_context().cudagraph_runtime_mode.name
        modes[mode] += 1
        with pytest.MonkeyPatch.context() as graph:
            if mode == "FULL":
                graph.setattr(type(runner), "hd_forward", lambda self: None)
            for name in LAYER_HOOKS if mode == "PIECEWISE" else ():
                graph.setattr(WorkerForward, name, lambda *_: None)
            return run(*args, **kwargs)

    monkeypatch.setattr(runner, "_model_forward", replayed)
    return modes


needs_v1 = pytest.mark.skipif(V2, reason="model runner V2 makes its graphs on a GPU alone")


@needs_v1
def test_steps_with_edits_are_run_by_graphs_that_call_them(vllm_engine, monkeypatch):
    engine = vllm_engine("testbed")
    wanted = {spec: engine.generate(requests(2), spec, SHORT) for spec in GRAPHS}
    modes = as_on_a_gpu(monkeypatch, engine)
    plain = [output.token_ids for output in wanted["greedy"]]
    for spec, mode in GRAPHS.items():
        modes.clear()
        made = engine.generate(requests(2), spec, SHORT)
        assert [o.token_ids for o in made] == [o.token_ids for o in wanted[spec]], spec
        waited = not engine.rows_begin(engine.plan(spec))  # a step in which rows join reads prompts
        joined = sum(len(output.rows) > 1 for output in made) if waited else 0
        assert modes[mode] >= SHORT.max_new_tokens - 1 - joined, (spec, modes)
        assert not modes.keys() - {"FULL", "PIECEWISE", "NONE"}
        most = {"FULL": 3, "PIECEWISE": 2, "NONE": 1}[mode]
        assert len(modes) <= most and (mode == "FULL" or "FULL" not in modes), (spec, modes)
    changed = [[o.token_ids for o in wanted[s]] != plain for s in GRAPHS if GRAPHS[s] != "FULL"]
    assert sum(changed) > 3


@needs_v1
@pytest.mark.parametrize(("spec", "why"), [("pai", "attend"), ("memvr", "steer")])
def test_a_graph_that_leaves_out_an_edit_ends_the_answer(vllm_engine, monkeypatch, spec, why):
    """Were they chosen as vLLM does: also where the first token's forward had called them."""
    engine = vllm_engine("testbed")
    as_on_a_gpu(monkeypatch, engine)
    monkeypatch.setattr(type(worker_of(engine).model_runner), "hd_left_out", lambda self: set())
    with pytest.raises(hd.HookNeverFired, match=rf"{spec}\.{why} was not called in layer"):
        engine.generate(requests(1), spec, SHORT)


@needs_v1
@pytest.mark.full
def test_every_strategy_is_run_by_graphs_that_call_it(vllm_engine, testbed, supplied, monkeypatch):
    engine, _ = supplied(vllm_engine("testbed"), testbed)
    known = [ACTIVE.get(case.name, case.spec) for case in specs.cases()]
    asked = [spec for spec in known if served(engine, spec)]
    assert len(asked) > 30
    wanted = {spec: engine.generate(requests(2), spec, SHORT) for spec in asked}
    modes = as_on_a_gpu(monkeypatch, engine)
    for spec in asked:
        made = engine.generate(requests(2), spec, SHORT)
        assert [o.token_ids for o in made] == [o.token_ids for o in wanted[spec]], spec
    assert modes.keys() == {"FULL", "PIECEWISE", "NONE"}


@dataclass(frozen=True)
class Graph:
    """As vLLM's `BatchExecutionDescriptor`."""

    cg_mode: Any
    num_tokens: int
    num_reqs: int | None
    uniform_token_count: int | None = None
    max_query_len: int | None = None


class Manager:
    """As vLLM's `CudaGraphManager`: whole graphs for uniform batches, pieces up to 64 tokens."""

    def __init__(self, mode: Any) -> None:
        self.cudagraph_mode = mode

    def dispatch(self, num_reqs, num_tokens, uniform_token_count, loras, max_query_len=None):
        from vllm.config import CUDAGraphMode as Mode

        if num_tokens <= 64 and self.cudagraph_mode != Mode.NONE:
            if uniform_token_count == 1 or max_query_len == 1:
                return Graph(Mode.FULL, 64, 64, uniform_token_count, max_query_len)
            return Graph(Mode.PIECEWISE, 64, None)
        return Graph(Mode.NONE, num_tokens, num_reqs)


@pytest.mark.parametrize(
    ("out", "replicas", "mode", "tokens", "reqs"),
    [
        (graphs.NONE, 1, "FULL", 64, 64),
        (graphs.WHOLE, 1, "PIECEWISE", 64, None),
        (graphs.ALL, 1, "NONE", 5, 5),
        (graphs.WHOLE, 2, "NONE", 5, 5),
        (graphs.NONE, 2, "FULL", 64, 64),
    ],
)
def test_the_second_runner_is_held_back_likewise(out, replicas, mode, tokens, reqs):
    from vllm.config import CUDAGraphMode

    asked = []
    runner = SimpleNamespace(cudagraph_manager=None, dp_size=replicas)
    runner.hd_left_out = lambda: asked.append(1) or out
    graphs.hold_back_v2(runner)  # a profiling run comes before there are any
    runner.cudagraph_manager = manager = Manager(CUDAGraphMode.FULL_AND_PIECEWISE)
    for _ in range(2):
        graphs.hold_back_v2(runner)
    for uniform, most in ((1, None), (None, 1)):
        found = manager.dispatch(5, 5, uniform, 0, max_query_len=most)
        assert (found.cg_mode.name, found.num_tokens, found.num_reqs) == (mode, tokens, reqs)
    assert manager.dispatch(5, 500, None, 0).cg_mode.name == "NONE"
    assert len(asked) == 3, "wrapped once"
    manager.cudagraph_mode = CUDAGraphMode.NONE
    assert manager.dispatch(5, 5, 1, 0).cg_mode.name == "NONE" and len(asked) == 3
