"""Run folders in the form other harnesses write, so that their tools can read them.

lmms-eval: ``<model>/<date>_results.json`` and ``<date>_samples_<task>.jsonl``, with its task and
metric names where it has the metric. VLMEvalKit: one prediction table (TSV) per model and data set.
Both know one system at a time, so every strategy is a model of its own, named ``model__strategy``.
Numbers are this package's own, in the other's units (each benchmark's `LmmsEvalTask`): CHAIR in
percent, POPE's ``pope`` over the questions of all splits together. The yes ratio is that of the
predictions, where lmms-eval counts labels, and answers count under the official rule, where it
compares strings.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.base import LmmsEvalTask
from halludecode.evals.benchmarks.registry import BENCHMARKS, benchmark_named
from halludecode.evals.data.run_files import read_json, write_json
from halludecode.evals.results.build import Answers, labels
from halludecode.evals.results.run_answers import run_answers
from halludecode.evals.results.sections import MEAN

Part = tuple[Answers, str | None, list[Mapping[str, Any]]]  # answers, split, its lines


def lmms_eval(run: Path, output: Path) -> None:
    """Writes a run folder as lmms-eval would have, one model folder per strategy.

    Args:
        run: Run folder with ``results.json``.
        output: Folder to write into.

    Raises:
        InvalidData: The run holds no task that lmms-eval has.
    """
    recipe, results = read_json(run / "run.json"), read_json(run / "results.json")
    entries = [entry for entry in results["runs"] if benchmark_named(entry["task"]).lmms_eval]
    if not entries:
        tasks = ", ".join(benchmark.name for benchmark in BENCHMARKS if benchmark.lmms_eval)
        raise InvalidData(f"{run} holds no task of lmms-eval's; those are {tasks}.")
    sources = {entry["data"] for entry in entries}
    date = _date(recipe)
    answers = run_answers(run, recipe)
    for strategy, name in _systems(recipe):
        folder = output / name
        folder.mkdir(parents=True, exist_ok=True)
        parts = [p for p in _parts(answers, strategy) if benchmark_named(p[0].task).lmms_eval]
        tasks = {
            _lmms_task(entry["task"], entry["split"], entry["data"], sources): (
                entry,
                _values(entry, parts),
            )
            for entry in entries
            if entry["strategy"] == strategy and entry["metrics"]
        }
        write_json(folder / f"{date}_results.json", _document(recipe, strategy, name, tasks))
        for group, split, lines in parts:
            task = _lmms_task(group.task, split, group.data, sources)
            path = folder / f"{date}_samples_{task}.jsonl"
            text = "".join(_lmms_sample(i, line) + "\n" for i, line in enumerate(lines))
            path.write_text(text, encoding="utf-8", newline="\n")


def _theirs(task: str) -> LmmsEvalTask:
    """How lmms-eval names a benchmark that it has."""
    theirs = benchmark_named(task).lmms_eval
    if theirs is None:
        raise InvalidData(f"lmms-eval has no task for {task}.")
    return theirs


def _date(recipe: Mapping[str, Any]) -> str:
    """``20260801_120000``, as lmms-eval begins its file names."""
    digits = re.sub(r"\D", "", str(recipe.get("started", "")))[:14]
    return f"{digits[:8]}_{digits[8:]}" if len(digits) == 14 else "00000000_000000"


def _document(
    recipe: Mapping[str, Any],
    strategy: str,
    name: str,
    tasks: Mapping[str, tuple[Mapping[str, Any], Mapping[str, float]]],
) -> dict[str, Any]:
    """The content of ``*_results.json``."""
    results: dict[str, dict[str, Any]] = {}
    higher: dict[str, dict[str, bool]] = {}
    counts: dict[str, dict[str, int]] = {}
    for task, (entry, values) in tasks.items():
        names = _theirs(entry["task"]).metrics
        numbers = {f"{names[m][0]},none": names[m][1] * value for m, value in values.items()}
        results[task] = {"alias": task, **numbers}
        higher[task] = {names[m][0]: names[m][2] for m in values}
        counts[task] = {"original": entry["n"] + entry["failed"], "effective": entry["n"]}
    return {
        "results": results,
        "versions": dict.fromkeys(tasks, 0.0),
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": higher,
        "n-samples": counts,
        "config": {
            "model": "halludecode",
            "model_args": f"pretrained={recipe['model']},strategy={strategy}",
            "seed": recipe.get("seed"),
        },
        "model_source": "halludecode",
        "model_name": recipe["model"],
        "model_name_sanitized": name,
        "date": recipe.get("started"),
    }


def _values(entry: Mapping[str, Any], parts: Sequence[Part]) -> dict[str, float]:
    """Our numbers for one of lmms-eval's tasks."""
    theirs = _theirs(entry["task"])
    if theirs.pooled and entry["split"] == MEAN:
        lines = [line for g, _, own in parts if _same(g, entry) for line in own]
        return _pooled([(line["parsed"], line["label"]) for line in lines])
    metrics = entry["metrics"]
    return {name: metrics[name]["value"] for name in theirs.metrics if name in metrics}


def _same(group: Answers, entry: Mapping[str, Any]) -> bool:
    return (group.task, group.data) == (entry["task"], entry["data"])


def _pooled(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Yes/no metrics over (prediction, label) of all questions together."""
    yes = sum(answer == "yes" for answer, _ in pairs)
    true = sum(label == "yes" for _, label in pairs)
    hits = sum(answer == label == "yes" for answer, label in pairs)
    precision, recall = (hits / n if n else 0.0 for n in (yes, true))
    both = precision + recall
    return {
        "accuracy": sum(answer == label for answer, label in pairs) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / both if both else 0.0,
        "yes_ratio": yes / len(pairs),
    }


def vlmevalkit(run: Path, output: Path) -> None:
    """Writes the yes/no answers of a run folder as VLMEvalKit's prediction tables.

    Args:
        run: Run folder.
        output: Folder to write into.

    Raises:
        InvalidData: The run holds captions only, which VLMEvalKit does not score.
    """
    recipe = read_json(run / "run.json")
    answers = run_answers(run, recipe)
    sources = {group.data for group in answers.values()}
    output.mkdir(parents=True, exist_ok=True)
    tables: dict[Path, list[dict[str, Any]]] = {}
    for strategy, name in _systems(recipe):
        for group, split, lines in _parts(answers, strategy):
            questions = [line for line in lines if line.get("label")]
            if questions:
                data = benchmark_named(group.task).vlmevalkit or group.task.upper()
                path = output / f"{name}_{data}{_source(group.data, sources)}.tsv"
                rows = tables.setdefault(path, [])
                rows += [_kit_row(len(rows) + i, line, split) for i, line in enumerate(questions)]
    if not tables:
        raise InvalidData(f"{run} holds captions only; VLMEvalKit's tables are for yes/no tasks.")
    for path, rows in tables.items():
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(
                file, list(rows[0]), delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(rows)


def _systems(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(canonical strategy, name of the system it makes with the model)."""
    for strategy, words in labels(recipe).items():
        yield strategy, re.sub(r"[^\w.+=,()-]+", "_", f"{recipe['model']}__{words}")


def _parts(answers: Mapping[Any, Answers], strategy: str) -> Iterator[Part]:
    for group in answers.values():
        for split, lines in group.lines.get(strategy, {}).items():
            yield group, split, list(lines.values())


def _source(data: str, sources: set[str]) -> str:
    """Tells sources apart where a run has several."""
    return "_" + re.sub(r"[^\w.-]+", "_", data) if len(sources) > 1 else ""


def _lmms_task(task: str, split: str | None, data: str, sources: set[str]) -> str:
    theirs = _theirs(task)
    whole = split in (None, MEAN)
    name = theirs.task if whole else theirs.splits.get(str(split), f"{theirs.task}_{split}")
    return name + _source(data, sources)


def _lmms_sample(number: int, line: Mapping[str, Any]) -> str:
    target = line.get("label") or ", ".join(line.get("objects") or ())
    return json.dumps(
        {
            "doc_id": number,
            "question_id": line["id"],
            "target": target,
            "filtered_resps": [line["answer"]],
            "doc_hash": hashlib.sha256(line["data_hash"].encode()).hexdigest(),
            "input": line["prompt"],
            "score": line["score"],
            **benchmark_named(line["task"]).lmms_eval_outcome(line),
        },
        ensure_ascii=False,
    )


def _kit_row(index: int, line: Mapping[str, Any], split: str | None) -> dict[str, Any]:
    category = split or line.get("type") or str(line["id"]).split("/", 1)[0]
    category = line.get("category", category)
    return {
        "index": index,
        "id": line["id"],
        "image_path": line["image"],
        "question": line["prompt"],
        "answer": line["label"].capitalize(),
        "category": category,
        **({"l2-category": line["subcategory"]} if "subcategory" in line else {}),
        "prediction": line["answer"],
    }
