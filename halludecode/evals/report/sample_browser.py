"""The report's sample browser: what is written into the page for its script to show.

Only part of a run goes in: pictures are chosen by `chosen_samples`, all questions about a
chosen picture come with it, and the whole stays below `BYTES`. The page says how much of how much
is in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halludecode.evals.benchmarks.base import Mention
from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.report import gallery
from halludecode.evals.results import chosen_samples
from halludecode.evals.results.build import BASELINE, Answers
from halludecode.evals.results.kept_pictures import picture_path

PICTURES = 160  # on the page, over all runs and sources
BYTES = 3_000_000  # of all samples and their pictures on the page
SIZE = 200  # pixels of the longer side
QUALITY = 80

# By picture, every question about it: the answers it is among, split, id.
Questions = Mapping[str, Sequence[tuple[Answers, str | None, Any]]]


@dataclass(frozen=True)
class Source:
    """The answers of one run on one data source.

    Args:
        run: Name of the run.
        data: Name of the source.
        folder: The run folder.
        labels: Canonical strategy to the words it was asked for with.
        groups: Answers to every task on the source.
    """

    run: str
    data: str
    folder: Path
    labels: Mapping[str, str]
    groups: Sequence[Answers]

    @property
    def strategies(self) -> list[str]:
        """Canonical strategies, greedy first."""
        names = dict.fromkeys(name for group in self.groups for name in group.lines)
        return sorted(names, key=lambda name: name != BASELINE)


def sources(
    run: str, folder: Path, labels: Mapping[str, str], answers: Mapping[Any, Answers]
) -> list[Source]:
    """The data sources of one run."""
    by_data: dict[str, list[Answers]] = {}
    for group in answers.values():
        by_data.setdefault(group.data, []).append(group)
    return [Source(run, data, folder, labels, groups) for data, groups in by_data.items()]


def embed(shown: Sequence[Source], most: int = BYTES) -> dict[str, Any] | None:
    """What the page holds of these sources.

    Args:
        shown: All sources of all runs.
        most: Bytes that samples and pictures may take.

    Returns:
        ``json`` for the script, and counts for the words above it: ``samples`` and ``pictures`` in
        the page, ``all_samples`` and ``all_pictures`` there are; None where there is no answer.
    """
    questions = [_questions(source) for source in shown]
    pictures, samples = _packed(shown, questions, most)
    if not samples:
        return None
    order = {key: i for i, key in enumerate(_keys(shown))}
    samples.sort(key=lambda s: order[s["source"], s["task"], s["split"], s["id"]])
    page = {"sources": _heads(shown), "pictures": pictures, "samples": samples}
    return {
        "json": _json({**page, "titles": _titles(shown)}),
        "samples": len(samples),
        "pictures": len(pictures),
        "all_samples": sum(len(about) for by in questions for about in by.values()),
        "all_pictures": sum(map(len, questions)),
    }


def _packed(
    shown: Sequence[Source], questions: Sequence[Questions], most: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pictures and their samples, as many as there is room for."""
    each = max(2 * chosen_samples.LEAST, PICTURES // max(1, len(shown)))
    waiting = sorted(  # the first pictures of all sources first
        (rank, number, image, drawn)
        for number, source in enumerate(shown)
        for rank, (image, drawn) in enumerate(chosen_samples.pictures(source.groups, each).items())
    )
    pictures: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    room = most
    for _, number, image, drawn in waiting:
        picture = _picture(shown[number], number, image, drawn)
        about = [
            {"source": number, "picture": len(pictures), **_sample(shown[number], *key)}
            for key in questions[number][image]
        ]
        room -= sum(len(_json(part).encode()) for part in (picture, about))
        if room < 0:
            break
        pictures.append(picture)
        samples += about
    return pictures, samples


def _heads(shown: Sequence[Source]) -> list[dict[str, Any]]:
    return [
        {
            "run": source.run,
            "data": source.data,
            "strategies": [source.labels.get(s, s) for s in source.strategies],
            "baseline": source.strategies.index(BASELINE) if BASELINE in source.strategies else -1,
        }
        for source in shown
    ]


def _titles(shown: Sequence[Source]) -> dict[str, str]:
    """What people call the tasks."""
    tasks = dict.fromkeys(group.task for source in shown for group in source.groups)
    return {task: benchmark_named(task).title or task for task in tasks}


def _questions(source: Source) -> Questions:
    """Every question on every picture."""
    by_image: dict[str, dict[tuple[str, str | None, Any], tuple[Answers, str | None, Any]]] = {}
    for group in source.groups:
        for by_split in group.lines.values():
            for split, lines in by_split.items():
                for i, line in lines.items():
                    key = (group.task, split, i)
                    by_image.setdefault(line["image"], {}).setdefault(key, (group, split, i))
    return {image: list(about.values()) for image, about in by_image.items()}


def _picture(source: Source, number: int, image: str, drawn: bool) -> dict[str, Any]:
    path = picture_path(source.folder, source.data, image)
    shown = gallery.data_uri(path.read_bytes(), SIZE, QUALITY) if path.is_file() else None
    return {"source": number, "name": image, "shown": shown, "drawn": drawn}


def _sample(source: Source, group: Answers, split: str | None, i: Any) -> dict[str, Any]:
    """One question with the answer of every strategy; equal answers are written once.

    ``said`` holds [text, mistakes, parsed] and, for captions, the text in pieces: a plain string,
    or [words, object, whether it is invented]. ``by`` holds one index into it a strategy, -1 for
    none.
    """
    lines = [group.lines.get(s, {}).get(split, {}).get(i) for s in source.strategies]
    first = next(line for line in lines if line)
    benchmark = benchmark_named(group.task)
    answers: dict[str, list[Any]] = {}  # by their text
    for line in lines:
        if line and (text := group.scored_text(line)) not in answers:
            mentions = benchmark.mentions(text, line, group.families)
            answers[text] = _answer(line, text, mentions)
    order = list(answers)
    margins = [line and line.get("margin") for line in lines]
    return {
        "task": group.task,
        "split": split,
        "id": i,
        "asked": first["prompt"],
        "label": first.get("label"),
        "objects": first.get("objects"),
        "said": list(answers.values()),
        "by": [order.index(group.scored_text(line)) if line else -1 for line in lines],
        "margins": [None if m is None else round(m, 2) for m in margins],
    }


def _answer(line: Mapping[str, Any], text: str, mentions: Sequence[Mention] | None) -> list[Any]:
    parsed = line["parsed"]
    if isinstance(parsed, str):
        return [text, chosen_samples.mistakes(line), parsed]
    if mentions is None:
        return [text, chosen_samples.mistakes(line), None]
    pieces: list[Any] = []
    start = 0
    for mention in mentions:
        pieces.append(text[start : mention.start])
        word = text[mention.start : mention.end]
        pieces.append([word, mention.object, int(mention.invented)])
        start = mention.end
    invented = sum(mention.invented for mention in mentions)
    return [text, invented, None, [piece for piece in [*pieces, text[start:]] if piece]]


def _keys(shown: Sequence[Source]) -> Iterable[tuple[int, str, str | None, Any]]:
    """Every question, in the order they were asked in."""
    for number, source in enumerate(shown):
        for group in source.groups:
            for by_split in group.lines.values():
                for split, lines in by_split.items():
                    for i in lines:
                        yield number, group.task, split, i


def _json(value: Any) -> str:
    """JSON that can stand inside a script element, whatever a model said."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text
