"""COCO-format annotations of testbed scenes: instances with run-length masks, and captions.

Extra keys: ``theme`` of an image, ``color`` of a tinted instance, ``hidden`` of one that is all but
invisible (training split). Readers that know only COCO ignore them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from halludecode.core.errors import MissingExtra
from halludecode.testbed.categories import CATEGORIES, COCO_ID
from halludecode.testbed.phrases import captions
from halludecode.testbed.render import SIZE
from halludecode.testbed.scenes import Scene
from halludecode.testbed.stream import Stream

Json = dict[str, Any]


def file_name(split: str, image_id: int) -> str:
    """The picture's file name; its last twelve digits are the image id, as in COCO."""
    return f"testbed_{split}_{image_id:012d}.png"


class Annotations:
    """Collects the annotations of a split's scenes in order.

    Args:
        split: Name of the split.

    Raises:
        MissingExtra: pycocotools is not installed.
    """

    def __init__(self, split: str) -> None:
        try:
            from pycocotools import mask
        except ImportError:
            raise MissingExtra(
                'Testbed data needs pycocotools: pip install "halludecode[eval]".'
            ) from None
        self._mask = mask
        self._split = split
        self._images: list[Json] = []
        self._instances: list[Json] = []
        self._captions: list[Json] = []

    def add(self, scene: Scene, stream: Stream) -> Json:
        """Adds one scene; the captions' words are drawn from ``stream``.

        Returns:
            The image record.
        """
        image_id = scene.index + 1
        image = {
            "id": image_id,
            "file_name": file_name(self._split, image_id),
            "width": SIZE,
            "height": SIZE,
            "theme": scene.theme,
        }
        self._images.append(image)
        for number in range(len(scene.things)):
            self._instances.append(self._instance(scene, number, image_id))
        for caption in captions(stream, scene):
            record = {"id": len(self._captions) + 1, "image_id": image_id, "caption": caption}
            self._captions.append(record)
        return image

    def _instance(self, scene: Scene, number: int, image_id: int) -> Json:
        thing = scene.things[number]
        run_lengths = self._mask.encode(np.asfortranarray(scene.ids == number, np.uint8))
        # A fully covered object (training split only) has no pixels; its box is where it was.
        box = self._mask.toBbox(run_lengths).astype(int).tolist() if thing.area else thing.box
        record = {
            "id": len(self._instances) + 1,
            "image_id": image_id,
            "category_id": COCO_ID[thing.name],
            "bbox": list(box),
            "area": thing.area,
            "iscrowd": 0,
            "segmentation": {
                "size": [SIZE, SIZE],
                "counts": run_lengths["counts"].decode("ascii"),
            },
        }
        if thing.colour:
            record["color"] = thing.colour
        if thing.hidden:
            record["hidden"] = True
        return record

    def instances(self) -> Json:
        """The content of ``instances.json``."""
        kinds = [{"id": c.id, "name": c.name, "supercategory": c.group} for c in CATEGORIES]
        return self._head() | {"annotations": self._instances, "categories": kinds}

    def captions(self) -> Json:
        """The content of ``captions.json``."""
        return self._head() | {"annotations": self._captions}

    def _head(self) -> Json:
        about = {"description": f"halludecode testbed, split {self._split}"}
        return {"info": about, "licenses": [], "images": self._images}
