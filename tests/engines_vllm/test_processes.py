"""vLLM with its core in a process of its own: what crosses processes is plain; answers agree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import halludecode as hd
from halludecode.testbed import model_path
from tests import families

SPECS = ("vcd", "pai", "damro", "vista", "vdgd(tokens=4)", "var")
# What two tensor-parallel ranks serve, each with half of the heads.
PARALLEL = ("vcd", "pai", "vista", "dola", "agla", "var", "vdgd(tokens=4)")
SCRIPT = """
import json, os, sys
import halludecode as hd
from tests import families

def main():
    engine = hd.load(sys.argv[2], engine="vllm", artifacts=sys.argv[1], block_size=32,
                     kv_cache_memory_bytes=64 << 20, max_num_seqs=8, max_num_batched_tokens=512,
                     tensor_parallel_size=int(os.environ["RANKS"]))
    asked = hd.Request("Describe the image.", families.pictures()[:1])
    sampling = hd.Sampling(max_new_tokens=5)
    made = {s: engine.generate(asked, s, sampling)[0].token_ids for s in sys.argv[3:]}
    engine.plan("vcd")
    try:
        engine.generate(asked, "opera")
    except hd.UnsupportedStrategy as error:
        made["refused"] = str(error)
    engine.close()
    print(json.dumps(made))

if __name__ == "__main__":
    main()
"""


FAILING = """
import sys

import halludecode as hd

if __name__ == "__main__":
    try:
        hd.load(sys.argv[1], engine="vllm", block_size=32, kv_cache_memory_bytes=64 << 20)
    except hd.InvalidModel as error:
        print(error)
"""


def run(script: Path, text: str, *words: str, ranks: int = 1) -> list[str]:
    script.write_text(text)
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PYTHONPATH": root}
    env |= {"RANKS": str(ranks), "VLLM_LOGGING_LEVEL": "ERROR"}
    if ranks > 1:
        env["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"
    done = subprocess.run(
        [sys.executable, str(script), *words],
        env=env,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()


def ask(hf, model: str, folder: Path, specs: tuple[str, ...], ranks: int) -> None:
    words = (str(folder), model, *specs)
    made = json.loads(run(folder / "ask.py", SCRIPT, *words, ranks=ranks)[-1])
    assert "'search'" in made.pop("refused")
    asked = hd.Request("Describe the image.", families.pictures()[:1])
    for spec, ids in made.items():
        want = hf.generate(asked, spec, hd.Sampling(max_new_tokens=5))[0]
        assert tuple(ids) == want.token_ids, spec


def test_answers_agree_with_the_core_in_another_process(testbed, tmp_path):
    ask(testbed, "testbed", tmp_path, SPECS, 1)


@pytest.mark.full
def test_answers_agree_with_half_of_the_heads_in_each_process(
    family_engine, tmp_path, tmp_path_factory
):
    model = str(families.family_path("llava", tmp_path_factory))
    ask(family_engine("llava"), model, tmp_path, PARALLEL, 2)


def test_a_start_that_fails_in_another_process_is_told_in_its_words(tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(model_path(), broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    told = run(tmp_path / "fail.py", FAILING, str(broken))
    (said,) = [line for line in told if "cannot start" in line]
    assert "incomplete metadata" in said, "the worker's words, not the core's"
