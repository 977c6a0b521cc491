"""What rows beside the main one cost where they begin only when a token needs them.

    .venv/bin/python benchmarks/on_demand.py [--model testbed qwen-0.5b] [--streams 1 16] [--out F]

Whole answers under every strategy whose main row can decide a token alone, with ``extra_rows`` both
ways, and greedy's in the same run: processor time as a multiple of greedy's, the share of tokens
that the main row decided, the share of requests whose other rows never began, and answers that
differ (there must be none but ties within rounding). A model with random weights decides nothing,
so its LM head is scaled until the wanted share of tokens is decided at beta = 0.1 (``--decided``);
real models differ, which is why several shares make a curve.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import halludecode as hd
from benchmarks import shapes
from halludecode.core import step as hd_step
from halludecode.testbed import dataset

SPECS = ("vcd", "ritual", "agla", "damro", "m3id", "sid", "pai", "vcd+m3id")
HEADER = (
    "| model | answers | open at a time | strategy | always | on demand | tokens decided "
    "| rows never began | answers that differ |\n|---|---|---|---|---|---|---|---|---|"
)


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
def counted() -> Iterator[Decided]:
    """Counts what the engine decides within this block."""
    found, stock = Decided(), hd_step.decided

    def decided(parts: Any, main: Any) -> Any:
        alone = stock(parts, main)
        found.judged += len(alone)
        found.alone += int(alone.sum())
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


def spent(engine: Any, write: Callable[[], Any]) -> tuple[Any, float]:
    """What is written, and the processor's time for it with nothing remembered of the pictures."""
    engine.clear_caches()
    before = time.process_time()
    made = write()
    return made, time.process_time() - before


def sharpen(engine: Any, share: float) -> float:
    """Scale the LM head until the main row decides this share of a caption's tokens; the factor."""
    weight = engine.model.get_output_embeddings().weight
    sampling = hd.Sampling(max_new_tokens=12, min_new_tokens=12)
    low, high, factor = 1.0, 1024.0, 1.0
    for _ in range(8):
        want = (low * high) ** 0.5
        weight.data.mul_(want / factor)
        factor = want
        with counted() as found:
            engine.generate(captions(2), "vcd", sampling)
        low, high = (want, high) if found.share < share else (low, want)
    return factor


def lines(
    engine: Any,
    name: str,
    kind: str,
    asked: Sequence[hd.Request],
    tokens: int,
    specs: Sequence[str],
) -> Iterator[str]:
    """Rows of the table for one kind of answers."""
    least = 0 if name == "testbed" else tokens
    sampling = hd.Sampling(max_new_tokens=tokens, min_new_tokens=least)
    engine.generate(asked[: engine.batch_size], "greedy", sampling)  # warm
    _, greedy = spent(engine, lambda: engine.generate(asked, "greedy", sampling))
    for spec in specs:
        made, ratio = dict[str, list[hd.Output]](), dict[str, float]()
        alone = 0.0
        for way in ("always", "on_demand"):
            engine.extra_rows = way
            with counted() as found:
                made[way], time_taken = spent(
                    engine, lambda spec=spec: engine.generate(asked, spec, sampling)
                )
            ratio[way], alone = time_taken / greedy, found.share
        pairs = list(zip(made["always"], made["on_demand"], strict=True))
        differ = sum(a.token_ids != b.token_ids for a, b in pairs)
        never = sum(b.rows == ("main",) for _, b in pairs) / len(pairs)
        yield (
            f"| {name} | {kind} | {engine.batch_size} | {spec} | {ratio['always']:.2f} "
            f"| {ratio['on_demand']:.2f} | {alone:.0%} | {never:.0%} "
            f"| {differ} of {len(pairs)} |"
        )


def main() -> None:
    """Print the table, and write it where ``--out`` says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["testbed"])
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--strategy", nargs="+", default=SPECS)
    parser.add_argument("--answers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48, help="of a caption")
    parser.add_argument("--decided", nargs="+", type=float, default=[0.58])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    table = [HEADER]
    for name in args.model:
        for share in args.decided if name in shapes.SHAPES else [0.0]:
            for streams in args.streams:
                engine = shapes.load(name, streams, "cpu")
                if share:
                    sharpen(engine, share)
                kinds = [("captions", captions(args.answers), args.tokens)]
                if not share:
                    kinds.append(("POPE", questions(3 * args.answers), 8))
                for kind, asked, tokens in kinds:
                    for line in lines(engine, name, kind, asked, tokens, args.strategy):
                        table.append(line)
                        print(line, flush=True)
    if args.out:
        command = " ".join(["benchmarks/on_demand.py", *sys.argv[1:]])
        head = f"# Rows on demand\n\nWritten by `{command}`.\n\n"
        args.out.write_text(head + "\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
