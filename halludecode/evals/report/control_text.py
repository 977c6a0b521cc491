"""What the controls of a difference say, in words for tables and pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from halludecode.evals.benchmarks.chair.length_control import ALIKE, JUDGED
from halludecode.evals.benchmarks.chair.length_control import VERDICTS as LENGTH
from halludecode.evals.results.controls import GREEDY
from halludecode.evals.results.yes_ratio import SHIFT

Gap = Mapping[str, Any]
Labels = Mapping[str, str]
Write = Callable[[Mapping[str, float], float], str]  # a difference and its scale

TITLES = {"chair_i": "CHAIR_i", "chair_s": "CHAIR_s", "recall": "recall", "f1": "F1"}
# What is told of the difference to a control; the rest is in the JSON.
HEADLINES = {
    "pope": ("accuracy", "f1"),
    "chair": JUDGED,
    "mme": ("total", "hallucination_subset"),
}


def matched(gap: Gap, metric: str) -> tuple[str, Mapping[str, float] | None]:
    """Sign and difference of the control that goes with a metric; None where there is none."""
    controls = gap.get("controls", {})
    if metric == "accuracy":
        return "=yes", controls.get("yes_ratio", {}).get("difference")
    length = controls.get("length", {}).get("matched", {}).get("metrics", {})
    return "=len", length.get(metric) if metric in JUDGED else None


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
    said = []
    if any("yes_ratio" in gap.get("controls", {}) for gap in gaps):
        said.append(
            "=yes: accuracy difference with the yes-no margins cut where greedy's yes-ratio is met."
        )
    if any("length" in gap.get("controls", {}) for gap in gaps):
        said.append("=len: difference with both captions of a picture cut to the shorter one.")
    return [*said, *general(gaps)]


def general(gaps: Sequence[Gap]) -> list[str]:
    """Sentences that hold for all differences alike, once each."""
    notes = (gap.get("controls", {}).get("sampling", {}).get("note") for gap in gaps)
    return [GREEDY] if GREEDY in notes else []


def verdicts(gaps: Iterable[Gap], labels: Labels) -> list[str]:
    """One sentence for every difference that its control takes away or that has no control."""
    found: dict[tuple[str, str], list[str]] = {}
    for gap in gaps:
        name = labels.get(gap["strategy"], gap["strategy"])
        for said in _losses(gap):
            where = f"{gap['task'].upper()} on {gap['data']}"
            found.setdefault((f"{name}, {where}", said), []).append(gap["split"] or "")
    return [
        f"{who}{f' ({joined})' if (joined := ', '.join(filter(None, splits))) else ''}: {said}."
        for (who, said), splits in found.items()
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
    names = [TITLES[metric] for metric, verdict in lost.items() if verdict == LENGTH["only"]]
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
        lines += _length(controls["length"], write)
    return lines + list(_sampling(gap, labels, write))


def _yes_ratio(block: Mapping[str, Any], name: str, base: str, write: Write) -> str:
    if "reason" in block:
        return f"Yes-ratio control: no number, {block['reason']}."
    ours, theirs = (f"{block[side]['value'] * 100:.1f}" for side in ("accuracy", "baseline"))
    own = f"; at {name}'s own {write(block['own'], 100.0)}" if block.get("own") else ""
    return (
        f"At {base}'s yes-ratio ({block['yes_ratio'] * 100:.1f} %): accuracy {ours} against "
        f"{theirs}, {write(block['difference'], 100.0)}{own}: {block['verdict']}."
    )


def _length(block: Mapping[str, Any], write: Write) -> Iterator[str]:
    cut, alike, rates = block["matched"], block["alike"], block["rates"]["metrics"]
    yield f"Both cut to the shorter: {_listed(cut, JUDGED, write)}."
    said: dict[str, list[str]] = {}
    for metric, verdict in cut["verdict"].items():
        said.setdefault(verdict, []).append(TITLES[metric])
    yield "; ".join(f"{', '.join(names)}: {verdict}" for verdict, names in said.items()) + "."
    yield (
        f"Lengths within {ALIKE:.0%}: {alike['reason']}."
        if "reason" in alike
        else f"Lengths within {ALIKE:.0%} (n = {alike['n']}): {_listed(alike, JUDGED, write)}."
    )
    yield (
        f"Hallucinated mentions per 100 words {write(rates['per_100_words'], 1.0)}; "
        f"F1 of objects {write(rates['f1'], 100.0)}."
    )


def _sampling(gap: Gap, labels: Labels, write: Write) -> Iterator[str]:
    block = gap.get("controls", {}).get("sampling", {})
    for entry in block.get("against", ()):
        name = labels.get(entry["control"], entry["control"])
        if "reason" in entry:
            yield f"Minus {name}: {entry['reason']}."
        else:
            told = HEADLINES.get(gap["task"]) or tuple(entry["metrics"])[:3]
            yield f"Minus {name}: {_listed(entry, told, write)}."
    if (scale := block.get("net_scale")) not in (None, 0, 1):
        yield f"Net scale {scale:g}: as if at temperature T / {scale:g} where its rows agree."
    if block.get("note") and block["note"] != GREEDY:
        yield f"{block['note'][0].upper()}{block['note'][1:].rstrip('.')}."


def _listed(entry: Mapping[str, Any], metrics: Sequence[str], write: Write) -> str:
    unit = 1.0 if "total" in metrics else 100.0  # MME's sums are points, not fractions
    return ", ".join(
        f"{TITLES.get(name, name)} {write(entry['metrics'][name], unit)}"
        for name in metrics
        if name in entry["metrics"]
    )
