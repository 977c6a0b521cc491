"""Writes a split as a folder that is read like COCO, POPE and MME; keeps a cache of them.

Layout::

    dataset.json                            name, split, seed, count, digest, generator version
    images/testbed_<split>_<id>.png
    annotations/instances.json, captions.json
    pope/{random,popular,adversarial}.jsonl
    mme/<subtask>/<subtask>.txt             picture, question, answer; pictures beside (links)

The ``train`` split has pictures and annotations only. POPE's popular and adversarial objects are
counted on training scenes: the prior the model has learnt.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.testbed import mme
from halludecode.testbed.cache import CACHE_VARIABLE, cache_folder
from halludecode.testbed.coco import Annotations
from halludecode.testbed.png import encode
from halludecode.testbed.scenes import QUESTIONS, SPLITS, Scene, casts, check, rules, scenes
from halludecode.testbed.stream import Stream

VERSION = 2  # of the generator: raise it with every change that alters a digest
PRIOR_SCENES = 6000
SETTINGS = ("random", "popular", "adversarial")
PREFIX = "testbed-"


class Build:
    """One pass over a split: takes the scenes in order, then gives the text files and the digest.

    Args:
        split: Name of the split.
        seed: Its seed.
    """

    def __init__(self, split: str, seed: int) -> None:
        self._split, self._seed = split, seed
        self._rules = rules(split)
        self._annotations = Annotations(split)
        self._objects: dict[str, list[str]] = {}
        self._mme: dict[str, list[tuple[str, str, str]]] = {name: [] for name in mme.SUBTASKS}
        self._hash = hashlib.sha256()

    def add(self, scene: Scene) -> str:
        """Takes one scene.

        Returns:
            The name of its picture file.
        """
        self._hash.update(scene.image.tobytes())
        purpose = self._rules.purpose(QUESTIONS)
        image = self._annotations.add(scene, Stream(self._seed, purpose, scene.index, 0))
        name = image["file_name"]
        if self._rules.judged:
            self._objects[name] = scene.names
            questions = mme.questions(Stream(self._seed, purpose, scene.index, 1), scene)
            for subtask, (yes, no) in questions.items():
                self._mme[subtask] += [(name, yes, "Yes"), (name, no, "No")]
        return name

    def pictures(self, subtask: str) -> list[str]:
        """The pictures a subtask of MME asks about."""
        return [name for name, _, answer in self._mme[subtask] if answer == "Yes"]

    def files(self) -> dict[str, str]:
        """The text files by their path in the folder."""
        files = {
            "annotations/instances.json": _json(self._annotations.instances()),
            "annotations/captions.json": _json(self._annotations.captions()),
        }
        if not self._rules.judged:
            return files
        prior = training_prior()
        from halludecode.evals.benchmarks.pope.scoring import build_questions

        for setting in SETTINGS:
            questions = build_questions(self._objects, setting, seed=self._seed, prior=prior)
            files[f"pope/{setting}.jsonl"] = "".join(map(_json, questions))
        for subtask, rows in self._mme.items():
            files[f"mme/{subtask}/{subtask}.txt"] = "".join("\t".join(row) + "\n" for row in rows)
        return files

    def digest(self) -> str:
        """SHA-256 over the pixels of all pictures, then over the text files by name."""
        total = self._hash.copy()
        for name, text in sorted(self.files().items()):
            total.update(f"{name}\0{text}\0".encode())
        return total.hexdigest()


def training_prior() -> dict[str, list[str]]:
    """The objects of training scenes, by scene number; what POPE's statistics are counted on."""
    names = casts("train", PRIOR_SCENES)
    return {str(i): list(dict.fromkeys(each)) for i, each in enumerate(names)}


def digest(split: str, count: int, seed: int | None = None) -> str:
    """Makes a split in memory and hashes it; the same on every machine.

    Args:
        split: Name of the split.
        count: Number of scenes.
        seed: As in `write_dataset`.

    Returns:
        64 hexadecimal digits.

    Raises:
        InvalidParameter: Unknown split, count below 1 or seed out of range.
        MissingExtra: pycocotools is not installed.
    """
    check(split, count, seed or 0)
    build = Build(split, seed or 0)
    for scene in scenes(split, count, seed or 0):
        build.add(scene)
    return build.digest()


def write_dataset(out: Path, split: str, count: int, seed: int | None = None) -> Path:
    """Makes a split and writes it.

    Args:
        out: A folder that is empty or does not exist yet.
        split: ``iid``, ``broken``, ``dev-iid``, ``dev-broken`` or ``train``.
        count: Number of scenes.
        seed: 0 to 2**64 - 1; None is 0, the published scenes.

    Returns:
        ``out``.

    Raises:
        InvalidParameter: Unknown split, count below 1 or seed out of range.
        InvalidData: ``out`` is not empty or cannot be written.
        MissingExtra: pycocotools is not installed.
    """
    seed = seed or 0
    check(split, count, seed)
    out = Path(out)
    try:
        if out.is_dir() and any(out.iterdir()):
            raise InvalidData(f"{out} is not empty; choose a new folder.")
        _write(out, split, count, seed)
    except OSError as error:
        raise InvalidData(
            f"{out} cannot be written ({error.strerror}); choose another folder."
        ) from None
    return out


def _write(out: Path, split: str, count: int, seed: int) -> None:
    build = Build(split, seed)
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    for scene in scenes(split, count, seed):
        (images / build.add(scene)).write_bytes(encode(scene.image))
    for name, text in build.files().items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    for subtask in mme.SUBTASKS:
        for name in build.pictures(subtask):
            link(images / name, out / "mme" / subtask / name)
    about = _identity(split, count, seed) | {"digest": build.digest()}
    (out / "dataset.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def link(source: Path, target: Path) -> None:
    """Makes a file stand in a second place, as a copy where that cannot be had else."""
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _identity(split: str, count: int, seed: int) -> dict[str, Any]:
    return {
        "name": PREFIX + split,
        "split": split,
        "seed": seed,
        "count": count,
        "generator": VERSION,
        "prior": {"split": "train", "seed": 0, "scenes": PRIOR_SCENES},
    }


def names() -> list[str]:
    """The data sets `dataset` knows."""
    return [PREFIX + name for name, rule in SPLITS.items() if rule.judged]


def dataset(name: str, count: int = 500) -> Path:
    """Gives the folder of a published data set, making it on first use.

    Args:
        name: ``testbed-iid``, ``testbed-broken``, ``testbed-dev-iid`` or ``testbed-dev-broken``.
        count: Number of pictures; the first n of 500 are the n of a smaller set.

    Returns:
        A folder below ``$HALLUDECODE_CACHE`` or ``~/.cache/halludecode``; its own name is ``name``.

    Raises:
        InvalidData: Unknown name, or the cache cannot be written.
        InvalidParameter: count below 1.
        MissingExtra: pycocotools is not installed.
    """
    if name not in names():
        raise InvalidData(f"No data source {name!r}; the testbed has {', '.join(names())}.")
    split = name.removeprefix(PREFIX)
    check(split, count, 0)
    folder = cache_folder() / f"v{VERSION}-{count}" / name
    if not _complete(folder, split, count):
        try:
            _make(folder, split, count)
        except OSError as error:
            raise InvalidData(
                f"{folder} cannot be written ({error.strerror}); "
                f"set {CACHE_VARIABLE} to a folder that can."
            ) from None
    return folder


def _make(folder: Path, split: str, count: int) -> None:
    """Builds beside the final place and moves it there whole: no half-made set is ever seen."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as scratch:
        draft = Path(scratch) / folder.name
        _write(draft, split, count, 0)
        if folder.exists():  # damaged or of another make
            folder.rename(Path(scratch) / "old")
        try:
            draft.rename(folder)
        except OSError:
            if not _complete(folder, split, count):  # else another process was quicker
                raise


def _complete(folder: Path, split: str, count: int) -> bool:
    try:
        about = json.loads((folder / "dataset.json").read_text("utf-8"))
        pictures = sum(1 for _ in (folder / "images").iterdir())
    except (OSError, ValueError):
        return False
    identity = _identity(split, count, 0)
    return pictures == count and all(about.get(key) == value for key, value in identity.items())


def _json(value: Any) -> str:
    return json.dumps(value, separators=(", ", ": ")) + "\n"
