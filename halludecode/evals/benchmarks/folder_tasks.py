"""AMBER and HallusionBench as tasks of ``eval``: units of questions, and how an answer is read.

Both come from their released files, at a path or among a data folder::

    AMBER: annotations.json, relation.json, safe_words.txt, query/query_*.json  (its folder data)
           pictures in image/ or images/ beside them or beside that folder
    HallusionBench: HallusionBench.json, figures in hallusion_bench/, images/ or beside it

Answers are read by the official rules, see `amber` and `hallusion`. AMBER's query files say what is
asked: a folder with one of them is asked that much. HallusionBench's questions without a figure
are asked without one.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.amber import scoring as amber
from halludecode.evals.benchmarks.amber.description_words import Describer
from halludecode.evals.benchmarks.hallusionbench import scoring as hallusion
from halludecode.evals.benchmarks.hallusionbench.files import ID
from halludecode.evals.data.entries import Entry, Pictures, Selection, folder_pictures, make_unit
from halludecode.evals.data.samples import EvalUnit, Sample

Judge = Callable[[Sample, str], dict[str, Any]]


def folder_units(
    folder: Path, data: str, selection: Selection, images: Path | None
) -> list[EvalUnit]:
    """What a data folder holds of the two that is asked for.

    Args:
        folder: The data folder.
        data: Name of the source.
        selection: Tasks, prompts, limits.
        images: Folder of the pictures, where it is not beside the questions.
    """
    units = []
    for task, (name, places) in _PLACES.items():
        found = (folder / place / name for place in places)
        file = next((path for path in found if path.is_file()), None)
        if task in selection.tasks and file is not None:
            units.append(UNITS[task](file, data, selection, images))
    return units


_PLACES = {
    "amber": ("annotations.json", ("amber", "amber/data", "data", "")),
    "hallusionbench": ("HallusionBench.json", ("hallusionbench", "")),
}
FILES = tuple(
    str(Path(place) / name) for name, places in _PLACES.values() for place in places
)  # by which a data folder is known to hold one of the two


def unit_of(
    task: str,
    data: str,
    entries: Sequence[Entry],
    pictures: Pictures,
    selection: Selection,
    revision: str | None = None,
    lexicon: Path | None = None,
) -> EvalUnit:
    """A unit of either task.

    Args:
        task: ``amber`` or ``hallusionbench``.
        data: Name of the source.
        entries: Made by `amber_entry` or `hallusion_entry`.
        pictures: Finds a picture.
        selection: Prompts, limit, similarity.
        revision: Of a hub data set.
        lexicon: Folder of AMBER's word lists; None takes the shipped ones.

    Raises:
        InvalidData: A picture is missing, an id occurs twice, or the word lists are damaged.
        MissingExtra: Descriptions are asked for and what reads them is not installed.
    """
    judge: Judge = judge_hallusion
    if task == "amber":
        entries, judge = _described(entries, selection, lexicon)
    else:  # a set counts only if it was answered whole
        sizes = Counter(entry.group for entry in entries)
        entries = [
            replace(entry, facts={**entry.facts, "set_size": sizes[entry.group]})
            for entry in entries
        ]
    return make_unit(task, data, None, entries, pictures, selection, revision, judge)


# AMBER ------------------------------------------------------------------------------------------


def amber_unit(path: Path, data: str, selection: Selection, images: Path | None) -> EvalUnit:
    """AMBER's items that a query file asks about.

    Args:
        path: ``annotations.json`` or its folder.
        data: Name of the source.
        selection: Prompts, limit, similarity.
        images: Folder of the pictures; None is the one beside.

    Raises:
        InvalidData: A file is damaged, or no query file is there.
        MissingExtra: Descriptions are asked for and what reads them is not installed.
    """
    items = [item for item in amber.load_items(path) if item.query is not None]
    root = path if path.is_dir() else path.parent
    if not items:
        raise InvalidData(
            f"{root}: no query/query_*.json, which says what is asked about which picture; "
            "take AMBER's whole data folder."
        )
    entries = [amber_entry(item) for item in items]
    pictures = folder_pictures(images or _first_folder(root, "image", "images"))
    return unit_of("amber", data, entries, pictures, selection, lexicon=path)


def _first_folder(root: Path, *names: str) -> Path:
    """The first of these folders beside or above the questions; ``root`` without any."""
    places = [root / name for name in names] + [root.parent / name for name in names]
    return next((place for place in places if place.is_dir()), root)


def amber_entry(item: amber.AmberItem) -> Entry:
    """One item."""
    facts: dict[str, Any] = {"type": item.type}
    if item.label is None:
        facts["hallu"] = list(item.hallu)
    objects = item.truth if item.label is None else None
    return Entry(item.id, str(item.query), item.image, item.where, item.label, objects, facts)


def _described(
    entries: Sequence[Entry], selection: Selection, lexicon: Path | None
) -> tuple[list[Entry], Judge]:
    """The entries with the digest of the word lists they are read by, and what reads them."""
    if all(entry.label is not None for entry in entries):
        return list(entries), partial(judge_amber, None)
    lists = amber.load_lexicon(*([lexicon] if lexicon else []))
    describer = amber.make_describer(lists, selection.similarity)
    told = {"lexicon": _lexicon_digest(lists)}
    named = list(entries)
    for i, entry in enumerate(entries):
        if entry.label is None:
            describer.check([*(entry.objects or ()), *entry.facts["hallu"]], entry.where)
            named[i] = replace(entry, facts={**entry.facts, **told})
    return named, partial(judge_amber, describer)


def _lexicon_digest(lexicon: amber.Lexicon) -> str:
    relation = {name: list(words) for name, words in lexicon.relation.items()}
    text = json.dumps([relation, sorted(lexicon.safe)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def judge_amber(describer: Describer | None, sample: Sample, answer: str) -> dict[str, Any]:
    """``parsed`` and ``score`` of one response; a description's score is its share of true words.

    Args:
        describer: Reads descriptions.
        sample: What was asked.
        answer: The raw response.
    """
    item = amber.AmberItem(
        int(sample.id),
        sample.facts["type"],
        sample.label,
        tuple(sample.objects or ()),
        tuple(sample.facts.get("hallu", ())),
    )
    found = amber.judge(item, answer, describer=describer)
    if sample.label is not None:
        return {"parsed": found["parsed"], "score": found["correct"]}
    said, wrong = len(found["nouns"]), len(found["hallucinated"])
    parsed = {k: found[k] for k in ("nouns", "hallucinated", "covered", "thought_of")}
    return {"parsed": parsed, "score": 1 - wrong / said if said else 1.0}


# HallusionBench ---------------------------------------------------------------------------------


def hallusion_unit(path: Path, data: str, selection: Selection, images: Path | None) -> EvalUnit:
    """All questions of ``HallusionBench.json``.

    Args:
        path: The file.
        data: Name of the source.
        selection: Prompts; the limit counts sets.
        images: Folder the figures' names start from; None is the one beside.

    Raises:
        InvalidData: The file is damaged, or a figure is missing.
    """
    entries = [hallusion_entry(question) for question in hallusion.load_questions(path)]
    figures = folder_pictures(images or _first_folder(path.parent, "hallusion_bench", "images"))
    return unit_of("hallusionbench", data, entries, figures, selection)


def hallusion_entry(question: hallusion.HallusionQuestion) -> Entry:
    """One question."""
    image = None if question.blind else question.image
    facts = {name: getattr(question, name) for name in (*ID, "visual_input")}
    told = (question.text, image, question.where, question.label, None, facts)
    return Entry(question.id, *told, group=hallusion.set_of(question))


def judge_hallusion(sample: Sample, answer: str) -> dict[str, Any]:
    """``parsed`` and ``score`` of one answer.

    Args:
        sample: What was asked.
        answer: The raw answer.
    """
    named = {name: sample.facts[name] for name in (*ID, "visual_input")}
    question = hallusion.HallusionQuestion(**named, text=sample.question, label=str(sample.label))
    found = hallusion.judge(question, answer)
    return {"parsed": found["parsed"], "score": found["correct"]}


def whole_sets(lines: Mapping[Any, Mapping[str, Any]]) -> dict[Any, Mapping[str, Any]]:
    """HallusionBench's lines of sets that were answered whole: a pair or figure needs all of it.

    Args:
        lines: Lines of ``samples.jsonl`` by id.
    """
    names = {
        i: (line["category"], line["subcategory"], line["set_id"]) for i, line in lines.items()
    }
    answered = Counter(names.values())
    return {i: line for i, line in lines.items() if answered[names[i]] == line["set_size"]}


UNITS: Mapping[str, Callable[[Path, str, Selection, Path | None], EvalUnit]] = MappingProxyType(
    {"amber": amber_unit, "hallusionbench": hallusion_unit}
)
SCORES: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], Any]] = MappingProxyType(
    {"amber": amber.score_lines, "hallusionbench": hallusion.score_lines}
)
