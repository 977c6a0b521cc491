"""How often each control raises a false alarm, and how often it finds what is there.

    .venv/bin/python benchmarks/controls.py [--rounds 300]

Made-up answers of two sides whose difference is known: nothing but the trick that a control is
there for (its alarm is then false), or a true gain beside it. Every round draws 200 pictures anew
and asks the control as `compare` does; the resampled pictures are those of one seed. Writes
benchmarks/controls.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np

from halludecode.evals.benchmarks.chair import CHAIR
from halludecode.evals.benchmarks.chair import scoring as chair
from halludecode.evals.benchmarks.chair.object_words import vocabulary
from halludecode.evals.results import broken_text
from halludecode.evals.results.detection import detection
from halludecode.evals.results.length_control import length_control
from halludecode.evals.results.object_control import object_control
from halludecode.evals.results.yes_ratio import yes_ratio
from halludecode.evals.statistics import intervals as stats

PICTURES = 200
QUESTIONS = 6  # a picture
THINGS = tuple(sorted(n for n in set(vocabulary().values()) if n.isalpha() and n != "toilet"))

Found = tuple[bool, bool]  # the difference as it stands leaves out zero; so does the control's
Draw = np.random.Generator


@dataclass(frozen=True)
class Case:
    """One kind of data.

    Args:
        control: The control it is for.
        told: What differs between the sides.
        null: Whether an alarm of the control is false.
        find: One round: whether the plain difference and the control's leave out zero.
    """

    control: str
    told: str
    null: bool
    find: Callable[[Draw], Found]


# Captions -----------------------------------------------------------------------------------------


def caption(rng: Draw, present: list[str], things: int, invented: float, words: int) -> str:
    """A text of at least so many words that names things, each invented with one probability."""
    true = list(rng.permutation(present))
    false = [thing for thing in rng.permutation(THINGS) if thing not in present]
    named = [
        false.pop() if rng.random() < invented or not true else true.pop() for _ in range(things)
    ]
    between = max(1, (words or 8 * things) // things - 1)
    return " ".join(" ".join(["so"] * between + [thing]) for thing in named)


def captions(
    rng: Draw, fewer: int, invented: tuple[float, float], words: int = 0
) -> tuple[Any, Any, Any]:
    """Scores of both sides, the strategy's naming fewer things, and their differences."""
    truth, sides = {}, ({}, {})
    for i in range(PICTURES):
        truth[i] = frozenset(rng.choice(THINGS, 8, replace=False))
        for side, text in enumerate(sides):
            things = max(1, int(rng.integers(3, 7)) - (fewer if side == 0 else 0))
            text[i] = caption(rng, sorted(truth[i]), things, invented[side], words)
    a, b = (chair.score(text, truth, family="pattern") for text in sides)
    return a, b, {name: gap.to_dict() for name, gap in stats.compare(a, b).items()}


def at_objects(
    fewer: int, invented: tuple[float, float], words: int = 0
) -> Callable[[Draw], Found]:
    """CHAIR_s at equally many objects."""

    def find(rng: Draw) -> Found:
        a, b, plain = captions(rng, fewer, invented, words)
        cut = object_control(CHAIR, a, b, plain)["matched"]["metrics"]["chair_s"]
        return stats.excludes_zero(plain["chair_s"]), stats.excludes_zero(cut)

    return find


def at_length(fewer: int, invented: tuple[float, float], words: int = 0) -> Callable[[Draw], Found]:
    """CHAIR_s at equal length."""

    def find(rng: Draw) -> Found:
        a, b, plain = captions(rng, fewer, invented, words)
        cut = length_control(CHAIR, a, b, plain)["matched"]["metrics"]["chair_s"]
        return stats.excludes_zero(plain["chair_s"]), stats.excludes_zero(cut)

    return find


# Answers that are none ----------------------------------------------------------------------------


def repeating(shares: tuple[float, float]) -> Callable[[Draw], Found]:
    """Texts of eight sentences, of which some are said again."""

    def text(rng: Draw, share: float) -> str:
        said: list[str] = []
        for _ in range(8):
            again = said and rng.random() < share
            words = " ".join(f"w{n}" for n in rng.integers(10_000, size=8))
            said.append(said[-1] if again else words)
        return " . ".join(said)

    def find(rng: Draw) -> Found:
        sides = [
            [{"id": i, "image": str(i), "answer": text(rng, s)} for i in range(PICTURES)]
            for s in shares
        ]
        block = broken_text.repetition(CHAIR(), list(zip(*sides, strict=True)))
        return stats.excludes_zero(block["difference"]), block["apart"] is not None

    return find


def leaving(shares: tuple[float, float]) -> Callable[[Draw], Found]:
    """Answers that are empty with some probability."""

    def find(rng: Draw) -> Found:
        empty = [rng.random(PICTURES * QUESTIONS) < share for share in shares]
        pairs = [
            tuple({"answer": "" if x else "Yes"} for x in pair) for pair in zip(*empty, strict=True)
        ]
        block = broken_text.unanswered_counts(pairs)
        return block["p"] < 0.05, block["apart"] is not None

    return find


# Questions ----------------------------------------------------------------------------------------


def questions(
    rng: Draw, gain: float, shift: float, spread: float, margins: bool
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Answers of both sides from normal evidence; half of it is shared between the sides.

    Args:
        rng: Draws.
        gain: Of the strategy in d', over 1.5.
        shift: Of the strategy toward yes.
        spread: Standard deviation where yes is right; 1 where no is.
        margins: Whether the evidence is told.
    """
    pairs = []
    for i in range(PICTURES):
        lean = rng.normal(0, 0.3)  # of a picture: its questions are not independent
        for j in range(QUESTIONS):
            yes = j % 2 == 0
            shared, pair = rng.normal(0, 0.7), []
            for side in (0, 1):
                noise = (shared + rng.normal(0, 0.714) + lean) * (spread if yes else 1.0)
                d = 1.5 + (gain if side == 0 else 0.0)
                margin = (d / 2 if yes else -d / 2) + noise - 0.3 + (shift if side == 0 else 0.0)
                line = {"id": i * QUESTIONS + j, "task": "pope", "image": str(i)}
                line |= {"label": "yes" if yes else "no", "parsed": "yes" if margin > 0 else "no"}
                pair.append({**line, "margin": float(margin) if margins else None})
            pairs.append((pair[0], pair[1]))
    return pairs


def by_d_prime(gain: float, shift: float, spread: float = 1.0) -> Callable[[Draw], Found]:
    """Sensitivity d' of answers without margins."""

    def find(rng: Draw) -> Found:
        block = detection({None: questions(rng, gain, shift, spread, False)}, {})[None]["metrics"]
        moved = block["criterion"]
        return stats.excludes_zero(moved), stats.excludes_zero(block["d_prime"])

    return find


def by_margins(gain: float, shift: float, spread: float = 1.0) -> Callable[[Draw], Found]:
    """Accuracy at the baseline's yes-ratio."""

    def find(rng: Draw) -> Found:
        block = yes_ratio({None: questions(rng, gain, shift, spread, True)}, sampled=True)[None]
        return stats.excludes_zero(block["plain"]), stats.excludes_zero(block["difference"])

    return find


FEWER, MORE = (0.2, 0.2), (0.1, 0.2)  # how often either side's things are invented
CASES = (
    Case("equal length", "one thing fewer", True, at_length(1, FEWER)),
    Case("equal length", "two things fewer in as many words", True, at_length(2, FEWER, 60)),
    Case("equal length", "one thing fewer, invented half as often", False, at_length(1, MORE)),
    Case("equal objects", "one thing fewer", True, at_objects(1, FEWER)),
    Case("equal objects", "two things fewer in as many words", True, at_objects(2, FEWER, 60)),
    Case("equal objects", "one thing fewer, invented half as often", False, at_objects(1, MORE)),
    Case("repetition", "both say 2 % again", True, repeating((0.02, 0.02))),
    Case("repetition", "both say 20 % again", True, repeating((0.2, 0.2))),
    Case("repetition", "one says 20 % again, the other 2 %", False, repeating((0.2, 0.02))),
    Case("unanswered", "both leave 2 % empty", True, leaving((0.02, 0.02))),
    Case("unanswered", "one leaves 4 % empty, the other 1 %", False, leaving((0.04, 0.01))),
    Case("yes-ratio (margins)", "a shift toward yes", True, by_margins(0.0, 0.3)),
    Case("yes-ratio (margins)", "a shift, and d' 0.3 higher", False, by_margins(0.3, 0.3)),
    Case("d'", "a shift toward yes", True, by_d_prime(0.0, 0.3)),
    Case("d'", "a shift, and d' 0.3 higher", False, by_d_prime(0.3, 0.3)),
    Case("d'", "a shift; evidence for yes varies more (1.5 to 1)", True, by_d_prime(0.0, 0.6, 1.5)),
)


# The page -----------------------------------------------------------------------------------------


def rates(rounds: int, cases: tuple[Case, ...] = CASES) -> Iterator[tuple[Case, float, float]]:
    """Shares of rounds in which the plain difference, and the control's, leaves out zero.

    Args:
        rounds: How often each case is drawn.
        cases: Which.
    """
    for number, case in enumerate(cases):
        draws = (np.random.default_rng([number, n]) for n in range(rounds))
        found = np.array([case.find(rng) for rng in draws])
        yield case, float(found[:, 0].mean()), float(found[:, 1].mean())


def page(rounds: int) -> str:
    """The whole page."""
    head = ["control", "what differs", "a true difference", "without the control", "with it"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for case, plain, controlled in rates(rounds):
        low, high = stats.wilson_interval(round(controlled * rounds), rounds)
        shown = f"{controlled:.1%} [{low:.1%}, {high:.1%}]"
        truth = "no" if case.null else "yes"
        lines.append(f"| {case.control} | {case.told} | {truth} | {plain:.1%} | {shown} |")
    parts = [
        "# Controls on data with a known truth",
        f"Made by `python benchmarks/controls.py --rounds {rounds}`; do not edit.",
        f"Share of {rounds} rounds of {PICTURES} pictures in which a difference is found: its 95 % "
        "interval leaves out zero (of repetition and unanswered answers: one side is called "
        "apart), with Wilson's interval. Where nothing but the trick differs, 5 % or less is right "
        "with the control; where a true difference is there, more is better. *Without the "
        "control*: the plain difference of CHAIR_s or accuracy; of d' the criterion's; of "
        "repetition and unanswered answers the interval and McNemar's p alone.",
        "\n".join(lines),
        "Equal length does not see a text that names fewer things in as many words, equal objects "
        "does. The last row of d' is why it is called parametric: where evidence for yes varies "
        "more than for no, a mere shift moves d'. Margins need no such assumption.",
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Draw, ask, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    place = Path(__file__).with_suffix(".md")
    parser.add_argument("--output", type=Path, default=place)
    args = parser.parse_args()
    args.output.write_text(page(args.rounds), encoding="utf-8")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
