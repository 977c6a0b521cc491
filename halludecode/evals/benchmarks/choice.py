"""Benchmarks of multiple choice: options under letters, and whether their order decides.

A model that likes the letter A is right wherever A is. So every benchmark of this kind tells how
often the first letter was chosen, and how far the recalls of the letters are apart (``order_bias``,
their standard deviation: RStd of Zheng et al., arXiv:2309.03882); and where the options are at
hand, ``rotate=true`` asks every question once for each rotation of them, so that a right answer
stands under every letter, and ``every_order`` counts the questions that are right in all.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from halludecode.core.errors import InvalidData
from halludecode.core.params import param
from halludecode.evals.benchmarks.base import Benchmark, Metric
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Sums, ratio

LETTERS = string.ascii_uppercase
FIRST_OPTION = Metric(
    "first_option", "first option %", lower_is_better=None, axis="share of answers that are A, %"
)
ORDER_BIAS = Metric("order_bias", "order bias, points", lower_is_better=True, short="order bias")


def choice_counts(parsed: str, label: str) -> dict[str, float]:
    """What one answer adds to the sums of `choice_rates`.

    Args:
        parsed: The letter it is read as, or ``other``.
        label: The right letter.
    """
    return {
        "asked": 1.0,
        "right": float(parsed == label),
        "first": float(parsed == LETTERS[0]),
        f"asked.{label}": 1.0,
        f"right.{label}": float(parsed == label),
    }


def choice_rates(s: Sums) -> dict[str, np.ndarray]:
    """Accuracy, the share of answers that are A, and the standard deviation of letters' recalls."""
    labels = sorted(name.removeprefix("asked.") for name in s if name.startswith("asked."))
    recalls = np.stack([ratio(s[f"right.{label}"], s[f"asked.{label}"]) for label in labels])
    return {
        "accuracy": ratio(s["right"], s["asked"]),
        "first_option": ratio(s["first"], s["asked"]),
        # NaN where a letter is never right: what is left has been asked of other letters alone.
        "order_bias": np.std(recalls, axis=0),
    }


def rotations(sample: Sample, options: Sequence[str], orders: int | None = None) -> list[Sample]:
    """The sample once for every rotation of its options, under letters.

    Args:
        sample: Its label is the letter of the right one of ``options``.
        options: As the data have them.
        orders: How many; None is all.

    Returns:
        Samples whose facts hold ``options`` and ``order``, the place of the first of them in the
        data; the first sample has the data's order and keeps its id.

    Raises:
        InvalidData: The label is no letter of an option.
    """
    known = LETTERS[: len(options)]
    if str(sample.label) not in tuple(known):
        raise InvalidData(
            f"{sample.where}: answer {sample.label!r} is no letter of its {len(options)} options, "
            f"{known[:1]} to {known[-1:]}."
        )
    right = known.index(str(sample.label))
    made = []
    for order in range(len(options) if orders is None else orders):
        shown = [*options[order:], *options[:order]]
        made.append(
            replace(
                sample,
                id=f"{sample.id} order {order}" if order else sample.id,
                label=LETTERS[(right - order) % len(options)],
                facts={**sample.facts, "options": shown, "order": order},
            )
        )
    return made


def lettered(options: Sequence[str]) -> str:
    """A line per option: ``A. text``."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))


@dataclass(frozen=True)
class ChoiceBenchmark(Benchmark):
    """Base of benchmarks of multiple choice; `read` gives samples of `rotations`."""

    rotate: bool = param(False, "Ask every question once for each rotation of its options.")

    text_kind = "choice"
    wording = "own"
    tells_unparsed = True
    more_metrics = (FIRST_OPTION, ORDER_BIAS)

    def orders(self, sample: Sample, options: Sequence[str]) -> list[Sample]:
        """The sample in the data's order of options, or in all of them."""
        return rotations(sample, options, None if self.rotate else 1)

    def words(self, kind: str) -> tuple[str, ...]:
        """Letters may be more than two."""
        return ()

    @classmethod
    def choices(cls, line: Mapping[str, Any]) -> tuple[str, ...]:
        """A letter for every option."""
        return tuple(LETTERS[: len(line["options"])])
