"""What rows beside the main one cost in vLLM where they begin only when a token needs them.

    .venv/bin/python benchmarks/on_demand_vllm.py [--streams 16] [--answers 96] [--out F]

POPE's questions and captions, so many at a time, in this process: requests per second of
processor time and KV blocks in use, mean over the steps, as shares of greedy's in the same run,
with ``extra_rows`` both ways; the share of requests whose other rows never began; answers that
differ between the two ways.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.update({"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"})
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import halludecode as hd
from benchmarks.on_demand import SPECS, captions, questions

HEADER = (
    "| answers | open at a time | strategy | requests/s always | on demand | KV blocks always "
    "| on demand | rows never began | answers that differ |\n|---|---|---|---|---|---|---|---|---|"
)


@contextmanager
def blocks(engine: Any) -> Iterator[list[int]]:
    """KV blocks in use after each step within this block."""
    scheduler = engine.loaded.engine.engine_core.engine_core.scheduler
    found, stock = list[int](), scheduler.schedule
    pool = scheduler.kv_cache_manager.block_pool

    def schedule(*args: Any, **kwargs: Any) -> Any:
        step = stock(*args, **kwargs)
        found.append(scheduler.kv_cache_config.num_blocks - 1 - pool.get_num_free_blocks())
        return step

    scheduler.schedule = schedule
    try:
        yield found
    finally:
        del scheduler.schedule


def written(
    engine: Any, asked: Sequence[hd.Request], spec: str, sampling: hd.Sampling, streams: int
) -> tuple[list[hd.Output], float, float]:
    """Answers, seconds of processor time, KV blocks in use; nothing is remembered from before."""
    engine.loaded.engine.reset_prefix_cache()
    made = list[hd.Output]()
    with blocks(engine) as used:
        before = time.process_time()
        for at in range(0, len(asked), streams):
            made += engine.generate(asked[at : at + streams], spec, sampling)
        seconds = time.process_time() - before
    return made, seconds, sum(used) / len(used)


def main() -> None:
    """Print the table, and write it where ``--out`` says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", nargs="+", type=int, default=[16])
    parser.add_argument("--strategy", nargs="+", default=SPECS)
    parser.add_argument("--answers", type=int, default=96)
    parser.add_argument("--kinds", nargs="+", default=["POPE", "captions"])
    parser.add_argument("--tokens", type=int, default=48, help="of a caption")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    size = {"block_size": 32, "max_num_seqs": 64, "kv_cache_memory_bytes": 256 << 20}
    engine: Any = hd.load("testbed", engine="vllm", max_model_len=1024, **size)
    asked = {
        "POPE": (questions(args.answers), hd.Sampling(max_new_tokens=8)),
        "captions": (captions(args.answers), hd.Sampling(max_new_tokens=args.tokens)),
    }
    table = [HEADER]
    for kind, streams in [(kind, streams) for kind in args.kinds for streams in args.streams]:
        engine.generate(asked[kind][0][:streams], "greedy", asked[kind][1])  # warm
        _, plain, held = written(engine, asked[kind][0], "greedy", asked[kind][1], streams)
        for spec in args.strategy:
            told: list[tuple[float, float]] = []
            outputs: list[list[hd.Output]] = []
            for way in ("always", "on_demand"):
                engine.extra_rows = way
                engine.generate(asked[kind][0][:1], spec, asked[kind][1])  # compile its plan
                made, seconds, used = written(engine, asked[kind][0], spec, asked[kind][1], streams)
                told.append((plain / seconds, used / held))
                outputs.append(made)
            pairs = list(zip(*outputs, strict=True))
            differ = sum(a.token_ids != b.token_ids for a, b in pairs)
            never = sum(b.rows == ("main",) for _, b in pairs) / len(pairs)
            (slow, many), (fast, few) = told
            table.append(
                f"| {kind} | {streams} | {spec} | {slow:.2f} | {fast:.2f} | {many:.2f} "
                f"| {few:.2f} | {never:.0%} | {differ} of {len(pairs)} |"
            )
            print(table[-1], flush=True)
    if args.out:
        command = " ".join(["benchmarks/on_demand_vllm.py", *sys.argv[1:]])
        head = f"# Rows on demand in vLLM\n\nWritten by `{command}`.\n\n"
        args.out.write_text(head + "\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
