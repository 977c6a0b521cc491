"""Which charts a table of the report gets, and the numbers in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from halludecode.evals.benchmarks.base import Metric, MetricPlot
from halludecode.evals.report import charts, scatter
from halludecode.evals.report.charts import Curve, Panel, Value
from halludecode.evals.report.scatter import Point
from halludecode.evals.results.build import BASELINE, Answers
from halludecode.evals.results.sections import MEAN, Section
from halludecode.evals.statistics.intervals import excludes_zero


@dataclass(frozen=True)
class Figure:
    """One or several drawings under one heading.

    Args:
        title: The heading.
        drawings: SVG.
        note: How to read them.
    """

    title: str
    drawings: Sequence[str]
    note: str


def figures(
    part: Section, named: Mapping[str, str], answers: Answers | None = None
) -> list[Figure]:
    """Bars of every column, then points for the pairs of metrics that must be read together.

    Args:
        part: The table they stand below.
        named: Canonical strategy to a shorter name.
        answers: The answers behind it; captions get a curve over their length from them.
    """
    shown = [_bars(part, named), *(_plot(part, named, plot) for plot in part.benchmark.plots)]
    if answers is not None and part.benchmark.length_curves:
        shown.append(_curves(answers, part, named))
    return [figure for figure in shown if figure.drawings]


def verdict(gap: Mapping[str, float], lower: bool | None) -> str:
    """Says better, worse, changed (where neither is better) or open (the interval holds zero)."""
    if not excludes_zero(gap):
        return "open"
    if lower is None:
        return "changed"
    return "better" if (gap["value"] < 0) == lower else "worse"


def _verdict(part: Section, strategy: str, split: str | None, metric: Metric) -> str:
    if strategy == BASELINE:
        return "baseline"
    gap = part.gaps.get((strategy, split), {}).get("metrics", {}).get(metric.name)
    return verdict(gap, metric.lower_is_better) if gap else "open"


def _value(part: Section, strategy: str, split: str | None, metric: Metric) -> Value | None:
    entry = part.entries.get((strategy, split))
    interval = entry["metrics"].get(metric.name) if entry else None
    if not interval:
        return None
    return Value(*(interval[k] * metric.scale for k in ("value", "low", "high")))


# Bars -------------------------------------------------------------------------------------------


def _bars(part: Section, named: Mapping[str, str]) -> Figure:
    panels = [panel for place in part.cells if (panel := _panel(part, *place))]
    label = f"{part.task.upper()} on {part.data}: bars of every strategy with 95 % intervals"
    drawing = charts.bars([named.get(s, s) for s in part.strategies], panels, label)
    starts = {charts.start(panels, panel.axis) for panel in panels} - {0.0}
    start = "".join(f" Bars start at {value:g}, what guessing gets." for value in sorted(starts))
    note = (
        "Whiskers: 95 % interval over pictures. Dotted line: greedy. Blue ▲ better and orange ▼ "
        "worse than greedy by the paired difference, whose interval is narrower than the "
        f"whiskers suggest; ● changed, grey cannot be told from greedy.{start}"
    )
    return Figure("Values with 95 % intervals", [drawing] if drawing else [], note)


def _panel(part: Section, split: str | None, column: Metric) -> Panel | None:
    values = [_value(part, strategy, split, column) for strategy in part.strategies]
    if not any(values):
        return None
    return Panel(
        split or column.title,
        column.axis_title if split else column.direction,
        values,
        [_verdict(part, strategy, split, column) for strategy in part.strategies],
        column.name,
        column.guessing,
    )


# Points -----------------------------------------------------------------------------------------


def _plot(part: Section, named: Mapping[str, str], plot: MetricPlot) -> Figure:
    """One drawing per split and pair of metrics that has values."""
    metric = part.benchmark.metric
    drawings = [
        _points(part, named, split, metric(across), metric(up))
        for split in part.splits
        for across, up in plot.pairs
    ]
    note = f"{plot.note} Thin lines: 95 % intervals. Strategies at one point share a label."
    return Figure(plot.title, [drawing for drawing in drawings if drawing], note)


def _points(
    part: Section, named: Mapping[str, str], split: str | None, across: Metric, up: Metric
) -> str:
    yes_ratio = up.control == across.name == "yes_ratio"  # the control moves points sideways
    shown = []
    for strategy in part.strategies:
        x, y = _value(part, strategy, split, across), _value(part, strategy, split, up)
        if x and y:
            way = _verdict(part, strategy, split, up)
            moved = _moved(part, strategy, split) if yes_ratio else None
            shown.append(Point(named.get(strategy, strategy), x, y, way, moved))
    where = f" ({split})" if split and len(part.splits) > 1 else ""
    label = f"{up.axis_title} against {across.axis_title}{where}, every strategy labelled"
    mark = _truth(part, split) if yes_ratio else None
    return scatter.points(shown, across.axis_title, f"{up.axis_title}{where}", label, mark)


def _moved(part: Section, strategy: str, split: str | None) -> tuple[float, float] | None:
    """Greedy's yes-ratio and the strategy's accuracy there, where the control tells it."""
    gap = part.gaps.get((strategy, split), {})
    control = gap.get("controls", {}).get("yes_ratio", {})
    if not control.get("accuracy") or not any(control["plain"][k] for k in ("low", "high")):
        return None
    return 100 * control["yes_ratio"], 100 * control["accuracy"]["value"]


def _truth(part: Section, split: str | None) -> tuple[float, str] | None:
    """The share of questions whose answer is yes, from precision, recall and the yes-ratio."""
    splits = [own for own in part.splits if own != MEAN] if split == MEAN else [split]
    shares: dict[str | None, float] = {}
    for (_, own), entry in part.entries.items():
        values = {name: interval["value"] for name, interval in entry["metrics"].items()}
        usable = {"precision", "yes_ratio", "recall"} <= values.keys() and values["recall"] > 0
        if own in splits and own not in shares and usable:
            shares[own] = values["precision"] * values["yes_ratio"] / values["recall"]
    if not splits or len(shares) < len(splits):
        return None
    return 100 * sum(shares.values()) / len(shares), "truly yes"


# Length -----------------------------------------------------------------------------------------


def _curves(answers: Answers, part: Section, named: Mapping[str, str]) -> Figure:
    """Metrics of captions cut at growing numbers of words."""
    benchmark = part.benchmark
    scores = {s: answers.scores(s)[None] for s in part.strategies if answers.lines.get(s)}
    sizes = sorted(len(o["words"]) for score in scores.values() for o in score.outcomes.values())
    if not sizes:
        return Figure("", [], "")
    # Up to where nine of ten captions have ended; beyond, hardly anything changes.
    stops = [round(n) for n in charts.ticks(0, sizes[int(0.9 * (len(sizes) - 1))], 8) if n >= 1]
    metrics = [benchmark.metric(name) for name in benchmark.length_curves]
    curves: dict[str, list[Curve]] = {metric.name: [] for metric in metrics}
    for strategy, score in scores.items():
        cut = [(n, benchmark.shortened(score, dict.fromkeys(score.outcomes, n))) for n in stops]
        for metric in metrics:
            line = [(float(n), metric.scale * short.metrics[metric.name]) for n, short in cut]
            name = named.get(strategy, strategy)
            curves[metric.name].append(Curve(name, line, strategy == BASELINE))
    words = "captions cut after so many words"
    drawings = [
        charts.curves(curves[m.name], words, m.axis_title, f"{m.words}, {words}") for m in metrics
    ]
    note = (
        "All captions cut at the same number of words (punctuation counts): where lines run "
        "together, a difference of whole captions is one of length. Captions that end before the "
        "cut stay whole."
    )
    title = f"{benchmark.title} against the length of the captions"
    return Figure(title, [drawing for drawing in drawings if drawing], note)
