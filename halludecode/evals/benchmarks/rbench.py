"""R-Bench: whether things in a picture are related as the question says (arXiv:2406.16449)."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from halludecode.core.errors import InvalidData
from halludecode.core.paper import Paper
from halludecode.core.params import param
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.benchmarks.yes_no import QUESTIONS, YesNoBenchmark
from halludecode.evals.data.columns import said
from halludecode.evals.data.entries import Pictures, first_folder, folder_pictures
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import EvalImage, Sample

if TYPE_CHECKING:
    from PIL.Image import Image

PAPER = Paper(
    "2406.16449",
    "Evaluating and Analyzing Relationship Hallucinations in Large Vision-Language Models",
    "Wu, Mingrui and Ji, Jiayi and Huang, Oucheng and Li, Jiale and others",
    "ICML",
    2024,
)
LEVELS = ("image", "box", "mask")
FILES = {"image": "image-level_filterd.json", "instance": "instance-level_filterd.json"}
MARKED = {"subject": "red", "object": "green"}  # in this order: the second may cover the first
BOX = {"subject": (255, 0, 0), "object": (0, 128, 0)}  # the names red and green
TINT = {"subject": (250, 0, 45, 120), "object": (100, 250, 0, 120)}
VALUES = {"subject": 1, "object": 2}  # of a mask's pixels
LINE = 4  # pixels


@benchmark("rbench", paper=PAPER)
class RBench(YesNoBenchmark):
    """Yes/no questions about relations in pictures of Open Images.

    ``level``: image asks about the picture; box and mask mark the two things in it, one red, one
    green, and say so in the question. Read and counted as POPE, whose script it is; its rates have
    0.00001 added below the line and are rounded, ours not. Its questions are not paired, so a shift
    towards yes can win here: read it with the control at greedy's yes-ratio. The script averages
    over five subsets of ids, and by its README they are for reference alone: all questions are
    scored here. Code Apache-2.0, its data without a licence of their own behind a link that cannot
    be followed here, so not shipped: download {image,instance}-level_filterd.json, instance_mask/
    and the pictures as mrwu-mac/R-Bench says; MM-Hallu/R-Bench of the hub has the questions of both
    levels and the pictures, no masks. Its commit could only be seen in short (68dd9ad), which the
    hub does not take: give ``--data MM-Hallu/R-Bench@COMMIT`` with all 40 digits; the one that was
    read is in ``run.json``. What is odd in them (questions asked twice, contradictory labels) is
    counted when they are read.
    """

    level: str = param("image", "The picture, or two things marked in it.", choices=LEVELS)

    title = "R-Bench"
    preset_tokens = True
    needs = (
        "rbench/image-level_filterd.json (level=box and level=mask: instance-level_filterd.json, "
        "masks in instance_mask/) with images/ in the folder"
    )
    columns = (
        replace(
            QUESTIONS,
            needs={**QUESTIONS.needs, "question": ("text", "question"), "answer": ("label",)},
            takes={n: (n,) for n in ("level", "subject", "object", "sub_box", "obj_box")},
        ),
    )

    def _places(self) -> tuple[str, ...]:
        name = FILES["image" if self.level == "image" else "instance"]
        return ("rbench.jsonl", f"rbench/{name}", name)

    def owns(self, record: Record) -> bool:
        """Whether a row of a table of both levels is of the one asked for."""
        level = record.fields.get("level")
        return level is None or said(level) == ("image" if self.level == "image" else "instance")

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """One question; of an instance's the things that are marked."""
        sample = self.question(record)
        if self.level == "image":
            return sample
        cells = record.fields
        lacks = [name for name in MARKED if not isinstance(cells.get(name), str)]
        if lacks:
            raise InvalidData(f"{record.where}: no {lacks[0]}; level={self.level} needs it.")
        asked = sample.question
        for name, colour in MARKED.items():
            thing = cells[name].lower()
            kind = "mask" if self.level == "mask" else "bounding box"
            asked = asked.replace(thing, f"{thing} in {colour} {kind}")
        facts: dict[str, Any] = {}
        if self.level == "box":
            named = zip(MARKED, ("sub_box", "obj_box"), strict=True)
            facts = {"boxes": {name: _box(cells.get(key), key, record) for name, key in named}}
        return replace(sample, question=asked, facts=facts)

    def pictures(self, path: Path, folder: Path, images: Path | None) -> Pictures:
        """In images/; the masks are looked for beside the questions."""
        return folder_pictures(images or first_folder(path.parent, "images"))

    def shown(self, sample: Sample, picture: EvalImage, path: Path | None) -> EvalImage:
        """The picture with the two things marked.

        Raises:
            InvalidData: The mask does not exist, or does not lie in a folder of files.
        """
        if self.level == "image":
            return picture
        told: Any = sample.facts.get("boxes")
        if self.level == "mask":
            root = None if path is None else first_folder(path.parent, "instance_mask")
            told = None if root is None else root / f"{sample.id}.png"
            if told is None or not told.is_file():
                raise InvalidData(
                    f"{sample.where}: mask {told or 'of the data set'} does not exist; level=mask "
                    "needs the release's folder with instance_mask/ in it."
                )
        marks = told.read_bytes() if isinstance(told, Path) else json.dumps(told).encode()
        digest = hashlib.sha256(picture.digest.encode() + marks).hexdigest()[:16]
        name = f"{sample.id}/{picture.name}"  # every question has marks of its own
        return EvalImage(name, partial(_marked, picture, told), picture.where, digest)

    @classmethod
    def cluster(cls, line: Mapping[str, Any]) -> str:
        """The picture, whatever is marked in it."""
        return str(line["image"]).removeprefix(f"{line['id']}/")


def _box(value: Any, key: str, record: Record) -> Sequence[float]:
    """Left, top, right, bottom as shares of the picture; a table may have them as text."""
    try:
        box = json.loads(value) if isinstance(value, str) else value
        found = [float(share) for share in box]
    except (TypeError, ValueError):
        found = []
    if len(found) != 4 or not (0 <= found[0] <= found[2] <= 1 and 0 <= found[1] <= found[3] <= 1):
        raise InvalidData(
            f"{record.where}: {key} {value!r} is no box of four shares, left, top, right, bottom."
        )
    return found


def _marked(picture: EvalImage, told: Any) -> bytes:
    """PNG bytes of a picture with boxes drawn in it, or with a mask laid over it."""
    from PIL import Image, ImageDraw

    shown: Image = picture.load()
    if isinstance(told, Path):
        with Image.open(told) as file:
            mask = np.asarray(file.resize(shown.size, resample=Image.Resampling.NEAREST))
        shown = shown.convert("RGBA")
        for name, tint in TINT.items():
            layer = np.zeros((*mask.shape[:2], 4), dtype=np.uint8)
            layer[mask == VALUES[name]] = tint
            over = Image.fromarray(layer, "RGBA")
            shown.paste(over, (0, 0), over)
        shown = shown.convert("RGB")
    else:
        pen = ImageDraw.Draw(shown)
        for name, box in told.items():
            corners = [share * side for share, side in zip(box, shown.size * 2, strict=True)]
            pen.rectangle(corners, outline=BOX[name], width=LINE)
    encoded = io.BytesIO()
    shown.save(encoded, format="PNG")
    return encoded.getvalue()
