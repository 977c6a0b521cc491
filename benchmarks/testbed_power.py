"""What the testbed can find: effects of known size, planted in its model's own answers.

    .venv/bin/python benchmarks/testbed_power.py [--model FOLDER] [--pictures 200] [--rounds 100]
        [--card MODEL_CARD.md]

The model answers POPE's adversarial questions and describes, greedily and once. Then made-up
strategies change these answers by a known amount: one lowers the yes of absent partners (the
usual companions of what is in the picture), as a method that works would; others only shift all
answers, only name fewer things, only shorten, only repeat. Every round draws pictures with
replacement and asks `compare` with all its controls; found is what the verdict lets stand. Writes
benchmarks/testbed_power.md, and the shares that stand into the model's card; an interrupted run of
the model is resumed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np

import halludecode as hd
from halludecode.evals.results.build import arrange
from halludecode.evals.results.paired import differences
from halludecode.evals.results.verdict import STANDS, verdict
from halludecode.evals.runner.run import run_eval
from halludecode.evals.statistics import intervals as stats
from halludecode.testbed.categories import NAMES, PARTNERS
from halludecode.testbed.phrases import plural

SPLITS = ("iid", "broken")
SIZES = (200, 500, 2000)
RECIPE = {"chair": {"family": "pattern", "gt_family": "pattern", "path": "tables"}}
GREEDY = "greedy"
Line = Mapping[str, Any]
Draw = np.random.Generator

_WORDS = {plural(name): name for name in NAMES} | {name: name for name in NAMES}
_NAMED = re.compile(r"\b(" + "|".join(sorted(_WORDS, key=lambda w: -len(w))) + r")\b")
_ASKED = re.compile(r"Is there an? (.+) in the image\?")


@dataclass(frozen=True)
class Planted:
    """A made-up strategy.

    Args:
        told: What it does.
        true: Whether it does better by the picture, so that it is to be found.
        task: ``pope`` or ``chair``.
        change: Draws, the line and the objects of its picture, to the changed line.
    """

    told: str
    true: bool
    task: str
    change: Callable[[Draw, Line, frozenset[str]], Line]


def lacking(name: str, present: frozenset[str]) -> bool:
    """Whether a thing is not there and something that it usually goes with is."""
    return name not in present and any(PARTNERS.get(thing) == name for thing in present)


# Questions ---------------------------------------------------------------------------------------


def moved(line: Line, by: float) -> Line:
    """The answer with so much more of yes than of no."""
    margin = line["margin"] + by
    word = "yes" if margin > 0 else "no"
    right = int(word == line["label"])
    return {**line, "margin": margin, "answer": word, "parsed": word, "score": right}


def lowered(by: float) -> Callable[[Draw, Line, frozenset[str]], Line]:
    """Lowers the yes of absent partners."""

    def change(rng: Draw, line: Line, present: frozenset[str]) -> Line:
        asked = _ASKED.match(line["prompt"])
        return moved(line, -by if asked and lacking(asked[1], present) else 0.0)

    return change


def shifted(by: float, noise: float = 0.0) -> Callable[[Draw, Line, frozenset[str]], Line]:
    """Shifts every answer, whatever is asked, and may add noise."""
    return lambda rng, line, present: moved(line, by + noise * rng.normal())


# Captions ----------------------------------------------------------------------------------------


def unnamed(share: float, partners: bool) -> Callable[[Draw, Line, frozenset[str]], Line]:
    """Says "thing" for a share of what is named: for absent partners, or for anything."""

    def change(rng: Draw, line: Line, present: frozenset[str]) -> Line:
        def word(match: re.Match[str]) -> str:
            meant = lacking(_WORDS[match[1]], present) if partners else True
            return "thing" if meant and rng.random() < share else match[1]

        return {**line, "answer": _NAMED.sub(word, line["answer"])}

    return change


def sentences(times: int) -> Callable[[Draw, Line, frozenset[str]], Line]:
    """Says the last of several sentences so many times."""

    def change(rng: Draw, line: Line, present: frozenset[str]) -> Line:
        *most, last = re.findall(r"[^.]+\.?", line["answer"])
        return {**line, "answer": "".join([*most, *[last] * times]) if most else line["answer"]}

    return change


PLANTED = (
    Planted("yes of absent partners lowered by 0.5", True, "pope", lowered(0.5)),
    Planted("yes of absent partners lowered by 1", True, "pope", lowered(1.0)),
    Planted("yes of absent partners lowered by 2", True, "pope", lowered(2.0)),
    Planted("every yes lowered by 1", False, "pope", shifted(-1.0)),
    Planted("every yes raised by 1", False, "pope", shifted(1.0)),
    Planted("noise of deviation 0.5", False, "pope", shifted(0.0, 0.5)),
    Planted("a quarter of absent partners left unnamed", True, "chair", unnamed(0.25, True)),
    Planted("half of absent partners left unnamed", True, "chair", unnamed(0.5, True)),
    Planted("all absent partners left unnamed", True, "chair", unnamed(1.0, True)),
    Planted("a tenth of everything left unnamed", False, "chair", unnamed(0.1, False)),
    Planted("the last sentence left out", False, "chair", sentences(0)),
    Planted("the last sentence said twice", False, "chair", sentences(2)),
)
METRIC = {"pope": "accuracy", "chair": "chair_i"}


# Rounds ------------------------------------------------------------------------------------------


def answers(model: str, split: str, count: int, out: Path) -> dict[str, list[Line]]:
    """Greedy's lines by picture."""
    run_eval(
        lambda: hd.load(model),
        tasks=["pope", "chair"],
        strategies=[GREEDY],
        data=[f"testbed-{split}"],
        pope_splits=["adversarial"],
        limit=count,
        testbed_images=count,
        prompt_preset="testbed",
        output=out,
    )
    by_picture: dict[str, list[Line]] = {}
    for text in (out / "samples.jsonl").read_text("utf-8").splitlines():
        line = json.loads(text)
        by_picture.setdefault(line["image"], []).append(line)
    return by_picture


def sides(
    rng: Draw, pool: Mapping[str, Sequence[Line]], pictures: Sequence[str], planted: Planted
) -> Iterator[Line]:
    """Greedy's lines and the planted strategy's, of pictures that may come more than once."""
    for number, name in enumerate(pictures):
        present = frozenset(next(x["objects"] for x in pool[name] if x["task"] == "chair"))
        for line in pool[name]:
            if line["task"] == planted.task:
                own = {**line, "image": f"{number}", "id": f"{number}-{line['id']}"}
                yield own
                yield {**planted.change(rng, own, present), "strategy": planted.told}


def asked(lines: Iterator[Line], planted: Planted, seed: int = 0) -> tuple[float, bool, bool]:
    """The difference in points, whether it is clear and for the better, and whether it stands."""
    (group,) = arrange(lines, RECIPE).values()
    (gap, *_) = differences(group, [planted.told], GREEDY, seed)
    metric = METRIC[planted.task]
    difference = gap["metrics"][metric]
    better = stats.excludes_zero(difference) and (difference["value"] < 0) == (metric == "chair_i")
    return 100 * difference["value"], better, verdict(gap, metric) == STANDS


def rounds_of(rounds: int, count: int) -> int:
    """Rounds of so many pictures: a large draw differs less from the next, and costs more."""
    return max(1, round(rounds * (SIZES[0] / count) ** 0.5))


def row(
    pool: Mapping[str, Sequence[Line]], planted: Planted, rounds: int, sizes: Sequence[int]
) -> list[str]:
    """Cells of one made-up strategy: its size on the whole pool, and shares by number of pictures.

    Args:
        pool: Greedy's lines by picture.
        planted: What is planted.
        rounds: How often 200 pictures are drawn; more of them less often.
        sizes: How many.
    """
    names = sorted(pool)
    size, _, _ = asked(sides(np.random.default_rng(0), pool, names, planted), planted)
    cells = [f"{size:+.1f}"]
    for count in sizes:
        found = []
        times = rounds_of(rounds, count)
        for number in range(times):
            rng = np.random.default_rng([number, count])
            drawn = rng.choice(names, count).tolist()
            found.append(asked(sides(rng, pool, drawn, planted), planted)[1:])
        plain, standing = (sum(each) for each in zip(*found, strict=True))
        low, high = stats.wilson_interval(standing, times)
        cells.append(f"{plain / times:.0%}, {standing / times:.0%} [{low:.0%}, {high:.0%}]")
    return cells


def page(
    pools: Mapping[str, Mapping[str, Sequence[Line]]],
    rounds: int,
    sizes: Sequence[int] = SIZES,
    strategies: Sequence[Planted] = PLANTED,
) -> str:
    """The whole page."""
    count = len(next(iter(pools.values())))
    parts = [
        "# What the testbed can find",
        "Written by `benchmarks/testbed_power.py`; do not edit.",
        f"Made-up strategies change greedy's own answers on {count} pictures a split by a known "
        f"amount. Each round draws so many pictures with replacement "
        f"({', '.join(f'{n:,}: {rounds_of(rounds, n)} rounds' for n in sizes)}). Two shares of "
        "rounds: a plain 95 % interval is clear of zero for the better, then the whole verdict of "
        "`compare` with its controls lets the gain stand (Wilson's interval behind). Where it "
        "helps by the picture, more is better; else every round is a false alarm. POPE: accuracy, "
        "adversarial. CHAIR_i: smaller is better.",
    ]
    for split, pool in pools.items():
        head = ["planted", "metric", "size", "to be found", *(f"{n:,} pictures" for n in sizes)]
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for planted in strategies:
            size, *shares = row(pool, planted, rounds, sizes)
            truth = "yes" if planted.true else "no"
            cells = [planted.told, METRIC[planted.task], size, truth, *shares]
            lines.append("| " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
        parts += [f"## {split}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


# The card ----------------------------------------------------------------------------------------

MARKED = re.compile(r"(<!-- power:begin -->\n).*?(<!-- power:end -->)", re.DOTALL)


def told_in_card(page: str) -> str:
    """The page in short: which share of rounds the verdict lets stand, one line per effect."""
    splits: dict[str, dict[str, list[str]]] = {}
    for part in page.split("\n## ")[1:]:
        split, *lines = part.splitlines()
        rows = [[cell.strip() for cell in x.strip("|").split("|")] for x in lines if "|" in x]
        counts = rows[0][4:]
        splits[split] = {row[0]: row[2:] for row in rows[2:]}
    head = ["planted", "to be found"]
    head += [f"{split}: {what}" for split in splits for what in ("size", *counts)]
    table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for planted, (_, truth, *_) in next(iter(splits.values())).items():
        cells = [planted, truth]
        for rows in splits.values():
            size, _, *shares = rows[planted]
            cells += [size, *(share.split()[1] for share in shares)]
        table.append("| " + " | ".join(cells) + " |")
    return (
        "Effects of known size (points of POPE adversarial or CHAIR_i), planted in greedy's own "
        "answers, and the\nshare of rounds in which the verdict of `compare` lets them stand as a "
        "gain. Where nothing is to be found it is\nthe share of false alarms. Intervals: "
        "`benchmarks/testbed_power.md`.\n\n" + "\n".join(table) + "\n"
    )


def write_card(card: Path, page: str) -> None:
    """Puts the page's short form between the marks of a model card."""
    old = card.read_text("utf-8")
    card.write_text(MARKED.sub(lambda m: m[1] + told_in_card(page) + m[2], old), encoding="utf-8")


def main() -> None:
    """Ask the model, plant, draw, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="testbed")
    parser.add_argument("--pictures", type=int, default=200, help="pictures a split in the pool")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--runs", type=Path, default=Path("testbed-power"), help="the model's runs")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--card", type=Path, help="a model card to write the shares into")
    args = parser.parse_args()
    pools = {
        split: answers(args.model, split, args.pictures, args.runs / split) for split in SPLITS
    }
    text = page(pools, args.rounds)
    args.output.write_text(text, encoding="utf-8")
    if args.card:
        write_card(args.card, text)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
