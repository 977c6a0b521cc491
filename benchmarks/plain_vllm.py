"""What our vLLM engine costs a request that has no strategy: its rate beside bare vLLM's.

    .venv/bin/python benchmarks/plain_vllm.py [--requests 40] [--rounds 25] [--sizes 1]

Both are the same wheel in one process and take the same prompts and new pictures in turn; time is
that process's processor time, which other programs touch less than the clock. "ours" is plain
greedy in our engine as it comes up, "after strategies" the same once each way to act has run there,
so that hooks are in place and nothing in the batch wants them. A ratio is of rates within a round;
what is printed is the mean over rounds with its 95 % interval. ``--sizes 40`` gives each picture
of a round a size that no other has.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # so that one process's time is all
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import numpy as np
from PIL import Image

import halludecode as hd
from halludecode.testbed.assets import model_path

OPTIONS = {
    "block_size": 32,
    "kv_cache_memory_bytes": 256 << 20,
    "max_model_len": 1024,
    "max_num_seqs": 48,
    "dtype": "float32",
    "enforce_eager": True,
}
WAYS = ("vcd", "pai", "var", "dola", "vista", "vhr")  # rows, edits, early layers, steering, heads


def pictures(count: int, seed: int, sizes: int = 1) -> list[Image.Image]:
    """Pictures that no cache knows; of more than one size: sizes that no cache knows."""
    noise, first = np.random.default_rng(seed), seed * sizes if sizes > 1 else 0
    wide = [112 + (first + i % sizes) % 1024 for i in range(count)]
    return [Image.fromarray(noise.integers(0, 256, (112, w, 3), np.uint8)) for w in wide]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("requests", 40), ("tokens", 32), ("rounds", 25), ("sizes", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    import vllm

    engine: Any = hd.load("testbed", engine="vllm", **OPTIONS)
    bare = vllm.LLM(str(model_path("testbed")), **OPTIONS)
    question = "Please describe this image in detail."
    content = [{"type": "image"}, {"type": "text", "text": question}]
    turns = [{"role": "user", "content": content}]
    text = engine.processor.apply_chat_template(turns, add_generation_prompt=True)
    sampling = hd.Sampling(max_new_tokens=given.tokens, min_new_tokens=given.tokens)
    params = vllm.SamplingParams(
        temperature=0, max_tokens=given.tokens, min_tokens=given.tokens, seed=None
    )

    def ask_bare(shown: list[Image.Image]) -> list[tuple[int, ...]]:
        prompts = [{"prompt": text, "multi_modal_data": {"image": one}} for one in shown]
        made = bare.generate(prompts, params, use_tqdm=False)
        return [tuple(one.outputs[0].token_ids) for one in made]

    def ask_ours(shown: list[Image.Image]) -> list[tuple[int, ...]]:
        made = engine.generate([hd.Request(question, [one]) for one in shown], "greedy", sampling)
        return [one.token_ids for one in made]

    def timed(ask: Any, shown: list[Image.Image]) -> tuple[float, list[tuple[int, ...]]]:
        gc.collect()
        begun = time.process_time()
        tokens = ask(shown)
        return len(shown) / (time.process_time() - begun), tokens

    for ask in (ask_bare, ask_ours):
        ask(pictures(given.requests, 1))
    for state in ("ours", "after strategies"):
        rates: list[tuple[float, float]] = []
        for number in range(given.rounds):
            shown = pictures(given.requests, 10 * number + len(state), given.sizes)
            order = (ask_bare, ask_ours) if number % 2 else (ask_ours, ask_bare)
            found = {ask: timed(ask, shown) for ask in order}
            assert found[ask_bare][1] == found[ask_ours][1], "the tokens differ"
            rates.append((found[ask_bare][0], found[ask_ours][0]))
        ratios = [mine / theirs for theirs, mine in rates]
        spread = 1.96 * statistics.stdev(ratios) / len(ratios) ** 0.5
        theirs, mine = (statistics.median(column) for column in zip(*rates, strict=True))
        print(
            f"{state}: {mine:.1f} requests a second, bare vLLM {vllm.__version__} {theirs:.1f}: "
            f"{statistics.fmean(ratios):.3f} ± {spread:.3f}",
            flush=True,
        )
        for spec in WAYS:
            engine.generate([hd.Request(question, pictures(1, 5))], spec, sampling)


if __name__ == "__main__":
    main()
