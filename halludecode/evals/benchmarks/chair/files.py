"""CHAIR's files: COCO's pictures and captions beside them, captions made elsewhere."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.chair import scoring as chair
from halludecode.evals.benchmarks.chair.word_list import Lines, beyond, categories_of
from halludecode.evals.data.coco import file_name
from halludecode.evals.data.records import read_text
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Id


def first(folder: Path, stem: str) -> Path | None:
    """The first JSON file of a folder whose name begins so."""
    return min(folder.glob(f"{stem}*.json"), default=None)


def captions_beside(instances: Path, named: bool) -> Path | None:
    """The reference captions that go with an instances file; None where there are none.

    Args:
        instances: The file.
        named: Whether the user named it, and so means the captions of the same name; of a data
            folder any captions are meant.
    """
    if named:
        return first(instances.parent, instances.stem.replace("instances", "captions"))
    return first(instances.parent, "captions") or first(instances.parent.parent, "captions")


def pictures(instances: Path) -> list[tuple[int, str]]:
    """Id and file name of every picture of a COCO file.

    Raises:
        InvalidData: It is no COCO file.
    """
    try:
        images = json.loads(read_text(instances))["images"]
        return [(int(image["id"]), str(image["file_name"])) for image in images]
    except json.JSONDecodeError as error:
        raise InvalidData(f"{instances}:{error.lineno}: not JSON ({error.msg}).") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidData(
            f"{instances}: not a COCO file ({error} is missing or of another type); "
            '"images" must list "id" and "file_name".'
        ) from None


def instances_of(annotations: Path) -> list[Path]:
    """The COCO instances files meant: the file itself, or all of a folder, such as train and val.

    Raises:
        InvalidData: A folder holds none.
    """
    if not annotations.is_dir():
        return [annotations]
    if found := sorted(annotations.glob("instances_*.json")):
        return found
    raise InvalidData(
        f"{annotations}: no COCO instances file is in this folder; give a file, or a folder of "
        "files named instances_*.json."
    )


def captions_read(annotations: Path | None, captions: Path | None) -> dict[Path, Path | None]:
    """The captions file that counts beside each instances file; {} where there are none.

    Raises:
        InvalidData: One captions file is given for several of instances.
    """
    if annotations is None or ".tsv" in annotations.suffixes:
        return {}
    files = instances_of(annotations)
    if captions and len(files) > 1:
        raise InvalidData(
            f"{captions}: one captions file for {len(files)} instances files in {annotations}; put "
            f"each beside its own, as {files[0].name.replace('instances', 'captions')}, and leave "
            "--captions out."
        )
    return {file: captions or captions_beside(file, named=True) for file in files}


def captions_told(annotations: Path | None, captions: Path | None) -> dict[str, Any]:
    """``captions``: the captions file that counts, or those beside several instances files."""
    read = [f and str(f) for f in captions_read(annotations, captions).values()]
    return {"captions": read if read[1:] else read[0]} if read else {}


def ways_of_reading(
    path: str, annotations: Path | None, captions: Path | None, synonyms: Lines | None = None
) -> list[str]:
    """Which path finds the words, and what the truth of files is, in sentences."""
    by = {"nltk": "NLTK", "tables": "the tokeniser and tagger of this package"}[path]
    ways = [f"Words are found by {by} (path {path})."]
    if synonyms is not None:
        count, more = len(categories_of(synonyms)), len(beyond(synonyms))
        ways.append(f"Object words are your own: {count} categories, {more} words CHAIR lacks.")
    read = captions_read(annotations, captions)
    for file, beside in read.items():
        counted = f"instances and the captions of {beside}" if beside else "instances only"
        ways.append(f"The truth is {counted}{f' ({file.name})' if len(read) > 1 else ''}.")
    return ways


def truth_of(
    annotations: Path | None,
    captions: Path | None,
    gt_family: str,
    path: str,
    cells: Collection[Id],
    synonyms: Lines | None = None,
) -> list[Sample]:
    """The pictures of which answers may be, with their true objects.

    Args:
        annotations: COCO instances, a folder of several, or finished sets (``.tsv``); None takes
            the shipped ones.
        captions: COCO captions of the same pictures; None takes those beside the instances.
        gt_family: Word family of the ground truth.
        path: What finds words, see `object_words.reader`.
        cells: What the answers' records hold: ids of pictures, or stems of their files' names.
        synonyms: Object words in place of CHAIR's own.

    Raises:
        InvalidData: A file cannot be used.
    """
    if annotations is None or ".tsv" in annotations.suffixes:
        if captions is not None:
            raise InvalidData("a captions file needs COCO instances beside it; give --annotations.")
        if annotations is None and synonyms is not None:
            raise InvalidData(
                "the shipped object sets are made with CHAIR's own words; with others give "
                "--annotations."
            )
        if annotations is None and gt_family != "wordnet":
            raise InvalidData(
                f"the shipped object sets are of the wordnet family, not {gt_family!r}; "
                "give --annotations and --captions."
            )
        sets = chair.load_truth(annotations or chair.SHIPPED, synonyms)
        return [_sample(i, sets[i], None) for i in sets if i in cells]
    found: dict[int, tuple[Path, Sample]] = {}
    for file, beside in captions_read(annotations, captions).items():
        coco = chair.read_instances(file, synonyms)
        names = {i: file_name(image) for i, image in coco.imgs.items()}
        wanted = {
            i for i, name in names.items() if i in cells or PurePosixPath(name or "").stem in cells
        }
        words = {"family": gt_family, "path": path, "synonyms": synonyms}
        truth = chair.objects_of(coco, beside, **words, images=wanted)
        for i, objects in truth.items():
            sample = _sample(i, objects, names[i])
            before = found.setdefault(i, (file, sample))
            if before[1].objects != sample.objects:
                raise InvalidData(
                    f"picture {i} has other objects in {before[0]} than in {file}; give one file."
                )
    return [sample for _, sample in found.values()]


def _sample(image: int, objects: Collection[str], name: str | None) -> Sample:
    return Sample(image, "", name or f"{image:012d}.jpg", objects=tuple(sorted(objects)))
