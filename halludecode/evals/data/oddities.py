"""What is odd in a data set: questions asked twice, some with another right answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from halludecode.evals.data.samples import EvalUnit, Sample

REPEATED, CONTRADICTORY = "repeated", "contradictory"


def oddities(asked: Iterable[tuple[str, Sample]]) -> dict[str, int]:
    """How often the same is asked again of the same pictures; {} where nothing is odd.

    Args:
        asked: The words of every question as a model gets them, options and context included, and
            the sample.

    Returns:
        `REPEATED` counts questions that were asked before, `CONTRADICTORY` those of them that have
        another right answer than the first time. Both stay in and are scored as the data have them.
    """
    first: dict[Any, Any] = {}
    repeated = contradictory = 0
    for words, sample in asked:
        truth = (sample.label, sample.objects)
        seen = first.setdefault((sample.image, sample.more, words), (sample, truth))
        if seen[0] is not sample:
            repeated += 1
            contradictory += seen[1] != truth
    found = {REPEATED: repeated, CONTRADICTORY: contradictory}
    return {name: n for name, n in found.items() if n}


def odd_units(units: Iterable[EvalUnit]) -> tuple[str, ...]:
    """What is odd in each unit, in words."""
    return tuple(_sentence(unit) for unit in units if unit.oddities)


def _sentence(unit: EvalUnit) -> str:
    what = ", ".join(filter(None, (unit.benchmark.title or unit.task, unit.data, unit.split)))
    again, other = unit.oddities[REPEATED], unit.oddities.get(CONTRADICTORY, 0)
    return (
        f"{what}: {again} of {len(unit.samples)} questions ask again what was asked of the same "
        f"picture, {other} of these with another right answer; all are scored as the data have "
        "them."
    )
