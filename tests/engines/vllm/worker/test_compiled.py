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
from halludecode.engines.vllm.worker import hooks
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
# The same engine as a release without our operations would have compiled and kept its model.
OTHER = (
    BEGIN
    + """
import os
from pathlib import Path
from halludecode.engines.vllm.worker import graphs

graphs.digest = lambda: "another release"
for place in ("_on_input", "_on_output", "_on_mlp"):
    setattr(hooks, place, lambda *of: lambda *args: None)
engine = hd.load("testbed", engine="vllm", artifacts=sys.argv[1], **OPTIONS)
engine.generate(requests(2), "greedy", sampling)
kept = Path(os.environ["VLLM_CACHE_ROOT"]).glob("torch_compile_cache/*/*")
print(json.dumps(sorted(path.name for path in kept)))
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
    compare(made, ours, 15)


@pytest.mark.full
def test_a_model_compiled_without_our_operations_is_not_taken(testbed, tmp_path):
    kept = ran(tmp_path, OTHER, str(tmp_path))
    assert kept, "nothing was kept that could be taken"
    made = ran(tmp_path, ASK, str(tmp_path), "greedy", "pai", "vista")
    assert made.pop("how") == ["DYNAMO_TRACE_ONCE", "inductor"]
    assert made.pop("called by") == ["_entering"]
    compare(made, testbed, 0)
    cached = (tmp_path / "compiled" / "torch_compile_cache").glob("*/*")
    assert {path.name for path in cached} > set(kept), "ours is another, beside theirs"
