"""The report's sample browser: what is written into the page for its script to show.

Only part of a run goes in: pictures are chosen by `chosen`, all questions about a chosen picture
come with it, and the whole stays below `BYTES`. The page says how much of how much is in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halludecode.evals.benchmarks.chair import object_words as words
from halludecode.evals.report import chosen_samples as chosen
from halludecode.evals.report import gallery
from halludecode.evals.results.build import BASELINE, Answers

PICTURES = 160  # on the page, over all runs and sources
BYTES = 3_000_000  # of all samples and their pictures on the page
SIZE = 200  # pixels of the longer side
QUALITY = 80

# By picture, every question about it: the answers it is among, split, id.
Asked = Mapping[str, Sequence[tuple[Answers, str | None, Any]]]


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
    found: dict[str, list[Answers]] = {}
    for group in answers.values():
        found.setdefault(group.data, []).append(group)
    return [Source(run, data, folder, labels, groups) for data, groups in found.items()]


def embed(shown: Sequence[Source], most: int = BYTES) -> dict[str, Any] | None:
    """What the page holds of these sources.

    Args:
        shown: All sources of all runs.
        most: Bytes that samples and pictures may take.

    Returns:
        ``json`` for the script, and counts for the words above it: ``samples`` and ``pictures`` in
        the page, ``all_samples`` and ``all_pictures`` there are; None where there is no answer.
    """
    asked = [_asked(source) for source in shown]
    pictures, samples = _packed(shown, asked, most)
    if not samples:
        return None
    order = {key: i for i, key in enumerate(_keys(shown))}
    samples.sort(key=lambda s: order[s["source"], s["task"], s["split"], s["id"]])
    return {
        "json": _json({"sources": _heads(shown), "pictures": pictures, "samples": samples}),
        "samples": len(samples),
        "pictures": len(pictures),
        "all_samples": sum(len(about) for found in asked for about in found.values()),
        "all_pictures": sum(map(len, asked)),
    }


def _packed(
    shown: Sequence[Source], asked: Sequence[Asked], most: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pictures and their samples, as many as there is room for."""
    each = max(2 * chosen.LEAST, PICTURES // max(1, len(shown)))
    waiting = sorted(  # the first pictures of all sources first
        (rank, number, image, drawn)
        for number, source in enumerate(shown)
        for rank, (image, drawn) in enumerate(chosen.pictures(source.groups, each).items())
    )
    pictures: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    room = most
    for _, number, image, drawn in waiting:
        picture = _picture(shown[number], number, image, drawn)
        about = [
            {"source": number, "picture": len(pictures), **_sample(shown[number], *key)}
            for key in asked[number][image]
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


def _asked(source: Source) -> Asked:
    """Every question on every picture."""
    found: dict[str, dict[tuple[str, str | None, Any], tuple[Answers, str | None, Any]]] = {}
    for group in source.groups:
        for by_split in group.lines.values():
            for split, lines in by_split.items():
                for i, line in lines.items():
                    key = (group.task, split, i)
                    found.setdefault(line["image"], {}).setdefault(key, (group, split, i))
    return {image: list(about.values()) for image, about in found.items()}


def _picture(source: Source, number: int, image: str, drawn: bool) -> dict[str, Any]:
    path = gallery.picture_path(source.folder, source.data, image)
    shown = gallery.data_uri(path.read_bytes(), SIZE, QUALITY) if path.is_file() else None
    return {"source": number, "name": image, "shown": shown, "drawn": drawn}


def _sample(source: Source, group: Answers, split: str | None, i: Any) -> dict[str, Any]:
    """One question with the answer of every strategy; equal answers are written once.

    ``said`` holds [text, mistakes, parsed] and, for captions, the text in pieces: a plain string,
    or [words, object, whether it is invented]. ``by`` holds one index into it a strategy, -1 for
    none.
    """
    answers = [group.lines.get(s, {}).get(split, {}).get(i) for s in source.strategies]
    first = next(line for line in answers if line)
    reader = _reader(group)
    said: dict[str, list[Any]] = {}
    for line in answers:
        if line and group.scored_text(line) not in said:
            said[group.scored_text(line)] = _said(line, group.scored_text(line), reader)
    order = list(said)
    margins = [line and line.get("margin") for line in answers]
    return {
        "task": group.task,
        "split": split,
        "id": i,
        "asked": first["prompt"],
        "label": first.get("label"),
        "objects": first.get("objects"),
        "said": list(said.values()),
        "by": [order.index(group.scored_text(line)) if line else -1 for line in answers],
        "margins": [None if m is None else round(m, 2) for m in margins],
    }


def _reader(group: Answers) -> words.Reader | None:
    if group.task != "chair":
        return None
    families = group.families
    return words.reader(families.get("family", "wordnet"), families.get("path", "auto"))


def _said(line: Mapping[str, Any], answer: str, reader: words.Reader | None) -> list[Any]:
    parsed = line["parsed"]
    if isinstance(parsed, str):
        return [answer, chosen.mistakes(line), parsed]
    if reader is None or line.get("objects") is None:
        return [answer, chosen.mistakes(line), None]
    pieces: list[Any] = []
    at = wrong = 0
    for mention in reader.read(answer).mentions:
        invented = mention.object not in line["objects"]
        wrong += invented
        pieces.append(answer[at : mention.start])
        pieces.append([answer[mention.start : mention.end], mention.object, int(invented)])
        at = mention.end
    return [answer, wrong, None, [piece for piece in [*pieces, answer[at:]] if piece]]


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
