"""What the numbers of a score hide, said wherever the score is shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from halludecode.evals.benchmarks.base import Benchmark
from halludecode.evals.results.sections import MEAN
from halludecode.evals.statistics.score import Score

FEW = 6  # groups: of five, no test of all on one side has a p below 0.05
Labels = Mapping[str, str]


def hidden(benchmark: Benchmark, score: Score) -> dict[str, Any]:
    """``clusters``, how many groups of answers are resampled, and ``remarks`` if there are any."""
    remarks = list(benchmark.remarks(score))
    shown = {metric.name: metric.words for metric in benchmark.metrics}
    if names := ", ".join(shown[name] for name in score.degenerate if name in shown):
        remarks.append(f"{names}: nothing to divide by, so 0 stands for no value.")
    return {"clusters": len(score.clusters), **({"remarks": remarks} if remarks else {})}


def few(count: int) -> str:
    """What so few pictures (or pairs and sets) mean, as a sentence; "" where they are enough."""
    if count >= FEW:
        return ""
    return (
        f"only {count} {'picture or pair' if count == 1 else 'pictures or pairs'} to resample: "
        "intervals say little, and no difference can be sure."
    )


def of_differences(gaps: Iterable[Mapping[str, Any]], labels: Labels) -> list[str]:
    """Sentences below a comparison, each once, whatever the splits.

    Args:
        gaps: Entries as `paired.differences` makes them.
        labels: Canonical strategy to a shorter name.
    """
    return list(dict.fromkeys(sentence for gap in gaps for sentence in _of_one(gap, labels)))


def _of_one(gap: Mapping[str, Any], labels: Labels) -> Iterator[str]:
    if gap["split"] == MEAN:  # the splits say it
        return
    split = f" ({gap['split']})" if gap["split"] else ""
    where = f"{gap['task']} on {gap['data']}{split}"
    names = {side: labels.get(gap[side], gap[side]) for side in ("strategy", "baseline")}
    if counts := gap.get("left_out"):
        told = ", ".join(f"{counts[side]} of {names[side]}" for side in names)
        yield f"{where}: left out, as only one side answered: {told}."
    for side, remarks in gap.get("remarks", {}).items():
        yield from (f"{names[side]}, {where}: {remark}" for remark in remarks)
    if "clusters" in gap and (sentence := few(gap["clusters"])):
        yield f"{where}: {sentence}"
