"""What rows beside the main one cost in vLLM where they begin only when a token needs them.

    .venv/bin/python benchmarks/on_demand_vllm.py [--streams 1 4 16 32] [--answers 96]

POPE's questions and captions, so many at a time, in this process: requests per second of
processor time and KV blocks in use, mean over the steps, as shares of greedy's in the same run,
with ``extra_rows`` both ways; the share of requests whose other rows never began; answers that
differ between the two ways. Writes benchmarks/on_demand_vllm.md.
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
from halludecode.engines.vllm.frontend.output_reader import OutputReader

HEADER = (
    "| answers | open at a time | strategy | requests/s always | on demand | KV blocks always "
    "| on demand | rows never began | answers that differ |\n|---|---|---|---|---|---|---|---|---|"
)

HEAD = """# Rows on demand in vLLM

<!-- Made by: .venv/bin/python benchmarks/on_demand_vllm.py -->

The embedded model on vLLM, one thread, float32, in one process: requests per second of processor
time and KV blocks in use (mean over steps), as shares of greedy's in the same run. The questions
are POPE's adversarial ones, six a picture, whose prompts share what is read of the picture, in
every row; nothing is remembered from run to run. A row that has begun stays beside its main row:
taking its tokens several at a time would save what on_demand.md calls *waiting*, which does not
pay from a few answers on. `sid` begins with the prompt, since its prompts are read whole."""


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
) -> tuple[list[tuple[Any, ...]], float, float]:
    """Tokens, rows, seconds of processor time, KV blocks in use; nothing is remembered from before.

    A request that ends makes room for the next, as with so many clients.
    """
    engine.loaded.engine.reset_prefix_cache()
    plan, waiting, opened = engine.plan(spec), list(reversed(asked)), list[Any]()
    reader = OutputReader(engine.loaded, join=engine._opener.join)

    def fill() -> None:
        while waiting and len(reader._open) < streams:
            (one,) = engine.open([waiting.pop()], plan)
            opened.append(one)
            reader.add(engine.group(one, sampling), sampling, one)

    with blocks(engine) as used:
        before = time.process_time()
        fill()
        for _ in reader.steps():
            fill()
        reader.reports()
        engine.forget(opened)
        seconds = time.process_time() - before
    made = [
        (tuple(answer.ids), tuple(one.prepared.rows))
        for answer, one in zip(reader.answers, opened, strict=True)
    ]
    return made, seconds, sum(used) / len(used)


def main() -> None:
    """Print the table, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 4, 16, 32])
    parser.add_argument("--strategy", nargs="+", default=SPECS)
    parser.add_argument("--answers", type=int, default=96)
    parser.add_argument("--kinds", nargs="+", default=["POPE", "captions"])
    parser.add_argument("--tokens", type=int, default=48, help="of a caption")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
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
            outputs: list[list[tuple[Any, ...]]] = []
            for way in ("always", "on_demand"):
                engine.extra_rows = way
                engine.generate(asked[kind][0][:1], spec, asked[kind][1])  # compile its plan
                made, seconds, used = written(engine, asked[kind][0], spec, asked[kind][1], streams)
                told.append((plain / seconds, used / held))
                outputs.append(made)
            pairs = list(zip(*outputs, strict=True))
            differ = sum(a[0] != b[0] for a, b in pairs)
            never = sum(b[1] == ("main",) for _, b in pairs) / len(pairs)
            (slow, many), (fast, few) = told
            table.append(
                f"| {kind} | {streams} | {spec} | {slow:.2f} | {fast:.2f} | {many:.2f} "
                f"| {few:.2f} | {never:.0%} | {differ} of {len(pairs)} |"
            )
            print(table[-1], flush=True)
    load = f"Load of two cores at the end: {os.getloadavg()[0]:.1f}."
    args.output.write_text("\n\n".join([HEAD, load, "\n".join(table)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
