"""The sentences below the tables of a run."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from halludecode.evals.benchmarks.registry import NotInstalled, benchmark_named
from halludecode.evals.results import control_text
from halludecode.evals.results.remarks import FEW, few
from halludecode.evals.results.sections import MARK, MEAN
from halludecode.testbed.assets import MODELS, PLANTED

NEITHER = "neither yes nor no"
TIMING = (
    "time/token is relative to greedy, prefill included; it varies with the machine. Questions "
    "about one picture share what was computed of it unless a strategy edits the prompt itself, so "
    "that one-word answers show the prefill above all."
)
Labels = Mapping[str, str]  # canonical strategy to a shorter name


def notes(results: Mapping[str, Any], labels: Labels) -> list[str]:
    """What a reader of the tables must know, and what went wrong.

    Args:
        results: The content of ``results.json``.
        labels: Canonical strategy to a shorter name.
    """
    sentences: list[str] = []
    if results.get("differences"):
        sentences.append(
            f"Below a value: paired difference to greedy, 95 % interval, {MARK} leaves out zero "
            "(not corrected for several strategies; results.json has Holm's p)."
        )
        sentences += control_text.legend(results["differences"])
        sentences += control_text.verdicts(results["differences"], labels)
    timed = any(entry.get("tokens_per_second") for entry in results["runs"])
    sentences += timed * [TIMING]
    entries = [entry for entry in results["runs"] if entry["split"] != MEAN]
    for entry in entries:
        sentences += _losses(entry, labels)
    sentences += dict.fromkeys(filter(None, map(_few, entries)))
    sentences += control_text.fixed_answers(entries, labels)
    sentences += _idle(entries, labels)
    return [*sentences, *_warnings(entries, labels), *_misspelt(entries), *_strangers(entries)]


def _losses(entry: Mapping[str, Any], labels: Labels) -> Iterator[str]:
    """What is missing in one entry."""
    name = labels.get(entry["strategy"], entry["strategy"])
    split = f" ({entry['split']})" if entry["split"] not in ("", None, entry["data"]) else ""
    where = f"{name}, {entry['task']} on {entry['data']}{split}"
    if entry["failed"]:
        yield f"{where}: {entry['failed']} failed, see errors.jsonl."
    if unshared := entry.get("unshared"):
        yield f"{where}: left out, as not all answered the same: {unshared} of its answers."
    yield from (f"{where}: {remark}" for remark in entry.get("remarks", ()))
    if left_out := entry.get("left_out", 0) - entry.get("unshared", 0):
        yield (
            f"{where}: {left_out} answered but not scored, as others that they count together with "
            f"{'failed' if entry['failed'] else 'are not in the data'}."
        )
    unread = entry.get("unread", entry.get("unparsed"))
    if benchmark_named(entry["task"]).tells_unparsed and unread:
        yield (
            f"{where}: {unread} of {entry['n']} "
            f"answers say {_choices(entry['task'])} as the official rule reads them."
        )


def _few(entry: Mapping[str, Any]) -> str:
    """What so few pictures mean; "" where they are enough, or were not counted."""
    told = few(entry.get("clusters") or FEW)
    return f"{entry['task']} on {entry['data']}: {told}" if told else ""


def _choices(task: str) -> str:
    """What an answer that cannot be read does not say."""
    return "none of the choices" if benchmark_named(task).text_kind == "choice" else NEITHER


def _idle(entries: Sequence[Mapping[str, Any]], labels: Labels) -> Iterator[str]:
    """Strategies all of whose answers are greedy's, which a table shows as zeros alone."""
    alike, answers = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for entry in entries:
        if "as_greedy" in entry:
            key = entry["strategy"], entry["model"]
            alike[key] += entry["as_greedy"]
            answers[key] += entry["answered"]
    for (strategy, model), count in answers.items():
        if count and alike[strategy, model] == count:
            name = labels.get(strategy, strategy)
            planted = (
                f" --model {PLANTED} is the same model with attention sinks written in, for what "
                "acts on those."
            )
            yield (
                f"{name} changed nothing: all {count:,} of its answers are greedy's, word for "
                f"word, at these settings.{planted if model == MODELS[0] else ''}"
            )


def _warnings(entries: Sequence[Mapping[str, Any]], labels: Labels) -> Iterator[str]:
    """What strategies warned of, with the number of answers it holds for."""
    warned = Counter[tuple[str, str]]()
    answers = Counter[str]()
    for entry in entries:
        answers[entry["strategy"]] += entry["n"]
        for sentence, count in entry.get("warnings", {}).items():
            warned[entry["strategy"], sentence] += count
    for (strategy, sentence), count in warned.items():
        name = labels.get(strategy, strategy)
        yield f"{name}, {count} of {answers[strategy]} answers: {sentence}"


def _misspelt(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Columns that stay empty as no score has a metric of that name, though one has a like one."""
    given: dict[str, set[str]] = {}
    for entry in entries:
        given.setdefault(entry["task"], set()).update(entry["metrics"])
    for task, names in given.items():
        for metric in benchmark_named(task).metrics:
            close = difflib.get_close_matches(metric.name, names, n=1, cutoff=0.85)
            if metric.name not in names and close:
                yield (
                    f"{task}: no score has the metric {metric.name!r} that it declares, but "
                    f"{close[0]!r}; its column is empty."
                )


def _strangers(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Tasks that this installation does not know."""
    for task in dict.fromkeys(entry["task"] for entry in entries):
        if issubclass(benchmark_named(task), NotInstalled):
            yield (
                f"No benchmark {task!r} is installed here: its metrics stand as in results.json, "
                "without titles, units and controls."
            )
