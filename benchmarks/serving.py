"""What serving costs: the vLLM engine under each strategy, beside what users have without it.

    .venv/bin/python benchmarks/serving.py [--strategies vcd var] [--levels 1 4 16 32]

A level is how many requests are open at a time. vLLM gets a new request as soon as one is answered;
the HF engine gets them in batches of that size, and so does "vcd, two calls", which is VCD as
official codes run it: one forward for each row, one after the other. All requests write the same
number of tokens, which favours batches: none waits there for a longer neighbour.

Everything runs in one process. Where the model runs on the processor, time is that process's own
processor time, which other programs hardly touch: a second is what an idle core needs. Rounds are
interleaved, and the ratio of a round is taken against greedy on the same engine in that round ("x
hf": against the same strategy on the HF engine). The median over rounds and half its range are
printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # two processes would share the cores
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the HF engine runs here, too
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch

import halludecode as hd
from benchmarks.overhead import CLOCKS, COMPOSED, SERIAL, Writer, busy, requests, told_clock
from halludecode.core.errors import HalluDecodeError
from halludecode.core.registry import STRATEGIES
from tests.support.specs import supplied

KEYS = ("token_ms", "first_ms")
NOW = dict(zip(CLOCKS, (time.perf_counter, time.process_time), strict=True))
Engines = dict[str, Any]
Run = dict[str, float]
Runs = dict[tuple[str, str], list[Run]]  # (engine, strategy) -> one per round


@dataclass
class Clock:
    """When one request was handed over, got its first token, and was answered, in seconds."""

    asked: float
    first: float = 0.0
    last: float = 0.0


@dataclass
class Clients:
    """As many clients of the vLLM engine as the level; each asks again when it is answered."""

    engine: Any
    plan: Any
    tokens: int
    now: Callable[[], float]
    clocks: list[Clock] = field(default_factory=list)

    def run(self, asked: Sequence[hd.Request], level: int) -> None:
        """Answer all requests."""
        from halludecode.engines.vllm.frontend.output_reader import OutputReader

        reader, waiting = OutputReader(self.engine.loaded), list(asked)
        opened = self._ask(reader, waiting, level)
        for _ in reader.steps():
            now, done = self.now(), 0
            for clock, answer in zip(self.clocks, reader.answers, strict=True):
                clock.first = clock.first or (now if answer.ids else 0.0)
                if answer.finish and not clock.last:
                    clock.last = now
                    done += 1
            opened += self._ask(reader, waiting, done)
        failed = [answer.error for answer in reader.answers if answer.error]
        failed += [HalluDecodeError(each["error"]) for each in reader.reports() if each["error"]]
        if failed:
            raise failed[0]
        self.engine.forget(opened)

    def _ask(self, reader: Any, waiting: list[hd.Request], most: int) -> list[Any]:
        """Prepare the next requests (earlier passes run here, at once); hand them over."""
        sampling = hd.Sampling(max_new_tokens=self.tokens, min_new_tokens=self.tokens)
        some, waiting[:most] = waiting[:most], []
        self.clocks += [Clock(self.now()) for _ in some]
        opened = self.engine.open(some, self.plan)
        for request in opened:
            reader.add(self.engine.group(request, sampling), sampling)
        return opened


def on_vllm(engines: Engines, asked: Sequence[hd.Request], name: str, args: Any, level: int) -> Run:
    """One run on the vLLM engine, nothing remembered of earlier ones."""
    engine, now = engines["vllm"], NOW[told_clock(engines["hf"])]
    engine.loaded.engine.reset_prefix_cache()
    engine.loaded.engine.reset_encoder_cache()
    clients = Clients(engine, engine.plan(busy(name)), args.tokens, now)
    start = now()
    clients.run(asked, level)
    spent = now() - start
    steps = args.tokens - 1
    return {
        "rate": len(asked) / spent,
        "token_ms": statistics.fmean((c.last - c.first) * 1000 / steps for c in clients.clocks),
        "first_ms": statistics.fmean((c.first - c.asked) * 1000 for c in clients.clocks),
    }


def on_hf(engines: Engines, asked: Sequence[hd.Request], name: str, args: Any, level: int) -> Run:
    """One run on the HF engine, or in two calls, batch by batch."""
    clock, first, rest = CLOCKS.index(told_clock(engines["hf"])), list[float](), list[float]()
    for at in range(0, len(asked), level):
        writer = Writer(engines["hf"], asked[at : at + level], name, args.tokens)
        first.append(writer.first()[clock])
        rest.append(sum(writer.next()[clock] for _ in range(args.tokens - 1)))
    return {
        "rate": len(asked) / (sum(first) + sum(rest)),
        "token_ms": statistics.fmean(rest) * 1000 / (args.tokens - 1),
        "first_ms": statistics.fmean(first) * 1000,
    }


def measure(engines: Engines, names: Sequence[str], args: Any, level: int) -> list[dict]:
    """One line per engine and strategy at one level."""
    asked = requests(min(max(args.requests, 2 * level), 60))
    runs: Runs = {(kind, name): [] for name in (*names, SERIAL) for kind in engines}
    del runs["vllm", SERIAL]
    for round_ in range(args.rounds + 1):
        for kind, name in list(runs):
            if (kind, name) not in runs:
                continue
            run = on_vllm if kind == "vllm" else on_hf
            try:
                made = run(engines, asked, name, args, level)
            except HalluDecodeError as error:
                print(f"left out: {error}", file=sys.stderr)
                for both in engines:  # their rates stand side by side
                    runs.pop((both, name), None)
                continue
            if round_:  # the first round warms up
                runs[kind, name].append(made)
    return [line(which, runs, level) for which in runs]


def line(which: tuple[str, str], runs: Runs, level: int) -> dict[str, Any]:
    """Medians of one strategy on one engine; its rate by that of greedy there, and of others."""
    engine, name = which
    made = runs[which]
    medians = {key: statistics.median(one[key] for one in made) for key in ("rate", *KEYS)}
    told = {"engine": engine, "name": name, "level": level, **medians}
    told["greedy"] = by(made, runs[engine, "greedy"])
    if engine == "vllm":
        told["hf"] = by(made, runs["hf", name])
        told["serial"] = by(made, runs["hf", SERIAL])
    return told


def by(ours: Sequence[dict], theirs: Sequence[dict]) -> tuple[float, float]:
    """Median over rounds of the ratio of rates, and half its range."""
    ratios = [own["rate"] / other["rate"] for own, other in zip(ours, theirs, strict=True)]
    return statistics.median(ratios), (max(ratios) - min(ratios)) / 2


def table(lines: Sequence[dict]) -> str:
    """Markdown, a line per strategy and engine."""
    head = ("strategy", "engine", "requests / s", "x greedy", "x hf", "time / token")
    head = (*head, "to first token")
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for one in sorted(lines, key=lambda one: (one["name"] != "greedy", one["name"] == SERIAL)):
        ratios = [f"{r[0]:.2f} ± {r[1]:.2f}" if r else "" for r in (one["greedy"], one.get("hf"))]
        rows.append(
            f"| {one['name']} | {one['engine']} | {one['rate']:.1f} | {' | '.join(ratios)} "
            f"| {one['token_ms']:.1f} ms | {one['first_ms']:.0f} ms |"
        )
    return "\n".join(rows)


def reading(lines: Sequence[dict]) -> str:
    """What the tables say, in sentences made from their numbers."""
    ours = {(one["name"], one["level"]): one for one in lines if one["engine"] == "vllm"}
    told = []
    for level in dict.fromkeys(one["level"] for one in lines):
        ratio = ours["greedy", level]["hf"][0]
        said = f"At {level} open request(s) vLLM answers {ratio:.2f} times as many per second as "
        said += "the HF engine under greedy"
        if ("vcd", level) in ours:
            said += f"; under vcd {ours['vcd', level]['serial'][0]:.2f} times as many as two calls"
        kept = [(one["greedy"][0], name) for (name, at), one in ours.items() if at == level]
        kept = sorted(one for one in kept if one[1] != "greedy")
        if kept:
            middle = statistics.median(ratio for ratio, _ in kept)
            said += f". Of greedy's rate on vLLM, {kept[0][1]} keeps least ({kept[0][0]:.2f}), the "
            said += f"median strategy {middle:.2f}"
        told.append(said + ".")
    return " ".join(told)


def load(model: str, folder: Path, most: int) -> dict[str, Any]:
    """Both engines, with the artifacts that some strategies need."""
    hf = hd.load(model, artifacts=folder, batch_size=most, prefix_cache_mb=0)
    supplied(hf, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own
        more = {"max_num_seqs": 3 * most, "max_num_batched_tokens": 8192}
        ours = hd.load(model, engine="vllm", artifacts=folder, **more)
    return {"vllm": ours, "hf": hf}


def page(lines: Sequence[dict], about: dict[str, Any], args: Any) -> str:
    """The whole page."""
    given = " ".join(sys.argv[1:])
    load_average = ", ".join(f"{n:.1f}" for n in about["load"])
    parts = [
        f"<!-- Made by: python benchmarks/serving.py {given} -->".replace("  ", " "),
        f"## {args.model}",
        f"{about['dtype']} on {about['device']}, {about['threads']} thread(s), vLLM "
        f"{about['versions']['vllm']}, {args.tokens} tokens, {args.rounds} rounds, by the "
        f"{about['clock']}. Load average before and after: {load_average} on {about['cores']} cores"
        + ("; other programs had part of the machine." if about["load"][0] > 0.5 else "."),
        reading(lines),
    ]
    for level in dict.fromkeys(one["level"] for one in lines):
        parts += [f"### {level} open request(s)", table([o for o in lines if o["level"] == level])]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure, print the tables, keep them with their recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="testbed")
    parser.add_argument("--strategies", nargs="+", help="default: all")
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--requests", type=int, default=4, help="least per run; else twice a level")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        engines = load(args.model, Path(folder), max(args.levels))
        names = args.strategies or [n for n in STRATEGIES.names() if n != "greedy"] + list(COMPOSED)
        names = ["greedy", *(name for name in names if name != "greedy")]
        lines = [one for level in args.levels for one in measure(engines, names, args, level)]
        about = engines["vllm"].describe() | {"threads": torch.get_num_threads()}
        about["clock"] = told_clock(engines["hf"])
        engines["vllm"].close()
    about |= {"load": (before, os.getloadavg()[0]), "cores": os.cpu_count()}
    args.output.mkdir(parents=True, exist_ok=True)
    results = {"recipe": {**about, "tokens": args.tokens, "rounds": args.rounds}, "lines": lines}
    (args.output / "serving.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    text = page(lines, about, args)
    (args.output / "serving.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
