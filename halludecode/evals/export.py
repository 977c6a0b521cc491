"""Run folders in the form other harnesses write, so that their tools can read them.

lmms-eval: ``<model>/<date>_results.json`` and ``<date>_samples_<task>.jsonl``, with its task and
metric names where it has the metric. VLMEvalKit: one prediction table (TSV) per model and data set.
Both know one system at a time, so every strategy is a model of its own, named ``model__strategy``.
Numbers are this package's own: the yes ratio is that of the predictions, where lmms-eval counts
labels.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.results import Answers, arrange, labels
from halludecode.evals.store import read_json, read_lines, write_json

SPLITS = {"random": "pope_random", "popular": "pope_pop", "adversarial": "pope_adv"}
METRICS = {
    "pope": {
        "accuracy": "pope_accuracy",
        "precision": "pope_precision",
        "recall": "pope_recall",
        "f1": "pope_f1_score",
        "yes_ratio": "pope_yes_ratio",
    },
    "chair": {
        "chair_i": "coco_cap_chair_i",
        "chair_s": "coco_cap_chair_s",
        "recall": "coco_cap_recall",
    },
    "mme": {"perception": "mme_perception_score", "cognition": "mme_cognition_score"},
}


def lmms_eval(run: Path, output: Path) -> None:
    """Writes a run folder as lmms-eval would have, one model folder per strategy.

    Args:
        run: Run folder with ``results.json``.
        output: Folder to write into.
    """
    recipe, results = read_json(run / "run.json"), read_json(run / "results.json")
    sources = {entry["data"] for entry in results["runs"]}
    date = re.sub(r"\W", "", str(recipe.get("started", "")))[:15] or "run"
    answers = _answers(run, recipe)
    for strategy, name in _systems(recipe):
        folder = output / name
        folder.mkdir(parents=True, exist_ok=True)
        mine = [e for e in results["runs"] if e["strategy"] == strategy and e["metrics"]]
        by_task = {_lmms_task(e["task"], e["split"], e["data"], sources): e for e in mine}
        document = {
            "results": {task: _lmms_metrics(task, entry) for task, entry in by_task.items()},
            "n-samples": {t: {"original": e["n"], "effective": e["n"]} for t, e in by_task.items()},
            "config": {
                "model": "halludecode",
                "model_args": f"pretrained={recipe['model']},strategy={strategy}",
                "seed": recipe.get("seed"),
            },
            "model_name": recipe["model"],
            "model_name_sanitized": name,
            "date": recipe.get("started"),
        }
        write_json(folder / f"{date}_results.json", document)
        for group, split, lines in _parts(answers, strategy):
            task = _lmms_task(group.task, split, group.data, sources)
            path = folder / f"{date}_samples_{task}.jsonl"
            text = "".join(_lmms_sample(i, line) + "\n" for i, line in enumerate(lines))
            path.write_text(text, encoding="utf-8")


def vlmevalkit(run: Path, output: Path) -> None:
    """Writes the yes/no answers of a run folder as VLMEvalKit's prediction tables.

    Args:
        run: Run folder.
        output: Folder to write into.

    Raises:
        InvalidData: The run holds captions only, which VLMEvalKit does not score.
    """
    recipe = read_json(run / "run.json")
    answers = _answers(run, recipe)
    sources = {group.data for group in answers.values()}
    output.mkdir(parents=True, exist_ok=True)
    tables: dict[Path, list[dict[str, Any]]] = {}
    for strategy, name in _systems(recipe):
        for group, split, lines in _parts(answers, strategy):
            if group.task != "chair":
                data = group.task.upper() + _source(group.data, sources)
                rows = tables.setdefault(output / f"{name}_{data}.tsv", [])
                rows += [_kit_row(len(rows) + i, line, split) for i, line in enumerate(lines)]
    if not tables:
        raise InvalidData(f"{run} holds captions only; VLMEvalKit's tables are for yes/no tasks.")
    for path, rows in tables.items():
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), dialect="excel-tab", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def _answers(run: Path, recipe: Mapping[str, Any]) -> dict[tuple[str, str], Answers]:
    return arrange(read_lines(run / "samples.jsonl"), recipe.get("chair", {}))


def _systems(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(canonical strategy, name of the system it makes with the model)."""
    for strategy, words in labels(recipe).items():
        yield strategy, re.sub(r"[^\w.+=,()-]+", "_", f"{recipe['model']}__{words}")


def _parts(
    answers: Mapping[Any, Answers], strategy: str
) -> Iterator[tuple[Answers, str | None, list[Mapping[str, Any]]]]:
    for group in answers.values():
        for split, lines in group.lines.get(strategy, {}).items():
            yield group, split, list(lines.values())


def _source(data: str, sources: set[str]) -> str:
    """Tells sources apart where a run has several."""
    return "_" + re.sub(r"[^\w.-]+", "_", data) if len(sources) > 1 else ""


def _lmms_task(task: str, split: str | None, data: str, sources: set[str]) -> str:
    names = {"chair": "coco_cap_chair", "mme": "mme", "pope": "pope"}
    name = names[task] if split in (None, "mean") else SPLITS.get(split, f"pope_{split}")
    return name + _source(data, sources)


def _lmms_metrics(task: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    known = METRICS[entry["task"]]
    found: dict[str, Any] = {"alias": task}
    for ours, theirs in known.items():
        if ours in entry["metrics"]:
            found[f"{theirs},none"] = entry["metrics"][ours]["value"]
    return found


def _lmms_sample(number: int, line: Mapping[str, Any]) -> str:
    target = line.get("label") or ", ".join(line.get("objects", ()))
    return json.dumps(
        {
            "doc_id": number,
            "question_id": line["id"],
            "input": line["prompt"],
            "target": target,
            "filtered_resps": [line["answer"]],
            "doc_hash": hashlib.sha256(line["data_hash"].encode()).hexdigest(),
            "score": line["score"],
        },
        ensure_ascii=False,
    )


def _kit_row(index: int, line: Mapping[str, Any], split: str | None) -> dict[str, Any]:
    category = split or str(line["id"]).split("/", 1)[0]
    return {
        "index": index,
        "id": line["id"],
        "image_path": line["image"],
        "question": line["prompt"],
        "answer": line["label"].capitalize(),
        "category": category,
        "prediction": line["answer"],
    }
