"""Where questions and pictures come from: the testbed, a user's folder or files, a hub data set.

Folder layout (the testbed's own, and a user's)::

    images/                          pictures
    pope/{random,popular,adversarial}.jsonl
    annotations/instances*.json      COCO instances (CHAIR); captions*.json beside it is optional
    mme/<subtask>/*.txt              MME's official layout, pictures beside
    amber/                           AMBER's data folder, or the folder is AMBER's repository
    hallusionbench/                  HallusionBench.json, its figures beside or in hallusion_bench/

A source serves the tasks it has files for. Every task asked for must be served by some source.
``limit`` keeps the first N pictures of every source and task with all their questions; for MME the
pictures are taken from the subtasks in turn, so that a small run still covers all of them, and for
HallusionBench sets are counted, whose figures are judged together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from halludecode.core.errors import InvalidData
from halludecode.evals import load_hub as hub
from halludecode.evals.benchmarks import folder_tasks as benchmarks
from halludecode.evals.benchmarks.chair import scoring as chair
from halludecode.evals.benchmarks.mme import scoring as mme
from halludecode.evals.benchmarks.pope import scoring as pope
from halludecode.evals.data.entries import Entry, Selection, folder_pictures, in_turn, make_unit
from halludecode.evals.data.image_ids import check_ids
from halludecode.evals.data.records import read_records, read_text
from halludecode.evals.data.samples import EvalImage, EvalUnit
from halludecode.evals.presets import POPE_SPLITS

TESTBED = ("testbed-iid", "testbed-broken", "testbed-dev-iid", "testbed-dev-broken")
_COCO_NAME = re.compile(r"COCO_(train|val|test)\d{4}_\d{12}\.jpg$")


def load_units(
    sources: Sequence[str | Path],
    selection: Selection,
    images: Path | None = None,
    annotations: Path | None = None,
) -> list[EvalUnit]:
    """Reads every source.

    Args:
        sources: Testbed names, folders, hub ids or VLMEvalKit tables, see `hub`.
        selection: Tasks, prompts, limits.
        images: Folder of pictures; alone with ``annotations``, or in place of a folder's
            ``images/``.
        annotations: A POPE question file or a COCO instances file.

    Raises:
        InvalidData: Files are missing, damaged or contradict each other; the sentence names them.
        MissingExtra: A hub data set is asked for and ``datasets`` is not installed.
    """
    units: list[EvalUnit] = []
    if annotations is not None:
        units += _from_files(images, Path(annotations), selection)
    elif images is not None and not sources:
        units += _from_folder(Path(images), Path(images).resolve().name, selection, None)
    for source in sources:
        units += _from_source(str(source), selection, images)
    _check(units, selection, sources)
    return sorted(
        units, key=lambda unit: selection.tasks.index(unit.task)
    )  # stable: sources in order


def _check(units: Sequence[EvalUnit], selection: Selection, sources: Sequence[str | Path]) -> None:
    seen = set()
    for unit in units:
        if unit.key in seen:
            raise InvalidData(
                f"Two data sources are both named {unit.data!r}; rename one of the folders."
            )
        seen.add(unit.key)
    needs = {
        "pope": "pope/{random,popular,adversarial}.jsonl in the folder, or --annotations F.jsonl",
        "chair": "annotations/instances*.json in the folder, or --annotations INSTANCES.json",
        "mme": "mme/<subtask>/*.txt in the folder, or a hub data set with MME's columns",
        "amber": "amber/annotations.json with query/*.json, or --annotations ANNOTATIONS.json",
        "hallusionbench": "hallusionbench/HallusionBench.json, or --annotations that file",
    }
    for task in selection.tasks:
        if not any(unit.task == task for unit in units):
            named = ", ".join(str(source) for source in sources) or "the files given"
            raise InvalidData(f"No questions for {task} in {named}; it needs {needs[task]}.")


def _from_source(source: str, selection: Selection, images: Path | None) -> list[EvalUnit]:
    if source in TESTBED:
        from halludecode import testbed

        return _from_folder(
            testbed.dataset(source, selection.testbed_images), source, selection, None
        )
    if source.startswith("testbed"):
        raise InvalidData(f"No data source {source!r}; the testbed has {', '.join(TESTBED)}.")
    folder = Path(source)
    if folder.is_dir() and (_is_ours(folder) or not hub.is_hub_copy(folder)):
        return _from_folder(folder, folder.resolve().name, selection, images)
    if folder.is_file() and folder.suffix != ".tsv":
        raise InvalidData(f"{source} is a file; give the folder it is in, or a VLMEvalKit .tsv.")
    if not folder.exists() and not hub.HUB_ID.fullmatch(source):
        raise InvalidData(
            f"{source}: no such folder, and not a hub id (owner/name); "
            f"the testbed has {', '.join(TESTBED)}."
        )
    return hub.hub_units(source, selection, images)


def _is_ours(folder: Path) -> bool:
    """Whether a folder has the layout above, whatever else is in it."""
    patterns = ("pope/*.json*", "annotations/instances*.json", "mme/*/*.txt", "*/*.txt")
    return any(next(folder.glob(p), None) is not None for p in (*patterns, *benchmarks.FILES))


# Folders ----------------------------------------------------------------------------------------


def _from_folder(
    folder: Path, data: str, selection: Selection, images: Path | None
) -> list[EvalUnit]:
    pictures = folder_pictures(images or folder / "images")
    units = []
    if "pope" in selection.tasks:
        for split, file in pope_files(folder / "pope", selection.splits):
            units.append(make_unit("pope", data, split, pope_entries(file), pictures, selection))
    if "chair" in selection.tasks and (instances := _first(folder / "annotations", "instances")):
        captions = _first(folder / "annotations", "captions") or _first(folder, "captions")
        entries = chair_entries(instances, captions, selection)
        units.append(make_unit("chair", data, None, entries, pictures, selection))
    if "mme" in selection.tasks:
        for root in (folder / "mme", folder):
            if next(root.glob("*/*.txt"), None) is not None:
                units.append(_mme_unit(root, data, selection))
                break
    return units + benchmarks.folder_units(folder, data, selection, images)


def pope_files(folder: Path, wanted: Sequence[str] = ()) -> list[tuple[str, Path]]:
    """The files of a folder by the POPE split in their name, POPE's own splits first.

    Args:
        folder: Holds ``*.json`` or ``*.jsonl`` files.
        wanted: Splits that must be there, the only ones then returned; empty takes all.

    Raises:
        InvalidData: Two files of one split, or a wanted split is missing.
    """
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.json*")):
        split = next((name for name in POPE_SPLITS if name in file.stem), file.stem)
        if split in found:
            raise InvalidData(
                f"{file}: {found[split].name} is already the {split} split of this folder."
            )
        found[split] = file
    missing = [name for name in wanted if name not in found]
    if found and missing:
        raise InvalidData(f"{folder}: no {missing[0]} split; found {', '.join(found)}.")
    order = [
        *(name for name in POPE_SPLITS if name in found),
        *(n for n in found if n not in POPE_SPLITS),
    ]
    return [(name, found[name]) for name in order if not wanted or name in wanted]


def _first(folder: Path, stem: str) -> Path | None:
    return min(folder.glob(f"{stem}*.json"), default=None)


def _from_files(images: Path | None, annotations: Path, selection: Selection) -> list[EvalUnit]:
    """``--images DIR --annotations FILE``: the file's own shape says which task it serves."""
    if images is None:
        raise InvalidData(f"{annotations} needs the folder of its pictures: add --images DIR.")
    images = Path(images)
    if not images.is_dir():
        raise InvalidData(f"{images}: no such folder of pictures.")
    task = _task_of(annotations)
    if list(selection.tasks) != [task]:
        raise InvalidData(
            f"{annotations} holds {task} annotations, and the tasks asked for are "
            f"{', '.join(selection.tasks)}; use --tasks {task}, or a folder (--data) for several."
        )
    pictures = folder_pictures(images)
    if task in benchmarks.UNITS:
        return [benchmarks.UNITS[task](annotations, images.resolve().name, selection, images)]
    if task == "pope":
        entries = pope_entries(annotations)
        split = next((name for name in POPE_SPLITS if name in annotations.stem), annotations.stem)
    else:
        captions = _first(annotations.parent, annotations.stem.replace("instances", "captions"))
        # COCO's files list tens of thousands of pictures: the folder says which ones are meant.
        present = {path.name for path in images.iterdir()}
        entries = chair_entries(annotations, captions, selection, present)
        split = None
    if not entries:
        raise InvalidData(f"{images} holds none of the pictures that {annotations} lists.")
    data = "coco" if _COCO_NAME.search(str(entries[0].image)) else images.resolve().name
    return [make_unit(task, data, split, entries, pictures, selection)]


def _task_of(annotations: Path) -> str:
    """The task whose annotations a file holds."""
    if annotations.is_dir():
        return "amber"  # whose annotations are several files; a folder without them is named then
    if _is_coco(annotations):
        return "chair"
    keys = read_records(annotations)[0].fields.keys()
    if {"type", "truth"} <= keys:
        return "amber"
    return "hallusionbench" if {"gt_answer", "set_id"} <= keys else "pope"


def _is_coco(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig") as file:
            head = file.read(1)
            if head != "{":
                return False
            line = head + file.readline()
    except OSError as error:
        raise InvalidData(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise InvalidData(f"{path}: not UTF-8 text.") from None
    try:
        first = json.loads(line)
    except ValueError:
        return True  # a JSON object over several lines
    return not {"question_id", "text", "type", "gt_answer"} & first.keys()


def pope_entries(path: Path) -> list[Entry]:
    """The questions of a POPE file, each with its line."""
    questions = pope.load_questions(path)
    return [
        Entry(q.question_id, q.text, q.image, record.where, label=q.label)
        for q, record in zip(questions, read_records(path), strict=True)
    ]


def chair_entries(
    instances: Path, captions: Path | None, selection: Selection, present: set[str] | None = None
) -> list[Entry]:
    """The pictures of a COCO instances file with their true objects.

    Args:
        instances: COCO instances file.
        captions: COCO captions file of the same pictures.
        selection: Limit, image ids and word family.
        present: File names wanted; None takes all the file lists.
    """
    listed = _coco_images(instances)
    chosen = [(i, name) for i, name in listed if present is None or name in present]
    if selection.image_ids:
        names = dict(chosen)
        check_ids(selection.image_ids, names, f"{instances} and its pictures")
        chosen = [(i, names[i]) for i in selection.image_ids]
    # Reference captions are tagged word by word, which is slow for all of COCO: only what is asked.
    chosen = chosen[: selection.limit]
    families = selection.families
    truth = chair.ground_truth(
        instances,
        captions,
        family=families.get("gt_family", "wordnet"),
        path=families.get("path", "auto"),
        images={i for i, _ in chosen},
    )
    return [
        Entry(i, "", name, f"{instances}: image {i}", objects=tuple(sorted(truth[i])))
        for i, name in chosen
    ]


def _coco_images(instances: Path) -> list[tuple[int, str]]:
    """Id and file name of every picture of a COCO file."""
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


def _mme_unit(root: Path, data: str, selection: Selection) -> EvalUnit:
    questions = mme.load_questions(root)
    paths = {f"{q.subtask}/{q.image}": q.path for q in questions}

    def find(name: str, where: str) -> EvalImage:
        path = paths[name]
        if path is None:
            raise InvalidData(f"{where}: picture {root / name} does not exist.")
        return EvalImage.from_file(path, name)

    entries = [
        Entry(q.id, q.text, f"{q.subtask}/{q.image}", q.where or f"{root}: {q.id}", label=q.label)
        for q in questions
    ]
    return make_unit("mme", data, None, in_turn(entries), find, selection)
