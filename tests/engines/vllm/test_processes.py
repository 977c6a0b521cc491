"""vLLM with its core in a process of its own: what crosses processes is plain; answers agree."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import halludecode as hd
from halludecode.core.registry import STRATEGIES
from halludecode.testbed import model_path
from tests.support import LONG, families, specs
from tests.support.processes import REPO, environment

SPECS = ("vcd", "pai", "damro", "vista", "vdgd(tokens=4)", "var")
REST = ("qwen2_5_vl", "internvl", "qwen3_vl", "idefics3")
SCRIPT = """
import json, os, sys
import halludecode as hd
from tests.support import families

def main():
    engine = hd.load(sys.argv[2], engine="vllm", artifacts=sys.argv[1], block_size=32,
                     kv_cache_memory_bytes=64 << 20, max_num_seqs=8, max_num_batched_tokens=512,
                     tensor_parallel_size=int(os.environ["RANKS"]),
                     distributed_executor_backend=os.environ.get("EXECUTOR"))
    asked = hd.Request("Describe the image.", families.pictures()[:1])
    sampling = hd.Sampling(max_new_tokens=5)
    made = {s: engine.generate(asked, s, sampling)[0].token_ids for s in sys.argv[3:]}
    told = engine.generate(asked, "vcd", sampling, explain=True)[0].explanation
    made["looked"] = [token.mass for token in told.tokens]
    try:
        engine.generate(asked, "opera")
    except hd.UnsupportedStrategy as error:
        made["refused"] = str(error)
    engine.close()
    try:
        engine.generate(asked)
    except hd.InvalidModel as error:
        made["closed"] = str(error)
    print(json.dumps(made))

if __name__ == "__main__":
    main()
"""


REPLICAS = """
import json, sys, time
import halludecode as hd
from tests.support import families

def main():
    engine = hd.load(sys.argv[2], engine="vllm", artifacts=sys.argv[1], block_size=32,
                     kv_cache_memory_bytes=8 << 20, max_model_len=512, max_num_seqs=8,
                     max_num_batched_tokens=512, data_parallel_size=2)
    asked = [hd.Request("Describe the image.", [p]) for p in families.pictures()]
    sampling = hd.Sampling(max_new_tokens=5, temperature=1.0, seed=3, n=2)
    made = {s: [[c.token_ids for c in o.choices] for o in engine.generate(asked, s, sampling)]
            for s in sys.argv[3:]}
    *_, last = engine.stream(asked[0], "vcd", hd.Sampling(max_new_tokens=5))
    try:
        engine.generate(asked[0], "vcd", hd.Sampling(max_new_tokens=400))
    except hd.InvalidRequest as error:
        refused = str(error)
    loads = engine.loaded.engine.llm.engine_core.engine_inflight
    engine.generate(asked[:2])  # what ended is told with the next step
    busy = sorted(loads.values())
    engine.close()
    print(json.dumps({"made": made, "streamed": last.output.token_ids, "refused": refused,
                      "busy": busy}))

if __name__ == "__main__":
    main()
"""

FAILING = """
import sys

import halludecode as hd

if __name__ == "__main__":
    options = {"kv_cache_memory_bytes": int(sys.argv[2]) << 10}
    try:
        hd.load(sys.argv[1], engine="vllm", block_size=32, max_model_len=512, **options)
    except hd.InvalidModel as error:
        print(error)
"""


def run(script: Path, text: str, *words: str, ranks: int = 1, **more: str) -> list[str]:
    script.write_text(text)
    env = environment(REPO, VLLM_ENABLE_V1_MULTIPROCESSING="1", RANKS=str(ranks))
    env |= {"VLLM_LOGGING_LEVEL": "ERROR", **more}
    env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # several processes, on however few cores
    done = subprocess.run(
        [sys.executable, str(script), *words],
        env=env,
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()


def ask(hf, model: str, folder: Path, specs: tuple[str, ...], ranks: int, **more: str) -> None:
    words = (str(folder), model, *specs)
    made = json.loads(run(folder / "ask.py", SCRIPT, *words, ranks=ranks, **more)[-1])
    assert "'beam search'" in made.pop("refused")
    assert made.pop("closed").endswith(" was closed; load the model anew.")
    asked = hd.Request("Describe the image.", families.pictures()[:1])
    told = hf.generate(asked, "vcd", hd.Sampling(max_new_tokens=5), explain=True)[0].explanation
    assert made.pop("looked") == pytest.approx([token.mass for token in told.tokens], abs=1e-4)
    for spec, ids in made.items():
        want = hf.generate(asked, spec, hd.Sampling(max_new_tokens=5))[0]
        assert tuple(ids) == want.token_ids, spec


@pytest.mark.full  # replicas below have such cores too, and so has half of the heads
def test_answers_agree_with_the_core_in_another_process(testbed, tmp_path):
    ask(testbed, "testbed", tmp_path, SPECS, 1)


@pytest.mark.parametrize(
    "family", ["llava", *(pytest.param(f, marks=pytest.mark.full) for f in REST)]
)
def test_answers_agree_with_half_of_the_heads_in_each_process(
    family_engine, tmp_path, tmp_path_factory, family
):
    model = str(families.family_path(family, tmp_path_factory))
    hf = specs.supplied(family_engine(family), tmp_path)
    names = (*STRATEGIES.names(), *specs.COMPOSED)
    served = [n for n in names if n not in ("greedy", "opera") and not specs.refused(family, n)]
    ask(hf, model, tmp_path, tuple(map(specs.active, served)), 2)


def test_a_start_that_fails_in_another_process_is_told_in_its_words(tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(model_path(), broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    told = run(tmp_path / "fail.py", FAILING, str(broken), "65536")
    (said,) = [line for line in told if "cannot start" in line]
    assert "incomplete metadata" in said, "the worker's words, not the core's"


def test_a_cache_too_small_for_one_answer_is_told_with_numbers(tmp_path):
    told = run(tmp_path / "fail.py", FAILING, "testbed", "1024")
    (said,) = [line for line in told if "cannot start" in line]
    assert "KV cache" in said and "512" in said


def test_requests_go_to_replicas_whole(testbed, tmp_path):
    specs = (
        "vcd",
        "damro",
        "var",
        "vdgd(tokens=4)",
    )  # plain rows, passes before, edits, written ones
    words = (str(tmp_path), "testbed", *specs)
    told = json.loads(run(tmp_path / "ask.py", REPLICAS, *words)[-1])
    asked = [hd.Request("Describe the image.", [p]) for p in families.pictures()]
    sampling = hd.Sampling(max_new_tokens=5, temperature=1.0, seed=3, n=2)
    for spec in specs:
        want = [
            [list(choice.token_ids) for choice in output.choices]
            for output in testbed.generate(asked, spec, sampling)
        ]
        assert told["made"][spec] == want, spec
    streamed = testbed.generate(asked[0], "vcd", hd.Sampling(max_new_tokens=5))[0]
    assert tuple(told["streamed"]) == streamed.token_ids
    assert "KV cache" in told["refused"], "two replicas could hold it, one cannot"
    assert told["busy"] == [0, 0], "both had requests, and none is left"
