"""vLLM with its core in a process of its own: what crosses processes is plain; answers agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import halludecode as hd
from tests import families

SPECS = ("vcd", "pai", "damro", "vista", "vdgd(tokens=4)", "var")
SCRIPT = """
import json, sys
import halludecode as hd
from tests import families

def main():
    engine = hd.load("testbed", engine="vllm", artifacts=sys.argv[1], block_size=32,
                     kv_cache_memory_bytes=64 << 20, max_num_seqs=8, max_num_batched_tokens=512)
    asked = hd.Request("Describe the image.", families.pictures()[:1])
    sampling = hd.Sampling(max_new_tokens=5)
    made = {s: engine.generate(asked, s, sampling)[0].token_ids for s in sys.argv[2:]}
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


@pytest.mark.parametrize("processes", ["1"])
def test_answers_agree_with_the_core_in_another_process(testbed, tmp_path, processes):
    script = tmp_path / "ask.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": processes, "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), *SPECS],
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made = json.loads(done.stdout.strip().splitlines()[-1])
    assert "'search'" in made.pop("refused")
    asked = hd.Request("Describe the image.", families.pictures()[:1])
    for spec, ids in made.items():
        want = testbed.generate(asked, spec, hd.Sampling(max_new_tokens=5))[0]
        assert tuple(ids) == want.token_ids, spec
