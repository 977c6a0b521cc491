"""What a compiled model saves in vLLM under each strategy, and that it answers as an eager one.

    .venv/bin/python benchmarks/compiled.py [--strategy greedy pai vista] [--streams 8] [--out F]

Two engines in this process, one of them with ``enforce_eager=False``, answer the same requests in
turn. Seconds are of processor time on a CPU and of the clock on a GPU, where CUDA graphs are on
too; the ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update({"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"})
sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import halludecode as hd
from benchmarks.on_demand import captions

SPECS = ("greedy", "vcd", "pai", "vhr", "vista", "dola")
SIZE: dict[str, Any] = {"block_size": 32, "max_num_seqs": 64, "max_model_len": 1024}
HEADER = (
    "| strategy | eager, ms a token | compiled, ms a token | compiled / eager "
    "| answers that differ |\n|---|---|---|---|---|"
)


def engines(model: str) -> tuple[Any, Any, Callable[[], float]]:
    """An eager and a compiled engine, and the clock."""
    from vllm.platforms import current_platform

    cpu = current_platform.is_cpu()
    memory: dict[str, Any] = {"kv_cache_memory_bytes": 256 << 20 if cpu else 8 << 30}
    made = [
        hd.load(model, engine="vllm", enforce_eager=eager, **SIZE, **memory)
        for eager in (True, False)
    ]
    config = made[1].loaded.vllm_config.compilation_config
    how = f"{config.mode.name}, {config.backend}, CUDA graphs {config.cudagraph_mode.name}"
    print(f"compiled: {how}", flush=True)
    return made[0], made[1], time.process_time if cpu else time.perf_counter


def main() -> None:
    """Print the table, and write it where ``--out`` says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="testbed")
    parser.add_argument("--strategy", nargs="+", default=SPECS)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    eager, compiled, clock = engines(args.model)
    asked, sampling = captions(args.streams), hd.Sampling(max_new_tokens=args.tokens)
    table = [HEADER]
    print(HEADER, flush=True)
    for spec in args.strategy:
        cost: dict[Any, list[float]] = {eager: [], compiled: []}
        answers: dict[Any, list[Any]] = {}
        for round_number in range(args.rounds + 1):  # the first one warms up
            for engine in (eager, compiled) if round_number % 2 else (compiled, eager):
                before = clock()
                made = engine.generate(asked, spec, sampling)
                count = sum(len(output.token_ids) for output in made)
                cost[engine].append((clock() - before) / count * 1e3)
                answers[engine] = [output.token_ids for output in made]
        pairs = list(zip(cost[eager][1:], cost[compiled][1:], strict=True))
        slow, fast = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(c / e for e, c in pairs)
        differ = sum(a != b for a, b in zip(answers[eager], answers[compiled], strict=True))
        table.append(
            f"| {spec} | {slow:.2f} | {fast:.2f} | {ratio:.2f} | {differ} of {len(asked)} |"
        )
        print(table[-1], flush=True)
    if args.out:
        command = " ".join(["benchmarks/compiled.py", *sys.argv[1:]])
        head = f"# Compiled and eager in vLLM\n\nWritten by `{command}`.\n\n"
        args.out.write_text(head + "\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
