"""Writes scenes with and without an object, as paired benchmarks have their questions.

Layout::

    dataset.json                  name, split, seed, count, digest, generator version
    images/                       <scene>.png, and <scene>_00.png and _01.png without one category
    popev2/annotations.json       the object taken out, asked about both pictures
    beaf/beaf_qna.json            every object of the scene and two others, asked about all three
    naturalbench.jsonl            both objects, each asked about the edit that lacks the other
    phd.jsonl                     the object that is left and the one that is not, about an edit

All read the same pictures: the folders of popev2 and beaf hold links to them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.testbed.categories import NAMES
from halludecode.testbed.datasets import VERSION, link
from halludecode.testbed.phrases import a
from halludecode.testbed.png import encode
from halludecode.testbed.scenes import QUESTIONS, Scene, edited, rules
from halludecode.testbed.stream import Stream

PREFIX = "testbed-pairs-"
_WORDS = {True: "yes", False: "no"}


def write_pairs(out: Path, split: str, count: int, seed: int | None = None) -> Path:
    """Makes the pairs of a split and writes them.

    Args:
        out: A folder that is empty or does not exist yet.
        split: ``iid``, ``broken``, ``dev-iid`` or ``dev-broken``.
        count: Number of scenes, each with two edits.
        seed: 0 to 2**64 - 1; None is 0, the published scenes.

    Returns:
        ``out``.

    Raises:
        InvalidParameter: Unknown split or one without pairs, count below 1 or seed out of range.
        InvalidData: ``out`` is not empty or cannot be written.
    """
    seed, out = seed or 0, Path(out)
    made = edited(split, count, seed)
    first = next(made)  # what is wrong with the arguments is said before a folder is made
    try:
        if out.is_dir() and any(out.iterdir()):
            raise InvalidData(f"{out} is not empty; choose a new folder.")
        _write(out, split, count, seed, first, made)
    except OSError as error:
        raise InvalidData(
            f"{out} cannot be written ({error.strerror}); choose another folder."
        ) from None
    return out


def _write(out: Path, split: str, count: int, seed: int, first: Any, rest: Iterator[Any]) -> None:
    total = hashlib.sha256()
    rows: dict[str, list[dict[str, Any]]] = {
        "popev2": [],
        "beaf": [],
        "naturalbench": [],
        "phd": [],
    }
    for scene, edits in (first, *rest):
        name = f"{PREFIX.replace('-', '_')}{split}_{scene.index:06d}"
        pictures = {f"{name}.png": scene.image}
        pictures |= {f"{name}_{n:02d}.png": image for n, image in enumerate(edits.values())}
        for file, image in pictures.items():
            total.update(image.tobytes())
            for folder in ("images", "popev2/images", "beaf/images"):
                path = out / folder / file
                path.parent.mkdir(parents=True, exist_ok=True)
                if folder == "images":
                    path.write_bytes(encode(image))
                else:
                    link(out / "images" / file, path)
        stream = Stream(seed, rules(split).purpose(QUESTIONS), scene.index, 3)
        absent = stream.shuffled([n for n in NAMES if n not in scene.names])[:2]
        _ask(rows, scene, list(pictures), list(edits), absent)
    texts = {
        "popev2/annotations.json": json.dumps(rows["popev2"], indent=0) + "\n",
        "beaf/beaf_qna.json": json.dumps(rows["beaf"], indent=0) + "\n",
        "naturalbench.jsonl": "".join(json.dumps(row) + "\n" for row in rows["naturalbench"]),
        "phd.jsonl": "".join(json.dumps(row) + "\n" for row in rows["phd"]),
    }
    for name, text in sorted(texts.items()):
        total.update(f"{name}\0{text}\0".encode())
        (out / name).write_text(text, encoding="utf-8", newline="\n")
    about = {"name": PREFIX + split, "split": split, "seed": seed, "count": count}
    about |= {"generator": VERSION, "digest": total.hexdigest()}
    (out / "dataset.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _asked(name: str) -> str:
    return f"Is there {a(name)} in the image?"


def _ask(
    rows: dict[str, list[dict[str, Any]]],
    scene: Scene,
    pictures: list[str],
    taken: list[str],
    absent: list[str],
) -> None:
    """Adds the questions about one scene: its picture, and those without what was taken out."""
    original, *edits = pictures
    for name, edit in zip(taken, edits, strict=True):
        for image, label in ((edit, "No"), (original, "Yes")):
            row = {"image_id": scene.index, "target_object": name, "query": _asked(name)}
            rows["popev2"].append({**row, "image_name": f"images/{image}", "label": label})
    for image, gone in zip(pictures, (None, *taken), strict=True):
        for name in (*scene.names, *absent):
            there = name in scene.names and name != gone
            row = {"id": len(rows["beaf"]), "image": image, "question": _asked(name)}
            row |= {"orig_img": gone is None, "removed_q": name in taken, "gt": _WORDS[there]}
            rows["beaf"].append(row)
    first, second = taken
    rows["naturalbench"].append(
        {"index": scene.index, "question_type": "yes_no"}
        | {"question_0": _asked(first), "question_1": _asked(second)}
        | {"image_0": edits[1], "image_1": edits[0]}  # the edit without the second has the first
        | {f"image_{i}_question_{q}": "Yes" if i == q else "No" for i in (0, 1) for q in (0, 1)}
    )
    for gone, left, edit in ((first, second, edits[0]), (second, first, edits[1])):
        row = {"image": edit, "task": "object recognition"}
        rows["phd"].append({**row, "yes_question": _asked(left), "no_question": _asked(gone)})
