"""On a CPU vLLM runs in the process that loads it, and leaves that process as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from halludecode.engines.vllm.compat.one_process import SWITCH, is_enough
from tests.support import LONG
from tests.support.processes import REPO, environment

# No `if __name__ == "__main__":`, as no other process imports it.
SCRIPT = """
import json, os, random
import numpy, psutil, torch
import halludecode as hd

def state():
    drawn = numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    return [random.getstate()[1], *drawn]

before = state()
engine = hd.load("testbed", engine="vllm", block_size=32, max_num_seqs=8)
same = json.dumps(before) == json.dumps(state())
answer = engine.generate([hd.Request("Describe the image.", ["testbed:3"])], "vcd")[0]
print(json.dumps({
    "children": len(psutil.Process().children(recursive=True)),
    "random": same,
    "threads": torch.set_num_threads is torch._C.set_num_threads,
    "switch": "VLLM_ENABLE_V1_MULTIPROCESSING" in os.environ,
    "cache": engine.loaded.vllm_config.cache_config.kv_cache_memory_bytes,
    "text": answer.text,
}))
"""

# Loaded within a function, as the first import of vLLM keeps what was running then.
SEVERAL = """
import gc, json, weakref
import halludecode as hd

def load():
    return hd.load("testbed", engine="vllm", block_size=32, max_num_seqs=8)

def text(engine):
    return engine.generate([hd.Request("Describe the image.", ["testbed:3"])], "vcd")[0].text

def told():
    gc.collect()
    gc.disable()
    engine = load()
    said, gone = [text(engine)], [weakref.ref(engine), weakref.ref(engine.loaded.engine)]
    engine = load()
    said.append(text(engine))
    left = [each() is None for each in gone]
    other = load()
    engine.close()
    try:
        text(engine)
    except hd.HalluDecodeError as error:
        closed = str(error)
    said.append(text(other))
    return {"texts": said, "gone": left, "closed": closed}, weakref.ref(other)

told, other = told()
told["gone"].append(other() is None)
told["texts"].append(text(load()))
print(json.dumps(told))
"""


def ran(text, tmp_path):
    """What a script prints in its last line."""
    env = environment(REPO)
    env.pop(SWITCH, None)  # as these tests themselves set it
    script = tmp_path / "script.py"
    script.write_text(text)
    done = subprocess.run(
        [sys.executable, str(script)],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_loading_starts_no_process_and_changes_nothing(tmp_path, testbed):
    told = ran(SCRIPT, tmp_path)
    assert told.pop("cache") == 32 * 1024 * testbed.model_info.num_layers * 2 * 4 * (
        testbed.model_info.num_kv_heads * testbed.model_info.head_dim
    )
    import halludecode as hd

    request = hd.Request("Describe the image.", ["testbed:3"])
    text = testbed.generate([request], "vcd")[0].text
    assert told == {"children": 0, "random": True, "threads": True, "switch": False, "text": text}


def test_an_engine_ends_when_dropped_or_closed_and_the_others_go_on(tmp_path):
    told = ran(SEVERAL, tmp_path)
    assert told["gone"] == [True, True, True]
    assert told["closed"] == "This engine of testbed was closed; load the model anew."
    assert len(set(told["texts"])) == 1 and len(told["texts"]) == 4


@pytest.mark.parametrize(
    ("options", "switch", "enough"),
    [
        ({}, None, True),
        ({"tensor_parallel_size": 1}, None, True),
        ({"tensor_parallel_size": 2}, None, False),
        ({"data_parallel_size": 2}, None, False),
        ({"distributed_executor_backend": "ray"}, None, False),
        ({}, "1", False),
        ({}, "0", False),
    ],
)
def test_one_worker_that_nobody_placed_is_enough(options, switch, enough, monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)
    if switch is not None:
        monkeypatch.setitem(os.environ, SWITCH, switch)
    assert is_enough(options) is enough
