"""The HTML report: one file with nothing to fetch.

Tables, charts and the gallery are there without a script; the sample browser needs the one the page
holds. The page forbids itself every request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from halludecode.evals.benchmarks.base import Metric
from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.data.run_files import read_json
from halludecode.evals.report import gallery
from halludecode.evals.report import sample_browser as browser
from halludecode.evals.report.figures import figures, verdict
from halludecode.evals.results import control_text, summary
from halludecode.evals.results.build import Answers, labels
from halludecode.evals.results.kept_pictures import has_gallery
from halludecode.evals.results.notes import TIMING, notes
from halludecode.evals.results.run_answers import run_answers
from halludecode.evals.results.sections import (
    MARK,
    MEAN,
    Section,
    beside,
    gap_text,
    groups,
    section,
)
from halludecode.evals.statistics.intervals import excludes_zero
from halludecode.testbed.assets import MODELS

WIDTH, HEIGHT = 132, 16  # pixels of the drawing of one difference
STAND_IN = (
    "These are results of the embedded testbed, a small model on drawn scenes. It shows what a "
    "strategy does and how large such effects can be seen; it does not stand in for published "
    "numbers of real models."
)


def render_page(runs: Mapping[str, Path]) -> str:
    """The page of one or several run folders, by the names they go under."""
    shown: list[browser.Source] = []
    pages = []
    for name, path in runs.items():
        run, results = read_json(path / "run.json"), read_json(path / "results.json")
        answers = run_answers(path, run)
        pages.append(_run(name, path, run, results, answers))
        shown += browser.sources(name, path, labels(run), answers)
    return page(pages, browser.embed(shown))


def page(runs: Sequence[Mapping[str, Any]], samples: Mapping[str, Any] | None = None) -> str:
    """Fills the template.

    Args:
        runs: What `_run` makes of every run.
        samples: What `browser.embed` makes of all of them; None leaves the browser out.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    title = ", ".join(dict.fromkeys(str(run["model"]) for run in runs))
    return environment.get_template("report.html.j2").render(
        runs=runs, title=title, width=WIDTH, height=HEIGHT, samples=samples, stand_in=STAND_IN
    )


def _run(
    name: str,
    path: Path,
    run: Mapping[str, Any],
    results: Mapping[str, Any],
    answers: Mapping[tuple[str, str], Answers],
) -> dict[str, Any]:
    named = labels(run)
    sections = [
        _section(section(results, task, data), named, answers.get((task, data)))
        for task, data in groups(results)
    ]
    galleries = [
        {"data": group.data, "scenes": gallery.scenes(group, path, named)}
        for group in answers.values()
        if has_gallery(group)
    ]
    return {
        "name": name,
        "model": run["model"],
        "stand_in": run["model"] in MODELS,
        "sections": sections,
        "answers": summary.answers(summary.lines(results.get("differences", ()), named)),
        "galleries": galleries,
        # The page says how to read differences and times in its own words.
        "notes": [n for n in notes({**results, "differences": []}, named) if n != TIMING],
        "recipe": recipe(run),
        "strategies": [(named.get(name, name), name) for name in run.get("strategies", {})],
    }


def recipe(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the numbers hang on, as (name, value)."""
    hardware = run.get("hardware", {})
    about = [f"weights {digest[:16]}"] if (digest := run.get("model_digest")) else []
    about += [str(dtype)] if (dtype := run.get("dtype")) else []
    device = hardware.get("gpu") or hardware.get("device")
    limits = (f"{task} {n or 'all'}" for task, n in run.get("limit", {}).items())
    tasks = run.get("prompts", {})
    versions = ", ".join(f"{k} {v}" for k, v in run.get("versions", {}).items())
    return [
        ("model", f"{run['model']} ({', '.join(about)})" if about else str(run["model"])),
        ("engine", f"{run.get('engine')}{f' on {device}' if device else ''}"),
        ("seed", str(run.get("seed"))),
        ("pictures per source", ", ".join(limits)),
        *(_prompt(run, task) for task in tasks),
        *(_data(name, data) for name, data in run.get("data", {}).items()),
        *(row for task in tasks for row in benchmark_named(task).recipe_rows(run)),
        *_read(run),
        ("versions", versions),
        ("started", str(run.get("started"))),
    ]


def _prompt(run: Mapping[str, Any], task: str) -> tuple[str, str]:
    prompt, sampling = run["prompts"][task], run.get("sampling", {}).get(task, {})
    temperature, most = (sampling.get(name) for name in ("temperature", "max_new_tokens"))
    asked = "not stated" if prompt["template"] is None else repr(prompt["template"])
    if prompt["preset"] is not None:
        asked += f" ({prompt['preset']})"
    way = "temperature not stated"
    if temperature is not None:
        way = f"t={temperature}" if temperature else "greedy"
    return f"{task} prompt", f"{asked}; {way}{f', at most {most} tokens' if most else ''}"


def _read(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How answers were read: by which rule, and of those made elsewhere from where."""
    if (rule := run.get("answers", "as_written")) != "as_written":
        yield "answers", rule
    for name, info in run.get("strategies", {}).items():
        if read := info.get("read"):
            yield f"answers of {name}", " ".join(read)


def _data(name: str, data: Mapping[str, Any]) -> tuple[str, str]:
    revision = f", revision {data['revision']}" if data.get("revision") else ""
    return f"data {name}", f"{data['samples']} samples, {data['digest'][:16]}{revision}"


# Tables -----------------------------------------------------------------------------------------


def _section(part: Section, named: Mapping[str, str], answers: Answers | None) -> dict[str, Any]:
    reach = {column.name: _reach(part, column) for column in part.columns}
    rows = [
        {
            "strategy": named.get(strategy, strategy),
            "cells": [_cell(part, strategy, s, c, reach[c.name]) for s, c in part.cells],
            "cost": part.cost(strategy),
        }
        for strategy in part.strategies
    ]
    return {
        "title": f"{part.task.upper()} on {part.data}",
        "n": sorted({e["n"] for e in part.entries.values() if e["split"] != MEAN}),
        "columns": [(split, c.title, c.lower_is_better) for split, c in part.cells],
        "rows": rows,
        "has_gaps": bool(part.gaps),
        "timed": any(row["cost"] for row in rows),
        "legend": control_text.legend(list(part.gaps.values())),
        "verdicts": control_text.verdicts(part.gaps.values(), named),
        "controls": _controls(part, named),
        "figures": figures(part, named, answers),
        "widths": widths(part),
        "details": _details(part, named),
    }


def _reach(part: Section, column: Metric) -> float:
    """How far from zero the differences of a metric reach, as shown."""
    ends = (
        abs(gap["metrics"][column.name][end]) * column.scale
        for gap in part.gaps.values()
        if column.name in gap["metrics"]
        for end in ("low", "high")
    )
    return max(ends, default=0.0)


def _cell(
    part: Section, strategy: str, split: str | None, column: Metric, reach: float
) -> dict[str, Any] | None:
    entry = part.entries.get((strategy, split))
    if not entry or column.name not in entry["metrics"]:
        return None
    interval, digits = entry["metrics"][column.name], column.digits
    value, low, high = (interval[k] * column.scale for k in ("value", "low", "high"))
    gap = part.gaps.get((strategy, split))
    return {
        "value": f"{value:.{digits}f}",
        "interval": f"[{low:.{digits}f}, {high:.{digits}f}]",
        "n": entry["n"],
        "beside": beside(part, entry, column),
        "gap": _gap(gap, column, reach) if gap else None,
    }


def _gap(gap: Mapping[str, Any], column: Metric, reach: float) -> dict[str, Any]:
    """The difference below a value: in words, with its control, and as a drawing."""
    d = gap["metrics"][column.name]
    return {
        "text": "no difference" if d["low"] == d["high"] == 0 else _unmarked(d, column),
        "excludes_zero": excludes_zero(d),
        "verdict": verdict(d, column.lower_is_better),
        "p": f"p {d['p']:.2g}, Holm {d['p_holm']:.2g}",
        "matched": _matched(gap, column),
        **_drawing(d, column.scale, reach),
    }


def _unmarked(gap: Mapping[str, float], column: Metric) -> str:
    return gap_text(gap, column.scale, column.digits).replace(MARK, "")


def _matched(gap: Mapping[str, Any], column: Metric) -> str:
    """The difference under the control that goes with the metric."""
    matched = control_text.matched(gap, column)
    if not matched or matched["low"] == matched["high"] == 0:
        return ""
    return f"{control_text.SIGNS[column.control]} {_unmarked(matched, column)}"


def _controls(part: Section, named: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Everything the controls say, by strategy and split."""
    rows = []
    for (strategy, split), gap in part.gaps.items():
        sentences = control_text.sentences(gap, named, gap_text)
        if sentences:
            name = named.get(strategy, strategy)
            rows.append((f"{name}, {split}" if split else name, sentences))
    return rows


def _drawing(gap: Mapping[str, float], scale: float, reach: float) -> dict[str, float]:
    """Where the line and the point of a difference lie, in pixels; zero is in the middle."""

    def at(value: float) -> float:
        share = value * scale / reach if reach else 0.0
        return round(WIDTH / 2 + share * (WIDTH / 2 - 5), 1)

    return {"low": at(gap["low"]), "value": at(gap["value"]), "high": at(gap["high"])}


def _details(part: Section, named: Mapping[str, str]) -> dict[str, Any] | None:
    """The folded table of a benchmark with many metrics of one kind."""
    table = part.benchmark.details
    if table is None:
        return None
    first = next(iter(part.entries.values()))["metrics"]
    metrics = [part.benchmark.metric(name) for name in first if name.endswith(table.suffix)]
    rows = []
    places = ((strategy, split) for strategy in part.strategies for split in part.splits)
    for strategy, split in places:
        entry, name = part.entries[strategy, split], named.get(strategy, strategy)
        values = [entry["metrics"].get(m.name, {}).get("value") for m in metrics]
        cells = [
            None if value is None else f"{value * metric.scale:.0f}"
            for metric, value in zip(metrics, values, strict=True)
        ]
        rows.append((f"{name}, {split}" if split else name, cells))
    columns = [metric.name.removesuffix(table.suffix) for metric in metrics]
    return {"title": table.title, "columns": columns, "rows": rows}


def widths(part: Section) -> str:
    """How wide the intervals are and what that means, from the numbers; "" without any."""
    if not part.cells:
        return ""
    column = part.cells[0][1]
    name = column.title.replace(" %", "")
    values, moves = [], []
    for split in part.splits:
        where = f" ({split})" if split else ""
        own = [e["metrics"][column.name] for e in _of(part.entries, split, column.name)]
        gaps = [g["metrics"][column.name] for g in _of(part.gaps, split, column.name)]
        moved = [gap for gap in gaps if gap["high"] > gap["low"]]
        if own:
            values.append(f"±{_half(own) * column.scale:.{column.digits}f}{where}")
        if moved:
            moves.append(f"±{_half(moved) * column.scale:.{column.digits}f}{where}")
    if not values:
        return ""
    unit = "points" if column.scale == 100.0 else "points of the score"
    text = f"{name[0].upper()}{name[1:]} is known to about {', '.join(values)} {unit}."
    if moves:
        text += (
            f" A paired difference to greedy is known to about {', '.join(moves)}: a smaller "
            "observed one cannot be told from none, and a true one must be about 1.4 times as big "
            "to be found in four such runs of five."
        )
    return text


def _of(
    entries: Mapping[tuple[str, str | None], Mapping[str, Any]], split: str | None, metric: str
) -> list[Mapping[str, Any]]:
    return [e for (_, s), e in entries.items() if s == split and metric in e["metrics"]]


def _half(intervals: Sequence[Mapping[str, float]]) -> float:
    """Mean half-width."""
    return sum(i["high"] - i["low"] for i in intervals) / 2 / len(intervals)
