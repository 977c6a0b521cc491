"""What `calibrate` and training read: questions with their labels, pictures with their captions.

Sources are those of `eval` (`evals.load`): testbed names, folders, hub ids, or pictures
with a file. A folder gives what it has of POPE questions and COCO captions; strategies that compare
captions read pairs of them (`caption_pairs`),
others what the model said itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from halludecode.analysis.caption_pairs import made_up, read_labels, read_pairs
from halludecode.core.calibration import CaptionPair, LabelledCaption
from halludecode.core.errors import InvalidData
from halludecode.engines.api import Request
from halludecode.evals import load_hub as hub
from halludecode.evals.benchmarks.registry import standard_of
from halludecode.evals.data.entries import Selection, folder_pictures
from halludecode.evals.data.records import read_text
from halludecode.evals.data.samples import EvalUnit, Sample
from halludecode.evals.load import TESTBED, check_places, load_units
from halludecode.evals.presets import describing, preset_for
from halludecode.testbed import dataset

Pairs = list[tuple[Request, str | CaptionPair | LabelledCaption | None]]


def samples(
    model: str,
    sources: Sequence[str],
    images: Path | None = None,
    annotations: Path | None = None,
    *,
    prompt_preset: str | None = None,
    limit: int = 50,
    kind: str = "answers",
) -> Pairs:
    """Read questions and captions, each with its answer.

    Args:
        model: The model's name; it chooses the default prompt preset.
        sources: Testbed names, folders or hub ids (POPE questions only).
        images: Folder of pictures, with ``annotations``.
        annotations: POPE question file or COCO captions file.
        prompt_preset: Whose words go round a question, as for `eval`.
        limit: First N pictures of every source.
        kind: "pairs" reads pairs of captions instead, one a picture, "labels" what a run of chair
            on these pictures wrote and found made up; see `Strategy.samples`.

    Raises:
        InvalidData: Files are missing or damaged, or a source has neither questions nor captions.
        InvalidParameter: There is no such preset, or it lacks a prompt.
        InvalidRequest: A picture cannot be decoded.
    """
    pairs: Pairs = []
    prompt = describing(prompt_preset, model)[1].prompt("caption", "") if kind == "pairs" else ""
    if (images is None) != (annotations is None):
        raise InvalidData("--images and --annotations go together: a folder and its file.")
    painted = kind == "labels" and str(images) in TESTBED
    check_places(sources, None if painted else images, annotations)
    if images is not None and annotations is not None:
        if painted:
            images = dataset(str(images), limit) / "images"
        if kind == "labels":
            pairs += read_labels(annotations, images, limit)
        elif kind == "pairs":
            pairs += read_pairs(annotations, images, prompt, limit)
        elif _is_captions(annotations):
            pairs += _captions(annotations, images, model, prompt_preset, limit)
        else:
            pairs += _questions([], images, annotations, model, prompt_preset, limit)
    for source in sources:
        pairs += _from_source(source, model, prompt_preset, limit, kind)
    return pairs


def _from_source(source: str, model: str, preset: str | None, limit: int, kind: str) -> Pairs:
    folder = dataset(source, limit) if source in TESTBED else Path(source)
    if kind == "pairs":
        return made_up(folder, describing(preset, model)[1].prompt("caption", ""), limit)
    if not folder.is_dir():
        return _questions([source], None, None, model, preset, limit)
    pairs: Pairs = []
    if standard_of("yes_no")().find(folder):
        pairs += _questions([str(folder)], None, None, model, preset, limit)
    captions = min((folder / "annotations").glob("captions*.json"), default=None)
    if captions is not None:
        pairs += _captions(captions, folder / "images", model, preset, limit)
    if not pairs and hub.is_hub_copy(folder):
        return _questions([source], None, None, model, preset, limit)
    if not pairs:
        raise InvalidData(
            f"{folder}: nothing to calibrate on; it needs questions with labels "
            f"({standard_of('yes_no').needs}) or annotations/captions*.json, with images/ beside."
        )
    return pairs


def _questions(
    sources: Sequence[str],
    images: Path | None,
    annotations: Path | None,
    model: str,
    preset: str | None,
    limit: int,
) -> Pairs:
    benchmark = standard_of("yes_no")()
    chosen = {benchmark.name: preset_for(preset, model, [benchmark])[1]}
    selection = Selection([benchmark], chosen, limit=limit)
    units = load_units(sources, selection, images, annotations)
    pictures: dict[str, Any] = {}
    pairs: Pairs = []
    for sample in _in_turn(units):
        digest = sample.picture.digest
        if digest not in pictures:
            pictures[digest] = sample.picture.load()
        pairs.append((Request(sample.prompt, (pictures[digest],)), sample.label))
    return pairs


def _in_turn(units: Sequence[EvalUnit]) -> Iterator[Sample]:
    """Every picture with the questions of one split, the splits in turn.

    The splits share their "yes" questions: all of them would be mostly repeats, without the repeats
    mostly "no".
    """
    names = dict.fromkeys(s.picture.name for unit in units for s in unit.samples)
    turn = {name: i % len(units) for i, name in enumerate(names)}
    return (s for i, unit in enumerate(units) for s in unit.samples if turn[s.picture.name] == i)


def _is_captions(path: Path) -> bool:
    """Whether a file is one JSON object with COCO's annotations, not JSON lines."""
    try:
        value = json.loads(read_text(path))
    except ValueError:
        return False
    return isinstance(value, dict) and "annotations" in value


def _captions(path: Path, images: Path, model: str, preset: str | None, limit: int) -> Pairs:
    """Every caption of the first pictures that are in the folder, as the answer to a prompt."""
    prompt = describing(preset, model)[1].prompt("caption", "")
    try:
        content = json.loads(read_text(path))
        names = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
        captions = [(int(a["image_id"]), str(a["caption"])) for a in content["annotations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidData(
            f"{path}: not a COCO captions file ({error} is missing or of another type)."
        ) from None
    present = {i for i, name in names.items() if (images / name).is_file()}
    described = list(dict.fromkeys(i for i, _ in captions if i in present))[:limit]
    if not described:
        raise InvalidData(f"{images} holds none of the pictures that {path} describes.")
    find = folder_pictures(images)
    pictures = {i: find(names[i], str(path)).load() for i in described}
    return [(Request(prompt, (pictures[i],)), text) for i, text in captions if i in pictures]
