"""What each strategy costs, relative to greedy in the same run.

    .venv/bin/python benchmarks/overhead.py [--model testbed qwen-0.5b] [--streams 1 8 32]

Time per token and to the first token, forward calls per token, and the largest tensor a prefill
makes. Every strategy writes the same number of tokens about the same pictures. Rounds are
interleaved (greedy, then every strategy, then again), and the ratio of a round is taken against
the greedy run of that round, so a machine that slows down for a while slows both. The median over
rounds and half its range are printed. "two calls" is VCD as official codes run it: one forward for
each row, one after the other, here on the same code and cache. Models of real sizes with random
weights are in `shapes.py`; they need this repository's tests folder.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import halludecode as hd
from benchmarks import shapes
from halludecode.core.errors import HalluDecodeError
from halludecode.core.registry import STRATEGIES
from halludecode.engines.hf.batch import Batch
from halludecode.engines.hf.looks import PLAIN
from halludecode.engines.prompts import to_prompt
from halludecode.engines.rows import Job
from halludecode.testbed import dataset
from tests.contract.specs import supplied

COMPOSED = ("var+vcd", "vhr+m3id")
SERIAL = "vcd, two calls"
# A random or tiny model has no sinks, and `var` would cost only the looking; these make it edit.
BUSY = {"var": "var(dims=(3,40),tau=2.0,min_mass=0.01,rho=0.1)", "vdgd": "vdgd(tokens=16)"}
PROMPTS = (128, 256, 512, 1024)  # tokens, for memory
EDITS = ("greedy", "vcd", "var", "vhr", "pai", "vista", "dola")


def requests(count: int) -> list[hd.Request]:
    """Captions of ``count`` held-out scenes."""
    folder = dataset("testbed-iid", 60) / "images"
    paths = sorted(folder.iterdir())[:count]
    return [hd.Request("Please describe this image in detail.", [path]) for path in paths]


def busy(name: str) -> str:
    """The spec under which a strategy really edits."""
    return "+".join(BUSY.get(part, part) for part in name.split("+"))


def timed(engine: Any, asked: Sequence[hd.Request], spec: str, tokens: int) -> dict[str, float]:
    """Milliseconds per token and to the first token, and forward calls per token, of one batch."""
    for store in (engine._prefixes, engine.net._features, engine._looker._seen):
        store.clear()
    if spec == SERIAL:
        return two_calls(engine, asked, tokens)
    sampling = hd.Sampling(max_new_tokens=tokens, min_new_tokens=tokens)
    before = engine.net.calls
    outputs = engine.generate(list(asked), spec, sampling)
    spent = [output.timings for output in outputs]
    return {
        "token_ms": sum(t.decode_ms for t in spent) / (tokens - 1),
        "first_ms": sum(t.prepare_ms + t.prefill_ms for t in spent),
        "calls": (engine.net.calls - before) / tokens,
        "rows": len(outputs[0].rows),
    }


@torch.no_grad()
def two_calls(engine: Any, asked: Sequence[hd.Request], tokens: int) -> dict[str, float]:
    """VCD with a forward call for each of its two rows, greedy."""
    plan = engine.plan("vcd")
    start = time.perf_counter()
    prompts = [to_prompt(request, engine.net.layout.placeholder) for request in asked]
    jobs = engine._jobs(prompts, plan, reuse=False)
    batches = [
        Batch(engine.net, engine._maker, PLAIN, [_alone(job, name) for job in jobs])
        for name in ("main", "noised")
    ]
    before = engine.net.calls
    logits = [batch.prefill() for batch in batches]
    first = time.perf_counter()
    for _ in range(tokens - 1):
        main, noised = logits
        mixed = (2 * main - noised).masked_fill(main < main.amax(-1, keepdim=True) - 2.3026, -1e30)
        logits = [batch.step(mixed.argmax(-1).cpu()) for batch in batches]
    spent = time.perf_counter() - first
    return {
        "token_ms": spent * 1000 / (tokens - 1),
        "first_ms": (first - start) * 1000,
        "calls": (engine.net.calls - before) / tokens,
        "rows": 1,
    }


def _alone(job: Job, name: str) -> Job:
    return Job(job.prompt, {"main": job.rows[name]}, (), ())


def measure(
    engine: Any, names: Sequence[str], streams: int, tokens: int, rounds: int
) -> list[dict]:
    """One line per strategy: medians over rounds of the ratios to that round's greedy."""
    asked = requests(streams)
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for round_ in range(rounds + 1):
        for name in list(seen):
            try:
                made = timed(engine, asked, busy(name), tokens)
            except HalluDecodeError as error:
                print(f"left out: {error}", file=sys.stderr)
                del seen[name]
                continue
            if round_:  # the first round warms up
                seen[name].append(made)
    lines = []
    for name, runs in seen.items():
        line: dict[str, Any] = {"name": name, "strategy": busy(name), "streams": streams}
        for key in ("token_ms", "first_ms"):
            ratios = [r[key] / g[key] for r, g in zip(runs, seen["greedy"], strict=True)]
            line[key] = statistics.median(r[key] for r in runs)
            line[f"{key}_ratio"] = statistics.median(ratios)
            line[f"{key}_spread"] = (max(ratios) - min(ratios)) / 2
        lines.append({**line, "calls": runs[0]["calls"], "rows": int(runs[0]["rows"])})
    return lines


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {_memory_of(x) for x in args if isinstance(x, torch.Tensor)}
        for tensor in out if isinstance(out, tuple | list) else (out,):
            # Views of what was given, such as a turned weight, take no memory.
            if isinstance(tensor, torch.Tensor) and _memory_of(tensor) not in given:
                self.elements = max(self.elements, tensor.numel())
        return out


def _memory_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def memory(engine: Any) -> list[dict[str, Any]]:
    """Per strategy, the largest tensor of a prefill at growing prompt lengths."""
    picture = requests(1)[0].images
    lines = []
    for name in EDITS:
        sizes = []
        for length in PROMPTS:
            words = "a " * (length // 2)  # the tiny vocabularies are bytes
            with Largest() as seen:
                request = hd.Request(words, picture)
                engine.generate([request], busy(name), hd.Sampling(max_new_tokens=1))
            sizes.append(seen.elements)
        lines.append({"name": name, "elements": sizes})
    return lines


def table(lines: list[dict]) -> str:
    """Markdown."""
    names = ("strategy", "streams", "rows", "calls / token", "time / token", "x greedy")
    head = "| " + " | ".join((*names, "to first token", "x greedy")) + " |"
    rows = [head, "|---|---|---|---|---|---|---|---|"]
    for line in lines:
        rows.append(
            f"| {line['name']} | {line['streams']} | {line['rows']} | {line['calls']:.2f} "
            f"| {line['token_ms']:.1f} ms | {line['token_ms_ratio']:.2f} "
            f"± {line['token_ms_spread']:.2f} "
            f"| {line['first_ms']:.0f} ms | {line['first_ms_ratio']:.2f} |"
        )
    return "\n".join(rows)


def memory_table(lines: list[dict]) -> str:
    """Markdown."""
    rows = ["| strategy | " + " | ".join(f"about {n} tokens" for n in PROMPTS) + " |"]
    rows.append("|---" * (len(PROMPTS) + 1) + "|")
    for line in lines:
        cells = " | ".join(f"{n / 1e6:.2f} M" for n in line["elements"])
        rows.append(f"| {line['name']} | {cells} |")
    return "\n".join(rows)


def reading(lines: list[dict]) -> str:
    """What the table says, in a few sentences made from its numbers."""
    by = {(line["name"], line["streams"]): line for line in lines}
    told = []
    for streams in dict.fromkeys(line["streams"] for line in lines):
        extra, serial = by.get(("vcd", streams)), by.get((SERIAL, streams))
        if extra and serial:
            told.append(
                f"At {streams} stream(s) one extra row costs {extra['token_ms_ratio']:.2f} times "
                f"greedy per token, the same rule in two calls {serial['token_ms_ratio']:.2f}."
            )
        edits = [by[n, streams] for n in ("var", "vhr", "vista") if (n, streams) in by]
        if edits:
            each = ", ".join(f"{e['name']} {e['token_ms_ratio']:.2f}" for e in edits)
            told.append(f"Edits inside the model: {each}.")
    return " ".join(told)


@torch.no_grad()
def rows_of_a_product(engine: Any) -> str:
    """How long the largest matrix product takes for more rows, whatever we do around it."""
    layer = max(
        (m for m in engine.model.modules() if isinstance(m, torch.nn.Linear)),
        key=lambda m: m.weight.numel(),
    )
    best: dict[int, float] = {}
    for _ in range(30):
        for rows in (1, 2, 8):
            x = torch.ones(rows, 1, layer.in_features).to(layer.weight)
            start = time.perf_counter()
            layer(x)
            if x.is_cuda:
                torch.cuda.synchronize()
            best[rows] = min(best.get(rows, 1e9), time.perf_counter() - start)
    two, eight = (best[n] / best[1] for n in (2, 8))
    return (
        f"The model's largest product alone takes {two:.2f} times as long for two rows as for one, "
        f"and {eight:.2f} times for eight: that much of an extra row's cost is the matrix kernel's."
    )


def run(model: str, args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Everything about one model: results and their page."""
    folder = tempfile.TemporaryDirectory()  # what lacing and zerotuning need, made up
    engine = supplied(shapes.load(model, max(args.streams)), Path(folder.name))
    names = args.strategy or [n for n in STRATEGIES.names() if n != "greedy"] + list(COMPOSED)
    names = ["greedy", *names, SERIAL]
    lines = [
        line
        for streams in args.streams
        for line in measure(engine, names, streams, args.tokens, args.rounds)
    ]
    about = engine.describe()
    recipe = {
        "model": model,
        **{key: about[key] for key in ("family", "dtype", "device", "versions")},
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "tokens": args.tokens,
        "rounds": args.rounds,
    }
    sizes = memory(engine) if args.memory else []
    where = f"{recipe['dtype']} on {recipe['device']}, {recipe['threads']} thread(s)"
    page = [f"## {model}", f"{where}, {args.tokens} tokens, {args.rounds} rounds.", table(lines)]
    page.append(f"{reading(lines)} {rows_of_a_product(engine)}")
    if sizes:
        page += ["Largest tensor a prefill makes, in elements:", memory_table(sizes)]
    return {"recipe": recipe, "lines": lines, "memory": sizes}, "\n\n".join(page)


def main() -> None:
    """Measure, print the tables, keep them with their recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["testbed"])
    parser.add_argument("--strategy", nargs="+", help="default: all")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    made = [run(model, args) for model in args.model]
    args.output.mkdir(parents=True, exist_ok=True)
    results = json.dumps([results for results, _ in made], indent=1)
    (args.output / "overhead.json").write_text(results, encoding="utf-8")
    text = "\n\n".join(page for _, page in made)
    (args.output / "overhead.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
