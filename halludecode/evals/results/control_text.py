"""What the controls of a difference say, in words for tables and pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from halludecode.evals.benchmarks.base import Benchmark, Metric
from halludecode.evals.benchmarks.fixed_answers import COPIED
from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.results import detection, object_control, verdict
from halludecode.evals.results.controls import GREEDY
from halludecode.evals.results.length_control import ALIKE
from halludecode.evals.results.length_control import VERDICTS as LENGTH
from halludecode.evals.results.yes_ratio import SHIFT

Gap = Mapping[str, Any]
Labels = Mapping[str, str]
Write = Callable[..., str]  # of a difference, its scale and, if not one, its digits

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
    if any("difference" in gap.get("controls", {}).get("yes_ratio", {}) for gap in gaps):
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
        if (sensed := controls.get("d_prime", {}).get("verdict")) == detection.VERDICTS["only"]:
            yield sensed
    elif ratio.get("verdict", "").startswith(SHIFT):
        yield ratio["verdict"]
    lost = controls.get("length", {}).get("matched", {}).get("verdict", {})
    benchmark = benchmark_named(gap["task"])
    names = [benchmark.metric(m).words for m, verdict in lost.items() if verdict == LENGTH["only"]]
    if names:
        yield f"{' and '.join(names)}: {LENGTH['only']}"
    cut = controls.get("objects", {}).get("matched", {}).get("verdict", {})
    fewer = object_control.VERDICTS["only"]
    if names := [benchmark.metric(m).words for m, told in cut.items() if told == fewer]:
        yield f"{' and '.join(names)}: {fewer}"
    yield from _broken(controls)
    sampling = controls.get("sampling", {})
    if sampling.get("note") and sampling["note"] != GREEDY:
        yield sampling["note"].rstrip(".")


def _broken(controls: Mapping[str, Any]) -> Iterator[str]:
    """Text that has come apart, and answers that are none."""
    repeats = controls.get("repetition", {})
    if apart := repeats.get("apart"):
        share, other = (
            f"{repeats['difference'][side]['value'] * 100:.1f} %" for side in _both(apart)
        )
        whose = "its text" if apart == "strategy" else "the baseline's text"
        yield f"{whose} repeats itself, {share} of runs of four words against {other}"
    if told := _unanswered(controls, "it", "the baseline"):
        yield told


def _both(first: str) -> tuple[str, str]:
    return ("strategy", "baseline") if first == "strategy" else ("baseline", "strategy")


def _unanswered(controls: Mapping[str, Any], name: str, base: str) -> str:
    """Counts of empty and refused answers, "" where there are none."""
    block = controls.get("unanswered", {})
    counts = [
        (whose, [f"{count} {kind}" for kind, count in block.get(side, {}).items() if count])
        for whose, side in ((name, "strategy"), (base, "baseline"))
    ]
    if not any(found for _, found in counts):
        return ""
    told = (f"{whose} {' and '.join(found) or 'none'}" for whose, found in counts)
    return f"empty or refused of {block['n']} answers: {', '.join(told)}"


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
    if "d_prime" in controls:
        lines.append(_d_prime(controls["d_prime"], write))
    if "length" in controls:
        lines += _length(gap, write)
    if "objects" in controls:
        lines += _objects(gap, write)
    if repeats := controls.get("repetition"):
        shares = [f"{repeats['difference'][side]['value'] * 100:.1f}" for side in _both("strategy")]
        gone = {"strategy": f": the text of {name} has come apart"}
        gone["baseline"] = f": the text of {base} has come apart"
        lines.append(
            f"Repeated runs of four words: {shares[0]} % against {shares[1]} %, "
            f"{write(repeats['difference'], 100.0)}{gone.get(repeats['apart'], '')}."
        )
    if told := _unanswered(controls, name, base):
        lines.append(f"{told[0].upper()}{told[1:]}.")
    sides = [{**gap, "strategy": gap[k], **v} for k, v in controls.get("fixed", {}).items()]
    lines += fixed_answers(sides, labels)
    return [*lines, *_sampling(gap, labels, write), *_verdict(gap)]


def _verdict(gap: Gap) -> Iterator[str]:
    """All controls of a headline together."""
    benchmark = benchmark_named(gap["task"])
    controlled = {*benchmark.object_metrics, *(m.name for m in benchmark.metrics if m.control)}
    judged = [n for n in benchmark.headlines() if n in gap.get("metrics", {}) and n in controlled]
    if judged:
        told = (f"{benchmark.metric(name).words}: {verdict.verdict(gap, name)}" for name in judged)
        yield f"Verdict. {'. '.join(told)}."


def _d_prime(block: Mapping[str, Any], write: Write) -> str:
    told = []
    for name, words in (("d_prime", "d'"), ("criterion", "criterion")):
        found = block["metrics"][name]
        ours, theirs = (found[side]["value"] for side in _both("strategy"))
        told.append(f"{words} {ours:.2f} against {theirs:.2f}, {write(found, 1.0, 2)}")
    return f"By the equal-variance normal model: {'; '.join(told)}: {block['verdict']}."


def _objects(gap: Gap, write: Write) -> Iterator[str]:
    benchmark, block = benchmark_named(gap["task"]), gap["controls"]["objects"]
    ours, theirs = (block["named"][side]["value"] for side in _both("strategy"))
    cut = block["matched"]
    yield (
        f"Different objects a text: {ours:.2f} against {theirs:.2f}, "
        f"{write(block['named'], 1.0, 2)}. Both cut behind the same number of them: "
        f"{_listed(benchmark, cut, benchmark.object_metrics, write)}."
    )
    yield _by_verdict(benchmark, cut["verdict"])


def _by_verdict(benchmark: type[Benchmark], verdicts: Mapping[str, str]) -> str:
    names_of: dict[str, list[str]] = {}
    for name, told in verdicts.items():
        names_of.setdefault(told, []).append(benchmark.metric(name).words)
    return "; ".join(f"{', '.join(names)}: {told}" for told, names in names_of.items()) + "."


def fixed_answers(entries: Sequence[Mapping[str, Any]], labels: Labels) -> Iterator[str]:
    """What answers get that do not change within a pair, a sentence per task and source.

    Args:
        entries: Of ``results.json``, or differences with the block among their controls.
        labels: Canonical strategy to a shorter name.
    """
    told: dict[tuple[str, str], dict[str, dict[str, None]]] = {}
    for entry in entries:
        for name, metrics in entry.get("fixed_answers", {}).items():
            whose = labels.get(entry["strategy"], entry["strategy"]) if name == COPIED else ""
            texts = told.setdefault((entry["task"], entry["data"]), {})
            text = _values(entry["task"], metrics)
            texts.setdefault(text, {})[f"{whose}'s {name}" if whose else name] = None
    for (task, data), texts in told.items():
        listed = [f"{_together(list(names))}: {text}" for text, names in texts.items()]
        chances = [(m.words, m.chance) for m in benchmark_named(task).metrics if m.chance]
        if chances:
            listed.append(
                "guessing: " + ", ".join(f"{words} {value:g}" for words, value in chances)
            )
        yield f"{task} on {data}, answers that are the same within a pair: {'; '.join(listed)}."


def _together(names: Sequence[str]) -> str:
    """Names of fixed answers that got the same; copied ones of several strategies in one."""
    plain = [name for name in names if not name.endswith(COPIED)]
    whose = [name.removesuffix(f" {COPIED}") for name in names if name.endswith(COPIED)]
    return ", ".join(plain + [f"{', '.join(whose)} {COPIED}"] * bool(whose))


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
    yield _by_verdict(benchmark, cut["verdict"])
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
