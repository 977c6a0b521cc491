"""A compiled model is edited like an eager one; each is made in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import halludecode as hd
from tests.support import LONG, specs
from tests.support.vllm import ACTIVE, python_path, requests, served

# One for each way to act inside the model, and one that acts on the logits alone.
SPECS = ("greedy", "vcd", "pai", ACTIVE["var"], "vista", "dola", "vhr", "sid", "agla", "damro")
SHORT = hd.Sampling(max_new_tokens=6)
BEGIN = """
import json, sys
import halludecode as hd
from halludecode.engines.vllm.worker import graphs, hooks
from tests.support.vllm import requests

OPTIONS = {"enforce_eager": False, "block_size": 32, "kv_cache_memory_bytes": 64 << 20,
           "max_num_seqs": 8, "max_num_batched_tokens": 1024}
sampling = hd.Sampling(max_new_tokens=6)
"""
ASK = (
    BEGIN
    + """
artifacts, *asked = sys.argv[1:]
engine = hd.load("testbed", engine="vllm", artifacts=artifacts, **OPTIONS)
config = engine.loaded.vllm_config.compilation_config
made = {"how": [config.mode.name, config.backend]}
stock, ops = hooks.WorkerForward.layer_input, []

def layer_input(self, layer, hidden, residual):
    ops.append(sys._getframe(1).f_code.co_name)
    return stock(self, layer, hidden, residual)

hooks.WorkerForward.layer_input = layer_input
for spec in asked:
    made[spec] = [o.token_ids for o in engine.generate(requests(2), spec, sampling)]
made["called by"] = sorted(set(ops))
print(json.dumps(made))
"""
)
# VLLM's own worker, ours without its salt, ours, and ours once more, with one compile cache.
CACHE = (
    BEGIN
    + """
from vllm.compilation.counter import compilation_counter as counter
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.worker.cpu_worker import CPUWorker
from halludecode.engines.vllm.compat import checkpoints
from halludecode.models.sources import model_source

class Stock(CPUWorker):
    def load_model(self, **kwargs):
        checkpoints.accept_new_names(self.vllm_config.model_config)
        super().load_model(**kwargs)

def start(how):
    if how != "stock":
        return hd.load("testbed", engine="vllm", **OPTIONS)
    alike = {"dtype": "float32", "mm_processor_cache_gb": 0, "mm_device_do_normalize": False}
    given = {"worker_cls": Stock, "max_logprobs": -1, "disable_log_stats": True}
    args = EngineArgs(model=model_source("testbed"), **OPTIONS, **alike, **given)
    return LLMEngine.from_engine_args(args)

salt, made = graphs.salt, []
for how in ("stock", "unsalted", "ours", "ours"):
    graphs.salt = salt if how == "ours" else lambda config: None
    before = counter.num_aot_compiles, counter.num_aot_artifacts_loaded
    engine = start(how)
    found = [counter.num_aot_compiles - before[0], counter.num_aot_artifacts_loaded - before[1]]
    if how != "stock":
        try:
            answers = engine.generate(requests(2), "memvr(ratio=1.0)", sampling)
            found += [answer.token_ids for answer in answers]
        except hd.HalluDecodeError as error:
            found.append(f"{type(error).__name__}: {error}")
    made.append(found)
print(json.dumps(made))
"""
)


def ran(tmp_path, script: str, *args: str, **env: str):
    """What a script prints last; its compile cache is its own."""
    given = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "PYTHONPATH": python_path()}
    given |= {"VLLM_CACHE_ROOT": str(tmp_path / "compiled"), **env}
    given.pop("TORCHDYNAMO_DISABLE", None)
    file = tmp_path / "ask.py"
    file.write_text(script)
    command = [sys.executable, str(file), *args]
    done = subprocess.run(
        command, env=given, capture_output=True, text=True, timeout=LONG, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(made, engine, plain: int) -> None:
    """Tokens of specs against another engine's; most of them must differ from greedy's."""
    told = {s: [list(o.token_ids) for o in engine.generate(requests(2), s, SHORT)] for s in made}
    for spec, ids in made.items():
        assert ids == told[spec], spec
    assert sum(ids != told["greedy"] for ids in made.values()) > plain


def test_edits_act_in_a_compiled_model(testbed, tmp_path):
    made = ran(tmp_path, ASK, str(tmp_path), *SPECS, VLLM_CPU_CI_ENV="1")
    assert made.pop("how") == ["DYNAMO_TRACE_ONCE", "eager"]
    assert made.pop("called by") == ["_entering"], "the operation in the graph, not a Python hook"
    compare(made, testbed, 3)


@pytest.mark.full
def test_every_strategy_acts_in_a_model_compiled_by_inductor(
    vllm_engine, testbed, supplied, tmp_path
):
    ours, _ = supplied(vllm_engine("testbed"), testbed)
    asked = [ACTIVE.get(case.name, case.spec) for case in specs.cases()]
    asked = ["greedy", *(spec for spec in asked if served(ours, spec))]
    assert len(asked) > 30
    made = ran(tmp_path, ASK, str(tmp_path), *asked)
    assert made.pop("how") == ["DYNAMO_TRACE_ONCE", "inductor"]
    assert made.pop("called by") == ["_entering"]
    compare(made, ours, 20)


@pytest.mark.full
def test_a_model_that_vllm_compiled_is_not_taken_for_ours(testbed, tmp_path):
    stock, unsalted, ours, again = ran(tmp_path, CACHE)
    assert stock == [1, 0]
    assert unsalted[:2] == [0, 1], "vLLM's cache knows no workers, so it would be"
    assert "memvr.steer was not called in layer" in unsalted[2]
    edited = testbed.generate(requests(2), ACTIVE["memvr"], SHORT)
    wanted = [list(output.token_ids) for output in edited]
    assert ours == [1, 0, *wanted]
    assert again == [0, 1, *wanted], "one of our own is found again, and has our operations"
