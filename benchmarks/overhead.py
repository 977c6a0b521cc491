"""What each strategy costs, relative to greedy in the same run.

    .venv/bin/python benchmarks/overhead.py [--model testbed] [--batch 1 8] [--tokens 48]

Time per token and to the first token. Every strategy writes exactly the same number of tokens for
the same pictures. Rounds are interleaved (greedy, then every strategy, then again), and the ratio
of a round is taken against the greedy run of that round, so a machine that slows down for a while
slows both. The median over rounds and its spread are printed. Serial official codes run two forward
calls per token; here the number of calls is counted.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path

import torch

import halludecode as hd
from halludecode.core.registry import STRATEGIES
from halludecode.testbed import dataset

COMPOSED = ("var+vcd", "vhr+m3id")
# On the embedded model `var` finds no sinks and would cost only the looking; these make it edit.
BUSY = {"var": "var(dims=(3,40),tau=2.0,min_mass=0.01,rho=0.1)"}


def requests(count: int) -> list[hd.Request]:
    """Captions of ``count`` held-out scenes."""
    folder = dataset("testbed-iid", 60) / "images"
    paths = sorted(folder.iterdir())[:count]
    return [hd.Request("Please describe this image in detail.", [path]) for path in paths]


def timed(engine, asked: list[hd.Request], spec: str, tokens: int) -> dict[str, float]:
    """Milliseconds per token and to the first token, and forward calls per token, of one batch."""
    sampling = hd.Sampling(max_new_tokens=tokens, min_new_tokens=tokens)
    before = engine.net.calls
    outputs = engine.generate(asked, spec, sampling)
    spent = [output.timings for output in outputs]
    return {
        "token_ms": sum(t.decode_ms for t in spent) / (tokens - 1),
        "first_ms": sum(t.prepare_ms + t.prefill_ms for t in spent),
        "calls": (engine.net.calls - before) / tokens,
        "rows": len(outputs[0].rows),
    }


def measure(engine, batch: int, tokens: int, rounds: int) -> list[dict]:
    """One line per strategy: medians over rounds of the ratios to that round's greedy."""
    names = [n for n in STRATEGIES.names() if n != "greedy"] + list(COMPOSED)
    specs = {n: "+".join(BUSY.get(part, part) for part in n.split("+")) for n in names}
    asked = requests(batch)
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in ("greedy", *names)}
    for round_ in range(rounds + 1):
        for name in seen:
            engine._prefixes.clear()
            engine.net._features.clear()
            engine._looker._seen.clear()
            made = timed(engine, asked, specs.get(name, name), tokens)
            if round_:  # the first round warms up
                seen[name].append(made)
    lines = []
    for name, runs in seen.items():
        line = {"strategy": specs.get(name, name), "batch": batch, "calls": runs[0]["calls"]}
        for key in ("token_ms", "first_ms"):
            ratios = [r[key] / g[key] for r, g in zip(runs, seen["greedy"], strict=True)]
            line[key] = statistics.median(r[key] for r in runs)
            line[f"{key}_ratio"] = statistics.median(ratios)
            line[f"{key}_spread"] = max(ratios) - min(ratios)
        lines.append({**line, "name": name, "rows": int(runs[0]["rows"])})
    return lines


def table(lines: list[dict]) -> str:
    """Markdown."""
    names = ("strategy", "streams", "rows", "calls / token", "time / token", "x greedy")
    head = "| " + " | ".join((*names, "to first token", "x greedy")) + " |"
    rows = [head, "|---|---|---|---|---|---|---|---|"]
    for line in lines:
        rows.append(
            f"| {line['name']} | {line['batch']} | {line['rows']} | {line['calls']:.2f} "
            f"| {line['token_ms']:.1f} ms | {line['token_ms_ratio']:.2f} "
            f"± {line['token_ms_spread'] / 2:.2f} "
            f"| {line['first_ms']:.0f} ms | {line['first_ms_ratio']:.2f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Measure, print the table, keep it with its recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="testbed")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    engine = hd.load(args.model, batch_size=max(args.batch))
    lines = [
        line for batch in args.batch for line in measure(engine, batch, args.tokens, args.rounds)
    ]
    recipe = {
        **engine.describe(),
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "tokens": args.tokens,
        "rounds": args.rounds,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "overhead.json").write_text(
        json.dumps({"recipe": recipe, "lines": lines}, indent=1)
    )
    (args.output / "overhead.md").write_text(table(lines) + "\n")
    print(table(lines))
    where = f"{recipe['dtype']} on {recipe['device']}, {recipe['threads']} thread(s)"
    print(f"\n{recipe['model']}, {where}")


if __name__ == "__main__":
    main()
