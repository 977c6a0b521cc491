"""Which charts a table of the report gets, and the numbers in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from halludecode.evals.benchmarks.chair import length_control as lengths
from halludecode.evals.report import charts, scatter
from halludecode.evals.report import terminal as tables
from halludecode.evals.report.charts import Curve, Panel, Value
from halludecode.evals.report.scatter import Point
from halludecode.evals.results.build import BASELINE, Answers

GUESSING = {"accuracy": 50.0}  # where bars of a metric may start


@dataclass(frozen=True)
class Axis:
    """A metric of ``results.json`` as an axis."""

    metric: str
    title: str
    scale: float = 100.0


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


ACCURACY = Axis("accuracy", "accuracy %, higher is better")
YES = Axis("yes_ratio", "share of answers that are yes, %")
CHAIR = Axis("chair_i", "CHAIR_i %, lower is better")
PAIRS: Sequence[tuple[str, Sequence[tuple[Axis, Axis]], str]] = (
    (
        "Yes-ratio against accuracy",
        ((YES, ACCURACY),),
        "A strategy that moves sideways says yes more or less often than greedy; one that moves up "
        "is right more often. Dotted lines lead to a cross: the accuracy where the strategy's own "
        "margins are cut at greedy's yes-ratio: what is lost on the way is the shift.",
    ),
    (
        "CHAIR against recall and length",
        (
            (Axis("recall", "recall %, higher is better"), CHAIR),
            (Axis("length", "mean length of a caption, tokens", 1.0), CHAIR),
        ),
        "Saying less invents less: a strategy is better when it moves down without moving left.",
    ),
    (
        "CHAIR against cover",
        ((Axis("cover", "cover %, higher is better"), Axis("chair", "CHAIR %, lower is better")),),
        "Saying less invents less: a strategy is better when it moves down without moving left.",
    ),
)


def figures(
    part: tables.Section, named: Mapping[str, str], answers: Answers | None = None
) -> list[Figure]:
    """Bars of every column, then points for the pairs of metrics that must be read together.

    Args:
        part: The table they stand below.
        named: Canonical strategy to a shorter name.
        answers: The answers behind it; captions get a curve over their length from them.
    """
    found = [_bars(part, named)]
    for title, axes, note in PAIRS:
        drawings = [
            _points(part, named, split, across, up, many=len(part.splits) > 1)
            for split in part.splits
            for across, up in axes
        ]
        drawings = [drawing for drawing in drawings if drawing]
        if drawings:
            note += " Thin lines: 95 % intervals. Strategies at one point share a label."
            found.append(Figure(title, drawings, note))
    if answers is not None and part.task == "chair":
        found.append(_curves(answers, part, named))
    return [figure for figure in found if figure.drawings]


def verdict(gap: Mapping[str, float], lower: bool | None) -> str:
    """Says better, worse, changed (where neither is better) or open (the interval holds zero)."""
    if not tables.excludes_zero(gap):
        return "open"
    if lower is None:
        return "changed"
    return "better" if (gap["value"] < 0) == lower else "worse"


def _verdict(
    part: tables.Section, strategy: str, split: str | None, metric: str, lower: bool | None
) -> str:
    if strategy == BASELINE:
        return "baseline"
    gap = part.gaps.get((strategy, split), {}).get("metrics", {}).get(metric)
    return verdict(gap, lower) if gap else "open"


def _value(
    part: tables.Section, strategy: str, split: str | None, metric: str, scale: float
) -> Value | None:
    entry = part.entries.get((strategy, split))
    found = entry["metrics"].get(metric) if entry else None
    return Value(*(found[k] * scale for k in ("value", "low", "high"))) if found else None


def _bars(part: tables.Section, named: Mapping[str, str]) -> Figure:
    rows = part.strategies
    panels = []
    for split, column in part.cells:
        values = [_value(part, s, split, column.metric, column.scale) for s in rows]
        if any(values):
            told = _way(column.lower)
            panels.append(
                Panel(
                    split or column.title,
                    f"{column.title}, {told}"
                    if split and told
                    else column.title
                    if split
                    else told,
                    values,
                    [_verdict(part, s, split, column.metric, column.lower) for s in rows],
                    column.metric,
                    GUESSING.get(column.metric, 0.0),
                )
            )
    label = f"{part.task.upper()} on {part.data}: bars of every strategy with 95 % intervals"
    drawing = charts.bars([named.get(s, s) for s in rows], panels, label)
    start = (
        " Bars start at 50, what guessing gets."
        if any(charts.start(panels, panel.axis) for panel in panels)
        else ""
    )
    note = (
        "Whiskers: 95 % interval over pictures. Dotted line: greedy. Blue ▲ better and orange ▼ "
        "worse than greedy by the paired difference, whose interval is narrower than the "
        f"whiskers suggest; ● changed, grey cannot be told from greedy.{start}"
    )
    return Figure("Values with 95 % intervals", [drawing] if drawing else [], note)


def _way(lower: bool | None) -> str:
    return "" if lower is None else "lower is better" if lower else "higher is better"


def _points(
    part: tables.Section,
    named: Mapping[str, str],
    split: str | None,
    across: Axis,
    up: Axis,
    many: bool,
) -> str:
    lower = up.metric.startswith("chair")
    shown = []
    for strategy in part.strategies:
        x = _value(part, strategy, split, across.metric, across.scale)
        y = _value(part, strategy, split, up.metric, up.scale)
        if x and y:
            said = _verdict(part, strategy, split, up.metric, lower)
            moved = _moved(part, strategy, split) if across is YES else None
            shown.append(Point(named.get(strategy, strategy), x, y, said, moved))
    where = f" ({split})" if split and many else ""
    label = f"{up.title} against {across.title}{where}, every strategy labelled"
    mark = _truth(part, split) if across is YES else None
    return scatter.points(shown, across.title, f"{up.title}{where}", label, mark)


def _moved(part: tables.Section, strategy: str, split: str | None) -> tuple[float, float] | None:
    """Greedy's yes-ratio and the strategy's accuracy there, where the control tells it."""
    gap = part.gaps.get((strategy, split), {})
    control = gap.get("controls", {}).get("yes_ratio", {})
    if not control.get("accuracy") or not any(control["plain"][k] for k in ("low", "high")):
        return None
    return 100 * control["yes_ratio"], 100 * control["accuracy"]["value"]


def _truth(part: tables.Section, split: str | None) -> tuple[float, str] | None:
    """The share of questions whose answer is yes, from precision, recall and the yes-ratio."""
    wanted = [own for own in part.splits if own != "mean"] if split == "mean" else [split]
    found: dict[str | None, float] = {}
    for (_, own), entry in part.entries.items():
        values = {name: interval["value"] for name, interval in entry["metrics"].items()}
        usable = {"precision", "yes_ratio", "recall"} <= values.keys() and values["recall"] > 0
        if own in wanted and own not in found and usable:
            found[own] = values["precision"] * values["yes_ratio"] / values["recall"]
    if not wanted or len(found) < len(wanted):
        return None
    return 100 * sum(found.values()) / len(found), "truly yes"


# Length -----------------------------------------------------------------------------------------


def _curves(answers: Answers, part: tables.Section, named: Mapping[str, str]) -> Figure:
    """CHAIR of captions cut at growing numbers of words."""
    scores = {s: answers.scores(s)[None] for s in part.strategies if answers.lines.get(s)}
    sizes = sorted(len(o["words"]) for score in scores.values() for o in score.outcomes.values())
    if not sizes:
        return Figure("", [], "")
    # Up to where nine of ten captions have ended; beyond, hardly anything changes.
    stops = [round(n) for n in charts.ticks(0, sizes[int(0.9 * (len(sizes) - 1))], 8) if n >= 1]
    shown: dict[str, list[Curve]] = {"chair_i": [], "recall": []}
    for strategy, score in scores.items():
        cut = [(n, lengths.shortened(score, dict.fromkeys(score.outcomes, n))) for n in stops]
        for metric, into in shown.items():
            line = [(float(n), 100 * short.metrics[metric]) for n, short in cut]
            into.append(Curve(named.get(strategy, strategy), line, strategy == BASELINE))
    words = "captions cut after so many words"
    drawings = [
        charts.curves(shown["chair_i"], words, "CHAIR_i %, lower is better", f"CHAIR_i, {words}"),
        charts.curves(shown["recall"], words, "recall %, higher is better", f"recall, {words}"),
    ]
    note = (
        "All captions cut at the same number of words (punctuation counts): where lines run "
        "together, a difference of whole captions is one of length. Captions that end before the "
        "cut stay whole."
    )
    return Figure("CHAIR against the length of the captions", [d for d in drawings if d], note)
