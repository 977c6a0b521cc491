"""What rows beside the main one cost where they begin only when a token needs them.

    .venv/bin/python benchmarks/on_demand.py [--model testbed qwen-0.5b] [--streams 1 4 16 32]
    .venv/bin/python benchmarks/on_demand.py --policy --model qwen-0.5b --streams 1 8
    .venv/bin/python benchmarks/on_demand.py --memory

Whole answers under strategies whose main row can decide a token alone, with ``extra_rows`` both
ways, and greedy's just before them: processor time and multiplications as multiples of greedy's,
the share of tokens that the main row decided, the share of requests whose other rows never began,
and answers that differ (none but ties within rounding, see same_answers.py). A model with random
weights decides nothing, so its LM head is scaled until the main row decides the wanted share of the
tokens of greedy's captions at beta = 0.1 (``--decided``); real models differ, which is why several
shares make a curve. ``--policy`` compares rows that wait with rows that run beside their main rows,
which `late_rows.pays_to_wait` chooses between; ``--memory`` measures the most memory of a process
that answers POPE.

Every finished cell is a line of ``--cells``, which a later call does not repeat; the page,
benchmarks/on_demand.md, is made of all of them. ``--minutes`` begins no cell after that time.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import torch

import halludecode as hd
from benchmarks import shapes
from benchmarks.same_answers import Cells
from halludecode.core import logits as hd_math
from halludecode.core import step as hd_step
from halludecode.engines.hf import late_rows
from halludecode.testbed import dataset

PAGE = Path(__file__).with_suffix(".md")
SPECS = ("vcd", "ritual", "agla", "damro", "m3id", "sid", "pai", "vcd+m3id")
BETA = 0.1  # the cut at which a head is scaled


@dataclass
class Decided:
    """Tokens that were judged, and those that the main row decided."""

    judged: int = 0
    alone: int = 0

    @property
    def share(self) -> float:
        """Of the judged."""
        return self.alone / max(self.judged, 1)


@contextmanager
def counted(see: Callable[[torch.Tensor], None] = lambda main: None) -> Iterator[Decided]:
    """Counts what the engine decides within this block, and shows what it decides by."""
    found, stock = Decided(), hd_step.decided

    def decided(parts: Any, main: torch.Tensor) -> torch.Tensor:
        alone = stock(parts, main)
        found.judged += len(alone)
        found.alone += int(alone.sum())
        see(main)
        return alone

    hd_step.decided = decided
    try:
        yield found
    finally:
        hd_step.decided = stock


def questions(count: int) -> list[hd.Request]:
    """POPE's adversarial questions about scenes of the testbed."""
    root = dataset("testbed-iid", 100)
    lines = (root / "pope" / "adversarial.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line) for line in lines[:count]]
    return [hd.Request(each["text"], [root / "images" / each["image"]]) for each in asked]


def captions(count: int) -> list[hd.Request]:
    """Captions of its scenes."""
    pictures = sorted((dataset("testbed-iid", 100) / "images").iterdir())[:count]
    return [hd.Request("Please describe this image in detail.", [path]) for path in pictures]


@dataclass
class Spent:
    """What some answers cost.

    Args:
        seconds: Of the processor.
        products: Multiplications of all linear layers, the vision tower's and the LM head's too.
    """

    seconds: float = 0.0
    products: float = 0.0

    def over(self, other: Spent) -> tuple[float, float]:
        """Ratios of both."""
        return round(self.seconds / other.seconds, 3), round(self.products / other.products, 3)


def spent(engine: Any, write: Callable[[], Any]) -> tuple[Any, Spent]:
    """What is written, and what it cost with nothing remembered of the pictures."""
    cost = Spent()

    def count(module: Any, args: Any, out: Any) -> None:
        if isinstance(module, torch.nn.Linear):
            cost.products += out.numel() * module.in_features

    engine.clear_caches()
    handle = torch.nn.modules.module.register_module_forward_hook(count)
    before = time.process_time()
    try:
        made = write()
    finally:
        handle.remove()
    cost.seconds = time.process_time() - before
    return made, cost


def sharpen(engine: Any, share: float, tokens: int = 12) -> float:
    """Scale the LM head until the main row decides this share of a caption's tokens; the factor.

    A factor leaves greedy's tokens as they are, so they are written once.
    """
    seen = list[torch.Tensor]()
    sampling = hd.Sampling(max_new_tokens=tokens, min_new_tokens=tokens)
    with counted(lambda main: seen.append(main.clone())):  # "vcd" at a share that decides nothing
        engine.extra_rows = "on_demand"
        engine.generate(captions(2), "vcd(alpha=0.0,beta=0.1)", sampling)
    main = torch.cat(seen)
    low, high = 1.0, 1024.0
    for _ in range(20):
        factor = (low * high) ** 0.5
        found = float(hd_math.alone(factor * main, BETA).float().mean())
        low, high = (factor, high) if found < share else (low, factor)
    engine.model.get_output_embeddings().weight.data.mul_(high)
    return high


def cell(
    engine: Any, spec: str, asked: Sequence[hd.Request], sampling: hd.Sampling, ways: Sequence[Any]
) -> dict[str, Any]:
    """Greedy, then one strategy in several ways (a name, and what sets the engine to it)."""
    _, greedy = spent(engine, lambda: engine.generate(asked, "greedy", sampling))
    made, ratio = dict[str, list[hd.Output]](), dict[str, tuple[float, float]]()
    share = 0.0
    for way, choose in ways:
        choose(engine)
        with counted() as found:
            made[way], cost = spent(engine, lambda: engine.generate(asked, spec, sampling))
        ratio[way], share = cost.over(greedy), found.share
    one, other = made.values()
    return {
        "answers": len(asked),
        "tokens": sum(len(output.token_ids) for output in other),
        "greedy_s": round(greedy.seconds, 2),
        **ratio,
        "decided": round(share, 3),
        "never": round(sum(output.rows == ("main",) for output in other) / len(other), 3),
        "differ": sum(a.token_ids != b.token_ids for a, b in zip(one, other, strict=True)),
    }


def _rows(way: str) -> Callable[[Any], None]:
    return lambda engine: setattr(engine, "extra_rows", way)


def _waiting(waits: bool) -> Callable[[Any], None]:
    def choose(engine: Any) -> None:
        engine.extra_rows = "on_demand"
        late_rows.pays_to_wait = lambda hf_model, answers: waits

    return choose


WAYS = (("always", _rows("always")), ("on demand", _rows("on_demand")))
POLICY = (("beside", _waiting(False)), ("waiting", _waiting(True)))


def measure(cells: Cells, args: argparse.Namespace) -> None:
    """What is not there yet."""
    end = time.monotonic() + 60 * args.minutes
    ways, name = (POLICY, "policy") if args.policy else (WAYS, "cost")
    for model in args.model:
        shaped = model in shapes.SHAPES
        for share in args.decided if shaped else [0.0]:
            for streams in args.streams:
                engine: Any = None
                for kind in args.kind or (["captions"] if shaped else ["POPE", "captions"]):
                    count = max(streams, args.answers) * (3 if kind == "POPE" else 1)
                    asked = questions(count) if kind == "POPE" else captions(count)
                    tokens = 8 if kind == "POPE" else args.tokens
                    least = tokens if shaped else 0
                    sampling = hd.Sampling(max_new_tokens=tokens, min_new_tokens=least)
                    for spec in args.strategy:
                        key = f"{name} | {model} | {share:g} | {kind} | {streams} | {spec}"
                        if key in cells.found or time.monotonic() > end:
                            continue
                        if engine is None:
                            engine = shapes.load(model, streams, "cpu")
                            if share:
                                sharpen(engine, share)
                            engine.generate(asked[:streams], "greedy", sampling)  # warm
                        cells.measure(key, lambda: cell(engine, spec, asked, sampling, ways))  # noqa: B023


# Memory -------------------------------------------------------------------------------------------
def peak(spec: str, way: str, count: int) -> int:
    """Most kilobytes of a process that answers POPE, beyond those of one that answers greedily."""
    code = (
        "import sys; sys.path[:0] = ['.']\n"
        "from benchmarks import on_demand\n"
        f"on_demand.answered({spec!r}, {way!r}, {count})"
    )
    run = [sys.executable, "-c", code]
    return int(subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()[-1])


def answered(spec: str, way: str, count: int) -> None:
    """Answer, in a process of its own, and print how much memory was added since it began."""
    engine: Any = hd.load("testbed", batch_size=32, extra_rows=way)
    asked, sampling = questions(count), hd.Sampling(max_new_tokens=8)
    engine.generate(asked[:1], "greedy", sampling)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    engine.generate(asked, spec, sampling)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def memory(cells: Cells, args: argparse.Namespace) -> None:
    """A cell a strategy."""
    for spec in ("greedy", "vcd", "agla"):
        cells.measure(
            f"memory | {spec}",
            lambda spec=spec: {
                way: peak(spec, way, 6 * args.answers) for way in ("always", "on_demand")
            },
        )


# The page -----------------------------------------------------------------------------------------
def page(cells: Cells) -> str:
    """Markdown."""
    busy = [each["load"] for each in cells.found.values()]
    text = [
        "# Rows on demand",
        "",
        "<!-- Made by: .venv/bin/python benchmarks/on_demand.py, a line's columns its options -->",
        "",
        "Engine hf, one thread, float32. Processor time of whole answers, prefill included, as a "
        "multiple of greedy's just before, at so many requests in a batch; in brackets the same of "
        "the multiplications of all linear layers, which do not depend on how busy the machine is; "
        "nothing is kept of the pictures from run to run. Shapes are of random weights whose LM "
        "head is scaled until "
        f"the main row decides the share of tokens named beside them at beta = {BETA:g}: what they "
        "write is noise, what they cost is not, and which share a real model decides is its own. "
        f"Two cores had a load of {min(busy, default=0):g} to {max(busy, default=0):g}: cells of a "
        "high load (the last column) are rough, since cores share caches.",
        "",
        "What to expect: a row that begins reads all that is before its token, so it saves what "
        "comes after an answer's last undecided token, and all of it where none is. Long answers "
        "nearly always have one; yes and no often have none, but six questions about one picture "
        "share what is read of it, by every row, and one of them is enough to read it.",
        "",
        "| model | answers | open | strategy | always | on demand | tokens decided "
        "| rows never began | answers that differ | load |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model, share, kind, streams, spec, own in _keyed(cells, "cost"):
        shown = model if share == "0" else f"{model}, {float(share):.0%}"
        text.append(
            f"| {shown} | {own['answers']} {kind} | {streams} | {spec} | {_both(own['always'])} "
            f"| {_both(own['on demand'])} | {own['decided']:.0%} | {own['never']:.0%} "
            f"| {own['differ']} | {own['load']:g} |"
        )
    text += ["", "## Waiting, or running beside the main rows", ""]
    waits = [
        f"| {model if share == '0' else f'{model}, {float(share):.0%}'} | {own['answers']} {kind} "
        f"| {streams} | {spec} | {_both(own['beside'])} | {_both(own['waiting'])} "
        f"| {own['decided']:.0%} | {own['load']:g} |"
        for model, share, kind, streams, spec, own in _keyed(cells, "policy")
    ]
    columns = "| model | answers | open | strategy | beside | waiting | decided | load |"
    text += [columns, "|---" * 8 + "|", *waits] if waits else ["Not measured yet (`--policy`)."]
    text += ["", "## Memory", ""]
    sizes = [
        f"| {key.split(' | ')[1]} | {own['always'] / 1024:.0f} MB "
        f"| {own['on_demand'] / 1024:.0f} MB |"
        for key, own in cells.found.items()
        if key.startswith("memory")
    ]
    told = "Most memory of a process that answers POPE, beyond what one answer needs:"
    head = ["| strategy | always | on demand |", "|---|---|---|"]
    text += [told, "", *head, *sizes] if sizes else ["Not measured yet (`--memory`)."]
    return "\n".join(text) + "\n"


def _both(ratio: Sequence[float]) -> str:
    return f"{ratio[0]:.2f} ({ratio[1]:.2f})"


def _keyed(cells: Cells, name: str) -> Iterator[tuple[Any, ...]]:
    for key, own in cells.found.items():
        if key.startswith(f"{name} | "):
            yield (*key.split(" | ")[1:], own)


def main() -> None:
    """Measure what is not there yet, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["testbed"])
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 4, 16, 32])
    parser.add_argument("--strategy", nargs="+", default=SPECS)
    parser.add_argument("--kind", nargs="+", choices=("POPE", "captions"))
    parser.add_argument("--answers", type=int, default=16, help="captions; POPE has three times")
    parser.add_argument("--tokens", type=int, default=48, help="of a caption")
    parser.add_argument("--decided", nargs="+", type=float, default=[0.58])
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--policy", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--page", action="store_true", help="of what is there, measure nothing")
    parser.add_argument("--cells", type=Path, default=Path("runs/on_demand.jsonl"))
    args = parser.parse_args()
    cells = Cells(args.cells)
    if not args.page:
        (memory if args.memory else measure)(cells, args)
    PAGE.write_text(page(cells), encoding="utf-8")


if __name__ == "__main__":
    main()
