"""What the controls of a difference say, in words for tables and pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from halludecode.evals.benchmarks.base import Benchmark, Metric
from halludecode.evals.benchmarks.fixed_answers import COPIED
from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.results.controls import GREEDY
from halludecode.evals.results.length_control import ALIKE
from halludecode.evals.results.length_control import VERDICTS as LENGTH
from halludecode.evals.results.yes_ratio import SHIFT

Gap = Mapping[str, Any]
Labels = Mapping[str, str]
Write = Callable[[Mapping[str, float], float], str]  # a difference and its scale

# In a cell, before the difference under the control of its metric.
SIGNS: Mapping[str | None, str] = MappingProxyType({"yes_ratio": "=yes", "length": "=len"})
UNDECLARED = 3  # metrics told of a benchmark without headlines; the rest is in the JSON


def matched(gap: Gap, metric: Metric) -> Mapping[str, float] | None:
    """The difference under the control that a metric must be read with; None without one."""
    controls = gap.get("controls", {})
    if metric.control == "yes_ratio":
        return controls.get("yes_ratio", {}).get("difference")
    if metric.control == "length":
        return controls.get("length", {}).get("matched", {}).get("metrics", {}).get(metric.name)
    return None


def rival(gap: Gap | None, control: str) -> Mapping[str, Any] | None:
    """The entry of one sampling control beside a difference."""
    entries = (gap or {}).get("controls", {}).get("sampling", {}).get("against", ())
    return next((entry for entry in entries if entry["control"] == control), None)


def rivals(gaps: Mapping[Any, Gap]) -> list[tuple[str, str]]:
    """(strategy, control) of everything that must be read against a sampling control."""
    pairs = (
        (gap["strategy"], entry["control"])
        for gap in gaps.values()
        for entry in gap.get("controls", {}).get("sampling", {}).get("against", ())
    )
    return list(dict.fromkeys(pairs))


def legend(gaps: Sequence[Gap]) -> list[str]:
    """What the lines of controls mean, and what they came to, for the tables of a run."""
    sentences = []
    if any("yes_ratio" in gap.get("controls", {}) for gap in gaps):
        sentences.append(
            "=yes: accuracy difference with the yes-no margins cut where greedy's yes-ratio is met."
        )
    if any("length" in gap.get("controls", {}) for gap in gaps):
        sentences.append("=len: difference with both captions of a picture cut to the shorter one.")
    return [*sentences, *general(gaps)]


def general(gaps: Sequence[Gap]) -> list[str]:
    """Sentences that hold for all differences alike, once each."""
    notes = (gap.get("controls", {}).get("sampling", {}).get("note") for gap in gaps)
    return [GREEDY] if GREEDY in notes else []


def verdicts(gaps: Iterable[Gap], labels: Labels) -> list[str]:
    """One sentence for every difference that its control takes away or that has no control."""
    splits_of: dict[tuple[str, str], list[str]] = {}
    for gap in gaps:
        name = labels.get(gap["strategy"], gap["strategy"])
        for loss in _losses(gap):
            where = f"{gap['task'].upper()} on {gap['data']}"
            splits_of.setdefault((f"{name}, {where}", loss), []).append(gap["split"] or "")
    return [
        f"{who}{f' ({joined})' if (joined := ', '.join(filter(None, splits))) else ''}: {loss}."
        for (who, loss), splits in splits_of.items()
    ]


def _losses(gap: Gap) -> Iterator[str]:
    controls = gap.get("controls", {})
    if controls.get("sampling", {}).get("against") == []:
        return  # a control itself
    ratio = controls.get("yes_ratio", {})
    if "reason" in ratio:
        yield f"accuracy at greedy's yes-ratio cannot be told, {ratio['reason']}"
    elif ratio.get("verdict", "").startswith(SHIFT):
        yield ratio["verdict"]
    lost = controls.get("length", {}).get("matched", {}).get("verdict", {})
    benchmark = benchmark_named(gap["task"])
    names = [benchmark.metric(m).words for m, verdict in lost.items() if verdict == LENGTH["only"]]
    if names:
        yield f"{' and '.join(names)}: {LENGTH['only']}"
    sampling = controls.get("sampling", {})
    if sampling.get("note") and sampling["note"] != GREEDY:
        yield sampling["note"].rstrip(".")


def sentences(gap: Gap, labels: Labels, write: Write) -> list[str]:
    """All controls of one difference, a line each.

    Args:
        gap: An entry of `paired.differences`.
        labels: Canonical strategy to a shorter name.
        write: Difference with interval as text.
    """
    controls = gap.get("controls", {})
    name, base = (labels.get(gap[side], gap[side]) for side in ("strategy", "baseline"))
    lines = []
    if "yes_ratio" in controls:
        lines.append(_yes_ratio(controls["yes_ratio"], name, base, write))
    if "length" in controls:
        lines += _length(gap, write)
    sides = [{**gap, "strategy": gap[k], **v} for k, v in controls.get("fixed", {}).items()]
    lines += fixed_answers(sides, labels)
    return lines + list(_sampling(gap, labels, write))


def fixed_answers(entries: Sequence[Mapping[str, Any]], labels: Labels) -> Iterator[str]:
    """What answers get that do not change within a pair, a sentence per task and source.

    Args:
        entries: Of ``results.json``, or differences with the block among their controls.
        labels: Canonical strategy to a shorter name.
    """
    told: dict[tuple[str, str], dict[str, str]] = {}
    for entry in entries:
        for name, metrics in entry.get("fixed_answers", {}).items():
            own = name == COPIED
            title = f"{labels.get(entry['strategy'], entry['strategy'])}'s {name}" if own else name
            known = told.setdefault((entry["task"], entry["data"]), {})
            known.setdefault(title, _values(entry["task"], metrics))
    for (task, data), values in told.items():
        chances = [(m.words, m.chance) for m in benchmark_named(task).metrics if m.chance]
        if chances:
            values["guessing"] = ", ".join(f"{words} {chance:g}" for words, chance in chances)
        listed = "; ".join(f"{name}: {text}" for name, text in values.items())
        yield f"{task} on {data}, answers that are the same within a pair: {listed}."


def _values(task: str, metrics: Mapping[str, float]) -> str:
    benchmark = benchmark_named(task)
    shown = [benchmark.metric(name) for name in metrics if name in _columns(benchmark)]
    return ", ".join(f"{m.words} {metrics[m.name] * m.scale:.{m.digits}f}" for m in shown)


def _columns(benchmark: type[Benchmark]) -> set[str]:
    return {metric.name for metric in benchmark.metrics}


def _yes_ratio(block: Mapping[str, Any], name: str, base: str, write: Write) -> str:
    if "reason" in block:
        return f"Yes-ratio control: no number, {block['reason']}."
    ours, theirs = (f"{block[side]['value'] * 100:.1f}" for side in ("accuracy", "baseline"))
    own = f"; at {name}'s own {write(block['own'], 100.0)}" if block.get("own") else ""
    return (
        f"At {base}'s yes-ratio ({block['yes_ratio'] * 100:.1f} %): accuracy {ours} against "
        f"{theirs}, {write(block['difference'], 100.0)}{own}: {block['verdict']}."
    )


def _length(gap: Gap, write: Write) -> Iterator[str]:
    benchmark, block = benchmark_named(gap["task"]), gap["controls"]["length"]
    cut, alike = block["matched"], block["alike"]
    judged = benchmark.controlled_by("length")
    yield f"Both cut to the shorter: {_listed(benchmark, cut, judged, write)}."
    names_of: dict[str, list[str]] = {}
    for name, verdict in cut["verdict"].items():
        names_of.setdefault(verdict, []).append(benchmark.metric(name).words)
    yield "; ".join(f"{', '.join(names)}: {verdict}" for verdict, names in names_of.items()) + "."
    yield (
        f"Lengths within {ALIKE:.0%}: {alike['reason']}."
        if "reason" in alike
        else f"Lengths within {ALIKE:.0%} (n = {alike['n']}): "
        f"{_listed(benchmark, alike, judged, write)}."
    )
    yield from _rates(block["rates"]["metrics"], write)


def _rates(metrics: Mapping[str, Mapping[str, float]], write: Write) -> Iterator[str]:
    """Rates that hang less on length, of those that the benchmark has."""
    titles = (
        ("per_100_words", "hallucinated mentions per 100 words", 1.0),
        ("f1", "F1 of objects", 100.0),
    )
    rates = "; ".join(
        f"{title} {write(metrics[name], scale)}" for name, title, scale in titles if name in metrics
    )
    if rates:
        yield f"{rates[0].upper()}{rates[1:]}."


def _sampling(gap: Gap, labels: Labels, write: Write) -> Iterator[str]:
    block = gap.get("controls", {}).get("sampling", {})
    benchmark = benchmark_named(gap["task"])
    for entry in block.get("against", ()):
        name = labels.get(entry["control"], entry["control"])
        if "reason" in entry:
            yield f"Minus {name}: {entry['reason']}."
        else:
            metrics = benchmark.headlines() or tuple(entry["metrics"])[:UNDECLARED]
            yield f"Minus {name}: {_listed(benchmark, entry, metrics, write)}."
    if (scale := block.get("net_scale")) not in (None, 0, 1):
        yield f"Net scale {scale:g}: as if at temperature T / {scale:g} where its rows agree."
    if block.get("note") and block["note"] != GREEDY:
        yield f"{block['note'][0].upper()}{block['note'][1:].rstrip('.')}."


def _listed(
    benchmark: type[Benchmark], entry: Mapping[str, Any], names: Sequence[str], write: Write
) -> str:
    """Differences of several metrics in one line."""
    metrics = [benchmark.metric(name) for name in names if name in entry["metrics"]]
    return ", ".join(f"{m.words} {write(entry['metrics'][m.name], m.scale)}" for m in metrics)
