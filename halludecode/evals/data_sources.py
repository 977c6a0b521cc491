"""Where questions and pictures come from: the testbed, a user's folder or files, a hub data set.

Folder layout (the testbed's own, and a user's)::

    images/                          pictures
    pope/{random,popular,adversarial}.jsonl
    annotations/instances*.json      COCO instances (CHAIR); captions*.json beside it is optional
    mme/<subtask>/*.txt              MME's official layout, pictures beside

A source serves the tasks it has files for. Every task asked for must be served by some source.
``limit`` keeps the first N pictures of every source and task with all their questions; for MME the
pictures are taken from the subtasks in turn, so that a small run still covers all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from halludecode.core.errors import InvalidData
from halludecode.evals import chair, mme, pope
from halludecode.evals.records import read_records, read_text
from halludecode.evals.task import POPE_SPLITS, Picture, Preset, Sample, Unit

TESTBED = ("testbed-iid", "testbed-broken", "testbed-dev-iid", "testbed-dev-broken")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_COCO_NAME = re.compile(r"COCO_(train|val|test)\d{4}_\d{12}\.jpg$")


@dataclass(frozen=True)
class Selection:
    """What to take from every source.

    Args:
        tasks: Tasks asked for.
        presets: Prompt preset of every task.
        limit: Pictures per source and task; None takes all.
        splits: POPE splits; empty takes those that exist.
        families: CHAIR's ``gt_family`` and word ``path``, where they are not the defaults.
        columns: Our column name to a hub data set's own, where they differ.
        testbed_images: Pictures per testbed source.
    """

    tasks: Sequence[str]
    presets: Mapping[str, Preset]
    limit: int | None = None
    splits: Sequence[str] = ()
    families: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    testbed_images: int = 500


@dataclass(frozen=True)
class Entry:
    """A question before its picture is read: id, words, picture, truth, and where it stands."""

    id: int | str
    question: str
    image: str
    where: str
    label: str | None = None
    objects: tuple[str, ...] | None = None


Pictures = Callable[[str, str], Picture]  # (name, where it is asked for) -> picture


def load_units(
    sources: Sequence[str | Path],
    selection: Selection,
    images: Path | None = None,
    annotations: Path | None = None,
) -> list[Unit]:
    """Reads every source.

    Args:
        sources: Testbed names, folders, or hub ids (``owner/name`` or ``owner/name@revision``).
        selection: Tasks, prompts, limits.
        images: Folder of pictures; alone with ``annotations``, or in place of a folder's
            ``images/``.
        annotations: A POPE question file or a COCO instances file.

    Raises:
        InvalidData: Files are missing, damaged or contradict each other; the sentence names them.
        MissingExtra: A hub data set is asked for and ``datasets`` is not installed.
    """
    units: list[Unit] = []
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


def _check(units: Sequence[Unit], selection: Selection, sources: Sequence[str | Path]) -> None:
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
    }
    for task in selection.tasks:
        if not any(unit.task == task for unit in units):
            named = ", ".join(str(source) for source in sources) or "the files given"
            raise InvalidData(f"No questions for {task} in {named}; it needs {needs[task]}.")


def _from_source(source: str, selection: Selection, images: Path | None) -> list[Unit]:
    if source in TESTBED:
        from halludecode import testbed

        return _from_folder(
            testbed.dataset(source, selection.testbed_images), source, selection, None
        )
    if source.startswith("testbed"):
        raise InvalidData(f"No data source {source!r}; the testbed has {', '.join(TESTBED)}.")
    folder = Path(source)
    if folder.is_dir() and not _is_hub_copy(folder):
        return _from_folder(folder, folder.resolve().name, selection, images)
    if not folder.is_dir() and (
        folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+(@\w+)?", source)
    ):
        raise InvalidData(
            f"{source}: no such folder, and not a hub id (owner/name); "
            f"the testbed has {', '.join(TESTBED)}."
        )
    from halludecode.evals.hub import hub_units

    return hub_units(source, selection)


def _is_hub_copy(folder: Path) -> bool:
    if any((folder / name).exists() for name in ("dataset_dict.json", "state.json")):
        return True
    return next(folder.rglob("*.parquet"), None) is not None


# Folders ----------------------------------------------------------------------------------------


def _from_folder(folder: Path, data: str, selection: Selection, images: Path | None) -> list[Unit]:
    pictures = folder_pictures(images or folder / "images")
    units = []
    if "pope" in selection.tasks:
        for split, file in _pope_files(folder / "pope", selection.splits):
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
    return units


def _pope_files(folder: Path, wanted: Sequence[str]) -> list[tuple[str, Path]]:
    found = {}
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


def _from_files(images: Path | None, annotations: Path, selection: Selection) -> list[Unit]:
    """``--images DIR --annotations FILE``: the file's own shape says which task it serves."""
    if images is None:
        raise InvalidData(f"{annotations} needs the folder of its pictures: add --images DIR.")
    images = Path(images)
    if not images.is_dir():
        raise InvalidData(f"{images}: no such folder of pictures.")
    task = "chair" if _is_coco(annotations) else "pope"
    if list(selection.tasks) != [task]:
        raise InvalidData(
            f"{annotations} holds {task} annotations, and the tasks asked for are "
            f"{', '.join(selection.tasks)}; use --tasks {task}, or a folder (--data) for several."
        )
    pictures = folder_pictures(images)
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
    data = "coco" if _COCO_NAME.search(entries[0].image) else images.resolve().name
    return [make_unit(task, data, split, entries, pictures, selection)]


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
    return "question_id" not in first and "text" not in first


def folder_pictures(folder: Path) -> Pictures:
    """Pictures of a folder by name, each read and hashed once."""
    known: dict[str, Picture] = {}

    def find(name: str, where: str) -> Picture:
        if name not in known:
            path = folder / name
            if not path.is_file():
                raise InvalidData(f"{where}: picture {path} does not exist.")
            known[name] = Picture.from_file(path, name)
        return known[name]

    return find


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
        selection: Limit and word family.
        present: File names wanted; None takes all the file lists.
    """
    listed = _coco_images(instances)
    chosen = [(i, name) for i, name in listed if present is None or name in present]
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


def _mme_unit(root: Path, data: str, selection: Selection) -> Unit:
    questions = mme.load_questions(root)
    paths = {f"{q.subtask}/{q.image}": q.path for q in questions}

    def find(name: str, where: str) -> Picture:
        path = paths[name]
        if path is None:
            raise InvalidData(f"{where}: picture {root / name} does not exist.")
        return Picture.from_file(path, name)

    entries = [
        Entry(q.id, q.text, f"{q.subtask}/{q.image}", q.where or f"{root}: {q.id}", label=q.label)
        for q in questions
    ]
    return make_unit("mme", data, None, in_turn(entries), find, selection)


# Shared by folders and hub ----------------------------------------------------------------------


def in_turn(entries: Iterable[Entry]) -> list[Entry]:
    """MME's questions with the subtasks in turn: the first picture of each, then the second ...

    Args:
        entries: In any order; pictures are named ``subtask/picture``.
    """
    subtasks: dict[str, dict[str, list[Entry]]] = {}
    for entry in entries:
        by_picture = subtasks.setdefault(entry.image.split("/", 1)[0], {})
        by_picture.setdefault(entry.image, []).append(entry)
    turns = [list(by_picture.values()) for by_picture in subtasks.values()]
    longest = max(map(len, turns), default=0)
    return [e for i in range(longest) for turn in turns if i < len(turn) for e in turn[i]]


def make_unit(
    task: str,
    data: str,
    split: str | None,
    entries: Sequence[Entry],
    pictures: Pictures,
    selection: Selection,
    revision: str | None = None,
) -> Unit:
    """Applies the limit, finds the pictures and words the prompts."""
    names = list(dict.fromkeys(entry.image for entry in entries))
    kept = set(names if selection.limit is None else names[: selection.limit])
    preset, found, samples, ids = selection.presets[task], {}, [], {}
    for entry in entries:
        if entry.image not in kept:
            continue
        if entry.id in ids:
            raise InvalidData(f"{entry.where}: id {entry.id} was already used at {ids[entry.id]}.")
        ids[entry.id] = entry.where
        if entry.image not in found:
            found[entry.image] = pictures(entry.image, entry.where)
        prompt = preset.prompt(task, entry.question)
        picture = found[entry.image]
        samples.append(
            Sample(entry.id, entry.question, prompt, picture, entry.label, entry.objects)
        )
    return Unit(task, data, split, tuple(samples), revision)
