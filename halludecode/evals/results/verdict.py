"""What is left of one metric's difference once every control has had its say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.results import broken_text, detection, object_control
from halludecode.evals.results.length_control import VERDICTS as LENGTH
from halludecode.evals.results.yes_ratio import SHIFT
from halludecode.evals.results.yes_ratio import VERDICTS as YES_RATIO
from halludecode.evals.statistics.intervals import excludes_zero

NONE, WORSE, CHANGED, STANDS = "no clear difference", "worse", "changed", "stands"
# What takes a gain away: it vanishes under a control, or turns round.
_LOST = {
    "length": (LENGTH["only"], LENGTH["reversed"]),
    "objects": (object_control.VERDICTS["only"], object_control.VERDICTS["reversed"]),
    "d_prime": (detection.VERDICTS["only"], detection.VERDICTS["reversed"]),
}


def verdict(gap: Mapping[str, Any], name: str) -> str:
    """One phrase for a metric.

    Args:
        gap: An entry of `paired.differences`.
        name: The metric.

    Returns:
        ``no clear difference``, ``worse``, ``changed`` (where neither way is better), ``stands``,
        why it cannot be told, or the controls that take a gain away, joined by "; ". An interval
        that holds zero proves no absence: what is taken away is not shown by these answers.
    """
    difference, metric = gap["metrics"][name], benchmark_named(gap["task"]).metric(name)
    if not excludes_zero(difference):
        return NONE
    if metric.lower_is_better is None:
        return CHANGED
    if (difference["value"] < 0) != metric.lower_is_better:
        return WORSE
    if lost := broken_text.lost(gap.get("controls", {})):
        return lost
    return "; ".join(_taken(gap.get("controls", {}), name, metric.control)) or STANDS


def _taken(controls: Mapping[str, Any], name: str, control: str | None) -> Iterator[str]:
    for kind in ("length", "objects"):
        said = controls.get(kind, {}).get("matched", {}).get("verdict", {}).get(name, "")
        if said in _LOST[kind]:
            yield said
    if control == "yes_ratio":
        said = controls.get("yes_ratio", {}).get("verdict", "")
        if said.startswith(SHIFT) or said == YES_RATIO["reversed"]:
            yield said
        if (said := controls.get("d_prime", {}).get("verdict", "")) in _LOST["d_prime"]:
            yield said
