"""Renders run folders: an HTML page, Markdown tables, CSV lines, or another harness's files."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.evals.benchmarks.base import Metric
from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.data.run_files import read_json
from halludecode.evals.results import control_text
from halludecode.evals.results.build import labels
from halludecode.evals.results.notes import notes
from halludecode.evals.results.sections import Section, cell, groups, heading, section
from halludecode.testbed.assets import MODELS

FOLDERS = ("latex", "lmms-eval", "vlmevalkit")  # formats that are several files
FORMATS = ("html", "md", "csv", *FOLDERS)
COLUMNS = (
    *("run", "model", "engine", "task", "data", "split", "strategy", "metric", "value", "low"),
    *("high", "n", "failed", "difference", "difference_low", "difference_high", "p", "p_holm"),
    *("control", "control_difference", "control_low", "control_high"),
)


def render(runs: Sequence[Path], format: str = "html", output: Path | None = None) -> str | Path:
    """Renders run folders.

    Args:
        runs: Run folders.
        format: ``html`` (self-contained page), ``md``, ``csv`` (one line per metric), ``latex``
            (tables, Methods, citations, figures), ``lmms-eval`` or ``vlmevalkit`` (files as those
            harnesses write them); for the last three ``output`` is a folder.
        output: File or folder to write; None returns the text.

    Returns:
        The text, or the path written.

    Raises:
        InvalidParameter: Unknown format, or a folder is needed.
        InvalidData: A run folder cannot be read or written to.
    """
    if format not in FORMATS:
        raise InvalidParameter(
            f"No report format {format!r}; the known ones are {', '.join(FORMATS)}."
        )
    folders = named_runs(runs)
    for folder in folders.values():
        if not (folder / "results.json").is_file():
            raise InvalidData(
                f"{folder} has no results.json: finish the run by the same command, or, if it is a "
                "shard, join it with the others (halludecode merge)."
            )
    try:
        if format in FOLDERS:
            return _export(folders, format, output)
        text = _text(folders, format)
        if output is None:
            return text
        output = Path(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8", newline="\n")
        return output
    except OSError as error:
        raise InvalidData(f"{output}: cannot be written ({error.strerror}).") from None


def named_runs(runs: Sequence[Path]) -> dict[str, Path]:
    """Run folders by name: their own, with the parent's or a number where several share it."""
    paths = [Path(run) for run in runs]
    short = [path.resolve().name for path in paths]
    named: dict[str, Path] = {}
    for path, own in zip(paths, short, strict=True):
        stem = own if short.count(own) == 1 else f"{path.resolve().parent.name}/{own}"
        numbered = (stem, *(f"{stem} ({n})" for n in range(2, len(paths) + 1)))
        named[next(name for name in numbered if name not in named)] = path
    return named


def _text(folders: Mapping[str, Path], format: str) -> str:
    if format == "html":
        from halludecode.evals.report.html import render_page

        return render_page(folders)
    if format == "md":
        return "\n".join(_markdown(name, folder) for name, folder in folders.items())
    return _csv(folders)


def _export(folders: Mapping[str, Path], format: str, output: Path | None) -> Path:
    if output is None:
        raise InvalidParameter(f"Format {format!r} is a folder of files: give --output FOLDER.")
    if format == "latex":
        from halludecode.evals.report.latex import write_latex

        return write_latex(folders, Path(output))
    from halludecode.evals.report import export

    write = export.lmms_eval if format == "lmms-eval" else export.vlmevalkit
    for name, folder in folders.items():
        alone = len(folders) == 1
        write(folder, Path(output) if alone else Path(output) / name.replace("/", "_"))
    return Path(output)


def _csv(folders: Mapping[str, Path]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for name, folder in folders.items():
        writer.writerows(_rows(name, folder))
    return buffer.getvalue()


def _rows(run: str, folder: Path) -> Iterator[dict[str, Any]]:
    results = read_json(folder / "results.json")
    gaps = {_key(gap): gap for gap in results.get("differences", ())}
    for entry in results["runs"]:
        head = {k: entry[k] for k in COLUMNS if k in entry}
        gap = gaps.get(_key(entry), {})
        for name, interval in entry["metrics"].items():
            own = {k: interval.get(k) for k in ("value", "low", "high")}
            metric = benchmark_named(entry["task"]).metric(name)
            yield {"run": run, **head, "metric": name, **own, **_paired(gap, metric)}


def _paired(gap: Mapping[str, Any], metric: Metric) -> dict[str, Any]:
    """The columns that compare with greedy; empty for greedy itself."""
    d = gap.get("metrics", {}).get(metric.name, {})
    columns = {
        "difference": d.get("value"),
        "difference_low": d.get("low"),
        "difference_high": d.get("high"),
        "p": d.get("p"),
        "p_holm": d.get("p_holm"),
    }
    matched = control_text.matched(gap, metric)
    if matched:
        columns |= {
            "control": metric.control,
            "control_difference": matched["value"],
            "control_low": matched["low"],
            "control_high": matched["high"],
        }
    return columns


def _key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(entry[k] for k in ("task", "data", "split", "strategy"))


def _markdown(name: str, folder: Path) -> str:
    from halludecode.evals.report.html import STAND_IN, recipe

    run, results = read_json(folder / "run.json"), read_json(folder / "results.json")
    named = labels(run)
    out = [f"# {name}: {run['model']}", ""]
    if run["model"] in MODELS:
        out += [f"> {STAND_IN}", ""]
    for task, data in groups(results):
        out += [*_table(section(results, task, data), named), ""]
    out += [*(f"- {_plain(note)}" for note in notes(results, named)), "", "## Recipe", ""]
    out += [f"- {_plain(what)}: {_plain(value)}" for what, value in recipe(run)]
    for strategy, words in named.items():
        out.append(f"- strategy {_plain(words)}: `{strategy}`")
    return "\n".join(out) + "\n"


def _table(part: Section, named: Mapping[str, str]) -> Iterator[str]:
    titles = [heading(split, column, " ") for split, column in part.cells]
    yield f"## {part.task.upper()} on {part.data}"
    yield ""
    costs = {strategy: part.cost(strategy) for strategy in part.strategies}
    timed = any(costs.values())
    yield _line(["strategy", *titles, *["time/token"] * timed])
    yield _line(["---"] * (len(titles) + 1 + timed))
    for strategy, ratio in costs.items():
        cells = [cell(part, strategy, *place).replace("\n", "<br>") for place in part.cells]
        cost = [f"{ratio:.2f}x" if ratio else ""] * timed
        yield _line([named.get(strategy, strategy), *cells, *cost])


def _plain(text: str) -> str:
    """Text in which Markdown finds no emphasis, code, tag or link."""
    return re.sub(r"([\\`*<]|(?<=\])\()", r"\\\1", text)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    # A lone star in a cell would begin emphasis; the line breaks are this module's own.
    return "<br>".join(_plain(line).replace("|", "\\|") for line in text.split("<br>"))
