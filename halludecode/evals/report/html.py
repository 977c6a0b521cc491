"""The HTML report: one file with nothing to fetch.

Tables, charts and the gallery are there without a script; the sample browser needs the one the page
holds. The page forbids itself every request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halludecode.evals.report import control_text, gallery
from halludecode.evals.report import sample_browser as browser
from halludecode.evals.report import terminal as tables
from halludecode.evals.report.figures import figures, verdict
from halludecode.evals.results.build import Answers, arrange, labels
from halludecode.evals.runner.run_folder import read_json, read_lines
from halludecode.testbed import MODELS

WIDTH, HEIGHT = 132, 16  # pixels of the drawing of one difference
STAND_IN = (
    "These are results of the embedded testbed, a small model on drawn scenes. It shows what a "
    "strategy does and how large such effects can be seen; it does not stand in for published "
    "numbers of real models."
)


def render_page(runs: Mapping[str, Path]) -> str:
    """The page of one or several run folders, by the names they go under."""
    shown: list[browser.Source] = []
    made = []
    for name, path in runs.items():
        run, results = read_json(path / "run.json"), read_json(path / "results.json")
        answers = arrange(read_lines(path / "samples.jsonl"), run)
        made.append(_run(name, path, run, results, answers))
        shown += browser.sources(name, path, labels(run), answers)
    return page(made, browser.embed(shown))


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
        _section(tables.section(results, task, data), named, answers.get((task, data)))
        for task, data in tables.groups(results)
    ]
    galleries = [
        {"data": data, "scenes": gallery.scenes(group, path, named)}
        for (task, data), group in answers.items()
        if task == "chair"
    ]
    return {
        "name": name,
        "model": run["model"],
        "stand_in": run["model"] in MODELS,
        "sections": sections,
        "galleries": galleries,
        "notes": tables.notes({**results, "differences": []}, named)[1:],
        "recipe": recipe(run),
        "strategies": [(named.get(name, name), name) for name in run.get("strategies", {})],
    }


def recipe(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the numbers hang on, as (name, value)."""
    hardware = run.get("hardware", {})
    rows = [
        (
            "model",
            f"{run['model']} (weights {str(run.get('model_digest'))[:16]}, {run.get('dtype')})",
        ),
        ("engine", f"{run.get('engine')} on {hardware.get('gpu') or hardware.get('device')}"),
        ("seed", str(run.get("seed"))),
        (
            "pictures per source",
            ", ".join(f"{task} {n or 'all'}" for task, n in run.get("limit", {}).items()),
        ),
    ]
    for task, prompt in run.get("prompts", {}).items():
        sampling = run.get("sampling", {}).get(task, {})
        how = "greedy" if not sampling.get("temperature") else f"t={sampling['temperature']}"
        rows.append(
            (
                f"{task} prompt",
                f"{prompt['template']!r} ({prompt['preset']}); {how}, at most "
                f"{sampling.get('max_new_tokens')} tokens",
            )
        )
    for name, data in run.get("data", {}).items():
        revision = f", revision {data['revision']}" if data.get("revision") else ""
        rows.append((f"data {name}", f"{data['samples']} samples, {data['digest'][:16]}{revision}"))
    if run.get("chair"):
        rows.append(("CHAIR words", ", ".join(f"{k} {v}" for k, v in run["chair"].items())))
    versions = ", ".join(f"{k} {v}" for k, v in run.get("versions", {}).items())
    return [*rows, ("versions", versions), ("started", str(run.get("started")))]


# Tables -----------------------------------------------------------------------------------------


def _section(
    part: tables.Section, named: Mapping[str, str], answers: Answers | None
) -> dict[str, Any]:
    reach = {
        column.metric: max(
            (
                abs(gap["metrics"][column.metric][end]) * column.scale
                for gap in part.gaps.values()
                if column.metric in gap["metrics"]
                for end in ("low", "high")
            ),
            default=0.0,
        )
        for _, column in part.cells
    }
    rows = [
        {
            "strategy": named.get(strategy, strategy),
            "cells": [_cell(part, strategy, s, c, reach[c.metric]) for s, c in part.cells],
            "cost": part.cost(strategy),
        }
        for strategy in part.strategies
    ]
    return {
        "title": f"{part.task.upper()} on {part.data}",
        "columns": [(split, column.title, column.lower) for split, column in part.cells],
        "rows": rows,
        "has_gaps": bool(part.gaps),
        "legend": control_text.legend(list(part.gaps.values())),
        "verdicts": control_text.verdicts(part.gaps.values(), named),
        "controls": _controls(part, named),
        "figures": figures(part, named, answers),
        "widths": widths(part),
        "details": _subtasks(part, named) if part.task == "mme" else None,
    }


def _cell(
    part: tables.Section, strategy: str, split: str | None, column: tables.Column, reach: float
) -> dict[str, Any] | None:
    entry = part.entries.get((strategy, split))
    if not entry or column.metric not in entry["metrics"]:
        return None
    metrics = entry["metrics"]
    value, low, high = (metrics[column.metric][k] * column.scale for k in ("value", "low", "high"))
    cell: dict[str, Any] = {
        "value": f"{value:.1f}",
        "interval": f"[{low:.1f}, {high:.1f}]",
        "n": entry["n"],
        "beside": [(title, f"{metrics[name]['value'] * 100:.1f}") for name, title in column.beside],
        "gap": None,
    }
    gap = part.gaps.get((strategy, split))
    if gap:
        d = gap["metrics"][column.metric]
        cell["gap"] = {
            "text": "no difference"
            if d["low"] == d["high"] == 0
            else tables.gap_text(d, column.scale).replace(tables.MARK, ""),
            "excludes_zero": tables.excludes_zero(d),
            "verdict": verdict(d, column.lower),
            "p": f"p {d['p']:.2g}, Holm {d['p_holm']:.2g}",
            "matched": _matched(gap, column),
            **_drawing(d, column.scale, reach),
        }
    return cell


def _matched(gap: Mapping[str, Any], column: tables.Column) -> str:
    """The difference under the control that goes with the metric."""
    sign, found = control_text.matched(gap, column.metric)
    if not found or found["low"] == found["high"] == 0:
        return ""
    return f"{sign} {tables.gap_text(found, column.scale).replace(tables.MARK, '')}"


def _controls(part: tables.Section, named: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Everything the controls say, by strategy and split."""
    found = []
    for (strategy, split), gap in part.gaps.items():
        said = control_text.sentences(gap, named, tables.gap_text)
        if said:
            name = named.get(strategy, strategy)
            found.append((f"{name}, {split}" if split else name, said))
    return found


def _drawing(gap: Mapping[str, float], scale: float, reach: float) -> dict[str, float]:
    """Where the line and the point of a difference lie, in pixels; zero is in the middle."""

    def at(value: float) -> float:
        share = value * scale / reach if reach else 0.0
        return round(WIDTH / 2 + share * (WIDTH / 2 - 5), 1)

    return {"low": at(gap["low"]), "value": at(gap["value"]), "high": at(gap["high"])}


def _subtasks(part: tables.Section, named: Mapping[str, str]) -> dict[str, Any]:
    """MME: the score of every subtask."""
    first = next(iter(part.entries.values()))["metrics"]
    subtasks = [m.removesuffix(".score") for m in first if m.endswith(".score")]
    rows = []
    for strategy in part.strategies:
        metrics = part.entries[strategy, None]["metrics"]
        cells = [metrics.get(f"{name}.score", {}).get("value") for name in subtasks]
        rows.append(
            (named.get(strategy, strategy), [None if v is None else f"{v:.0f}" for v in cells])
        )
    return {"columns": subtasks, "rows": rows}


def widths(part: tables.Section) -> str:
    """How wide the intervals are and what that means, from the numbers; "" without any."""
    if not part.cells:
        return ""
    column = part.cells[0][1]
    name = column.title.replace(" %", "")
    known, told = [], []
    for split in part.splits:
        where = f" ({split})" if split else ""
        own = [e["metrics"][column.metric] for e in _of(part.entries, split, column.metric)]
        gaps = [g["metrics"][column.metric] for g in _of(part.gaps, split, column.metric)]
        moved = [gap for gap in gaps if gap["high"] > gap["low"]]
        if own:
            known.append(f"±{_half(own) * column.scale:.1f}{where}")
        if moved:
            told.append(f"±{_half(moved) * column.scale:.1f}{where}")
    if not known:
        return ""
    unit = "points" if column.scale == 100.0 else "points of the score"
    said = f"{name[0].upper()}{name[1:]} is known to about {', '.join(known)} {unit}."
    if told:
        said += (
            f" A paired difference to greedy is known to about {', '.join(told)}: a smaller "
            "observed one cannot be told from none, and a true one must be about 1.4 times as big "
            "to be found in four such runs of five."
        )
    return said


def _of(
    entries: Mapping[tuple[str, str | None], Mapping[str, Any]], split: str | None, metric: str
) -> list[Mapping[str, Any]]:
    return [e for (_, s), e in entries.items() if s == split and metric in e["metrics"]]


def _half(intervals: Sequence[Mapping[str, float]]) -> float:
    """Mean half-width."""
    return sum(i["high"] - i["low"] for i in intervals) / 2 / len(intervals)
