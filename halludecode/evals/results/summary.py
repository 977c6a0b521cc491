"""Which strategy, by how much, and is that sure: one line for each headline of a task.

Of a benchmark with splits the mean speaks. The verdict is that of `verdict`: what is left of a
difference once every control has had its say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from halludecode.evals.benchmarks.base import Metric
from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.results import control_text
from halludecode.evals.results.sections import MEAN, gap_text, value_text
from halludecode.evals.results.verdict import CHANGED, NONE, STANDS, WORSE, verdict

if TYPE_CHECKING:
    from rich.table import Table

ALPHA = 0.05


@dataclass(frozen=True)
class Line:
    """One strategy's difference in one headline.

    Args:
        task: The benchmark.
        data: The source.
        split: "mean" of several, else the only one.
        strategy: Its short name.
        baseline: That of what it is held against.
        metric: The headline.
        gap: Both values, the difference with its interval, ``p`` and ``p_holm``.
        verdict: What is left of it, see `verdict.verdict`.
        n: Samples.
    """

    task: str
    data: str
    split: str | None
    strategy: str
    baseline: str
    metric: Metric
    gap: Mapping[str, Any]
    verdict: str
    n: int

    @property
    def sure(self) -> bool:
        """Better, under every control, and after correction for several strategies."""
        return self.verdict == STANDS and self.gap["p_holm"] < ALPHA

    @property
    def gain(self) -> float:
        """The difference, larger is better."""
        return -self.gap["value"] if self.metric.lower_is_better else self.gap["value"]

    @property
    def shown(self) -> str:
        """The difference with its interval."""
        return gap_text(self.gap, self.metric.scale, self.metric.digits)


def fixed_answers(gaps: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> list[str]:
    """What answers get that are the same within a pair, a sentence a task, source and split."""
    found = []
    for gap in gaps:
        fixed = gap.get("controls", {}).get("fixed", {})
        data = f"{gap['data']}, {gap['split']}" if gap["split"] else gap["data"]
        sides = [{**gap, "data": data, "strategy": gap[k], **v} for k, v in fixed.items()]
        found += control_text.fixed_answers(sides, labels)
    return found


def lines(gaps: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> list[Line]:
    """All headlines of some differences, those of one task and source together.

    Args:
        gaps: Entries as `paired.differences` makes them.
        labels: Canonical strategy to a shorter name.
    """
    meant = {_pair(gap) for gap in gaps if gap["split"] == MEAN}
    whole = [gap for gap in gaps if gap["split"] == MEAN or _pair(gap) not in meant]
    found: list[Line] = []
    for gap in whole:
        benchmark = benchmark_named(gap["task"])
        names = benchmark.headlines() or tuple(gap["metrics"])[:1]
        said = {name: verdict(gap, name) for name in names if name in gap["metrics"]}
        sides = (labels.get(gap[k], gap[k]) for k in ("strategy", "baseline"))
        where = (gap["task"], gap["data"], gap["split"], *sides)
        for name in said:
            metric, d = benchmark.metric(name), gap["metrics"][name]
            found.append(Line(*where, metric, d, _left(said, name, benchmark), gap["n"]))
    places = list(dict.fromkeys((line.task, line.data, line.split) for line in found))
    return sorted(found, key=lambda line: places.index((line.task, line.data, line.split)))


def _left(said: Mapping[str, str], name: str, benchmark: Any) -> str:
    """A metric's verdict; one without a control of its own answers for those beside it, too."""
    if said[name] == STANDS and benchmark.metric(name).control is None:
        for other, verdict_of_other in said.items():
            if verdict_of_other not in (NONE, WORSE, CHANGED, STANDS):
                return f"{benchmark.metric(other).words}: {verdict_of_other}"
    return said[name]


def _pair(gap: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(gap[key] for key in ("task", "data", "strategy", "baseline"))


def answers(found: Sequence[Line]) -> list[tuple[str, str]]:
    """For each headline: what it is, and which strategy is better, by how much, how surely."""
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in found:
        if line.metric.lower_is_better is not None:
            key = (line.task, line.data, line.split, line.metric.name, line.baseline)
            groups.setdefault(key, []).append(line)
    return [(_where(group[0]), _answer(group)) for group in groups.values()]


def _where(line: Line) -> str:
    split = f", {line.split}" if line.split and line.split != MEAN else ""
    return f"{line.task.upper()} on {line.data}{split}: {line.metric.words}"


def _answer(group: Sequence[Line]) -> str:
    best = max(group, key=lambda line: (line.sure, line.gain))
    over, p = best.baseline, f"p {best.gap['p_holm']:.2g}"
    if best.sure:
        others = [line.strategy for line in group if line.sure and line is not best]
        also = f" Also better: {', '.join(others)}." if others else ""
        held = "it stands under its controls" if best.metric.control else "no control speaks of it"
        return f"{best.strategy}, by {best.shown} over {over}; sure: {p} (Holm), {held}.{also}"
    if best.gain <= 0:
        return f"None is better than {over}."
    why = best.verdict if best.verdict != STANDS else f"{p} after Holm"
    return f"None is surely better than {over}. Nearest: {best.strategy}, {best.shown} ({why})."


def summary_table(found: Sequence[Line]) -> Table:
    """One row for each headline and strategy."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("task", "strategy", "metric"):
        table.add_column(title, overflow="fold")
    for title in ("value [95 %]", "difference [95 %]", "p (Holm)"):
        table.add_column(title, no_wrap=True)
    table.add_column("left after controls", overflow="fold")
    before = None
    for line in found:
        split = f" ({line.split})" if line.split else ""
        where = f"{line.task} {line.data}{split}"
        if before not in (None, where):
            table.add_section()
        name = line.strategy if line.baseline == "greedy" else f"{line.strategy} - {line.baseline}"
        value = value_text(line.gap["strategy"], line.metric)
        p = f"{line.gap['p_holm']:.2g}"
        shown = where if where != before else ""
        table.add_row(shown, name, line.metric.words, value, line.shown, p, line.verdict)
        before = where
    return table
