"""vLLM's Ray executor: our workers in Ray's actors, half of the heads in each, the same tokens.

vLLM runs it on accelerators alone. Here Ray is told of two that are not there, and the workers are
the CPU's (`tests/support/ray_on_cpu`), so what is tried is how workers start, are called and talk.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from halludecode.core.errors import InvalidRequest
from halludecode.engines.vllm.frontend.loading import check_executor
from tests.engines.vllm.test_processes import SPECS, ask
from tests.serve.conftest import running
from tests.support import LONG, families
from tests.support.vllm import python_path

STAND_IN = Path(__file__).parents[2] / "support" / "ray_on_cpu"
installed = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='needs Ray: pip install "halludecode[ray]"'
)


def test_a_cpu_has_no_ray_executor():
    with pytest.raises(InvalidRequest, match="no Ray executor for cpu; leave distributed_ex"):
        check_executor("ray")
    check_executor("mp")


@pytest.fixture(scope="module")
def cluster():
    """The environment of processes that use a cluster of this machine."""
    env = {
        "PYTHONPATH": os.pathsep.join([str(STAND_IN), python_path()]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",
        # However busy the machine is.
        "RAY_worker_register_timeout_seconds": str(LONG),
        "RAY_health_check_timeout_ms": str(LONG * 1000),
        "RAY_agent_register_timeout_ms": str(LONG * 1000),
        "RAY_gcs_server_port_wait_time_s": str(LONG),
    }
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # names of its sockets must be short
    end = time.monotonic() + LONG
    while True:  # Ray gives its own node 30 seconds
        head, address = _head(env, folder)
        if address or time.monotonic() > end:
            break
    assert address, (folder / "head.log").read_text()[-3000:]
    try:
        yield {**env, "RAY_ADDRESS": address, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    finally:
        head.terminate()
        head.wait(LONG)
        shutil.rmtree(folder, ignore_errors=True)


def _head(env: dict[str, str], folder: Path) -> tuple[subprocess.Popen, str]:
    """A process that holds a cluster, and where that is; "" if it did not come up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["start", "--head", "--block", f"--port={port}", f"--temp-dir={folder}"]
    words += ["--num-gpus=2", "--num-cpus=2", "--include-dashboard=false"]
    words += ["--object-store-memory=100000000"]
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(
            [str(Path(sys.executable).with_name("ray")), *words],
            env={**os.environ, **env},
            stdout=log,
            stderr=log,
        )
    while head.poll() is None:
        if b"runtime started" in (folder / "head.log").read_bytes():
            return head, f"127.0.0.1:{port}"
        time.sleep(0.2)
    return head, ""


@installed
@pytest.mark.full
def test_answers_agree_with_half_of_the_heads_in_each_actor(
    family_engine, tmp_path, tmp_path_factory, cluster
):
    model = str(families.family_path("llava", tmp_path_factory))
    ask(family_engine("llava"), model, tmp_path, SPECS, 2, EXECUTOR="ray", **cluster)


@installed
@pytest.mark.full
def test_eval_and_serve_run_over_ray(tmp_path, cluster):
    """Both give what engine hf does, sample by sample."""
    served = ["--distributed-executor-backend=ray"]
    served += ["--kv-cache-memory-bytes=64M", "--block-size=32", "--max-model-len=512"]
    args = ["--engine-arg=distributed_executor_backend=ray", "--engine-arg=max_model_len=512"]
    args += ["--engine-arg=block_size=32"]
    args += ["--engine-arg=kv_cache_memory_bytes=67108864"]
    made = [_answers(cluster, tmp_path / "hf", "--model=testbed")]
    made.append(_answers(cluster, tmp_path / "vllm", "--model=testbed", "--engine=vllm", *args))
    with running(served, tmp_path / "log", **cluster) as (url, _):
        where = [f"--server={url}", "--model=testbed"]
        made.append(_answers(cluster, tmp_path / "server", *where))
    assert len(made[0]) > 4
    assert made[0] == made[1] == made[2]


def _answers(env: dict[str, str], output: Path, *words: str) -> list[str]:
    """Answers of an `eval` of two pictures' questions, in their order."""
    command = [sys.executable, "-m", "halludecode", "eval", "--tasks=pope", "--data=testbed-iid"]
    command += [f"--output={output}", "--strategy=vcd", "--limit=2", *words]
    env = {**os.environ, **env}
    env.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)  # which is these tests' own choice
    subprocess.run(command, env=env, timeout=LONG, check=True)
    lines = [
        json.loads(line)
        for file in output.rglob("samples.jsonl")
        for line in file.read_text("utf-8").splitlines()
    ]
    return [line["answer"] for line in sorted(lines, key=lambda line: str(line["id"]))]
