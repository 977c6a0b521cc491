"""A compiled model is edited like an eager one, in a process of its own; what is not is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import halludecode as hd
from tests.support import LONG
from tests.support.vllm import ACTIVE, python_path, requests

# One for each way to act inside the model, and one that acts on the logits alone.
SPECS = ("greedy", "vcd", "pai", ACTIVE["var"], "vista", "dola", "vhr", "sid", "agla", "damro")
SCRIPT = """
import json, sys
import halludecode as hd
from halludecode.engines.vllm.worker import hooks
from tests.support.vllm import requests

engine = hd.load("testbed", engine="vllm", enforce_eager=False, block_size=32,
                 kv_cache_memory_bytes=64 << 20, max_num_seqs=8, max_num_batched_tokens=1024)
config = engine.loaded.vllm_config.compilation_config
made = {"how": [config.mode.name, config.backend]}
stock, ops = hooks.WorkerForward.layer_input, []

def layer_input(self, layer, hidden, residual):
    ops.append(sys._getframe(1).f_code.co_name)
    return stock(self, layer, hidden, residual)

hooks.WorkerForward.layer_input = layer_input
sampling = hd.Sampling(max_new_tokens=6)
for spec in sys.argv[1:]:
    made[spec] = [o.token_ids for o in engine.generate(requests(2), spec, sampling)]
made["called by"] = sorted(set(ops))
print(json.dumps(made))
"""


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.full)])
def test_edits_act_in_a_compiled_model(testbed, tmp_path, backend):
    env = {
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_CI_ENV": "1" if backend == "eager" else "0",
        "PYTHONPATH": python_path(),
    }
    env.pop("TORCHDYNAMO_DISABLE", None)
    script = tmp_path / "ask.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), *SPECS],
        env=env,
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made = json.loads(done.stdout.strip().splitlines()[-1])
    assert made.pop("how") == ["DYNAMO_TRACE_ONCE", backend]
    assert made.pop("called by") == ["_entering"], "the operation in the graph, not a Python hook"
    sampling = hd.Sampling(max_new_tokens=6)
    plain = [list(o.token_ids) for o in testbed.generate(requests(2), "greedy", sampling)]
    for spec, ids in made.items():
        wanted = [list(o.token_ids) for o in testbed.generate(requests(2), spec, sampling)]
        assert ids == wanted, spec
    assert sum(ids != plain for ids in made.values()) > 3, "most of them change these answers"
