"""Renders run folders: an HTML page, Markdown tables, CSV lines, or another harness's files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.evals import tables
from halludecode.evals.results import labels
from halludecode.evals.store import read_json

FORMATS = ("html", "md", "csv", "lmms-eval", "vlmevalkit")
COLUMNS = (
    *("run", "model", "engine", "task", "data", "split", "strategy", "metric", "value", "low"),
    *("high", "n", "failed", "difference", "difference_low", "difference_high", "p", "p_holm"),
)


def render(runs: Sequence[Path], format: str = "html", output: Path | None = None) -> str | Path:
    """Renders run folders.

    Args:
        runs: Run folders.
        format: ``html`` (self-contained page), ``md``, ``csv`` (one line per metric), ``lmms-eval``
            or ``vlmevalkit`` (files as those harnesses write them; ``output`` is then a folder).
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
    folders = [Path(run) for run in runs]
    for folder in folders:
        if not (folder / "results.json").is_file():
            raise InvalidData(f"{folder} has no results.json; is it a finished run folder?")
    try:
        if format in ("lmms-eval", "vlmevalkit"):
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


def _text(folders: Sequence[Path], format: str) -> str:
    if format == "html":
        from halludecode.evals.page import render_page

        return render_page(folders)
    return "\n".join(map(_markdown, folders)) if format == "md" else _csv(folders)


def _export(folders: Sequence[Path], format: str, output: Path | None) -> Path:
    from halludecode.evals import export

    if output is None:
        raise InvalidParameter(f"Format {format!r} is a folder of files: give --output FOLDER.")
    write = export.lmms_eval if format == "lmms-eval" else export.vlmevalkit
    for folder in folders:
        write(folder, Path(output) if len(folders) == 1 else Path(output) / folder.resolve().name)
    return Path(output)


def _csv(folders: Sequence[Path]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for folder in folders:
        writer.writerows(_rows(folder))
    return buffer.getvalue()


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    results = read_json(folder / "results.json")
    gaps = {_key(gap): gap["metrics"] for gap in results.get("differences", ())}
    for entry in results["runs"]:
        head = {k: entry[k] for k in COLUMNS if k in entry}
        for metric, interval in entry["metrics"].items():
            gap = gaps.get(_key(entry), {}).get(metric, {})
            paired = {
                "difference": gap.get("value"),
                "difference_low": gap.get("low"),
                "difference_high": gap.get("high"),
                "p": gap.get("p"),
                "p_holm": gap.get("p_holm"),
            }
            yield {"run": folder.resolve().name, **head, "metric": metric, **interval, **paired}


def _key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(entry[k] for k in ("task", "data", "split", "strategy"))


def _markdown(folder: Path) -> str:
    run, results = read_json(folder / "run.json"), read_json(folder / "results.json")
    named = labels(run)
    out = [f"# {folder.resolve().name}: {run['model']}", ""]
    for task, data in tables.groups(results):
        part = tables.section(results, task, data)
        titles = [f"{split} {c.title}" if split else c.title for split, c in part.cells]
        out += [f"## {task.upper()} on {data}", "", _line(["strategy", *titles, "time/token"])]
        out.append(_line(["---"] * (len(titles) + 2)))
        for strategy in part.strategies:
            cells = [
                tables.cell(part, strategy, *place).replace("\n", "<br>") for place in part.cells
            ]
            ratio = part.cost(strategy)
            cost = "" if ratio is None else f"{ratio:.2f}x"
            out.append(_line([named.get(strategy, strategy), *cells, cost]))
        out.append("")
    from halludecode.evals.page import recipe

    out += [*tables.notes(results, named), ""]
    out += [f"- {name}: {value}" for name, value in recipe(run)]
    return "\n".join(out) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
