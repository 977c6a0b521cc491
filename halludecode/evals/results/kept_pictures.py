"""The pictures that a run folder keeps, so that it can be reported where its data are not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from halludecode.core.errors import HalluDecodeError
from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.data.samples import EvalImage
from halludecode.evals.results import chosen_samples
from halludecode.evals.results.build import Answers

FOLDER = "pictures"


def save_pictures(
    folder: Path, groups: Iterable[Answers], pictures: Mapping[tuple[str, Any], EvalImage]
) -> list[str]:
    """Keeps the report's pictures beside the answers; returns where those are that are gone.

    Args:
        folder: The run folder.
        groups: All answers of the run.
        pictures: Pictures by (source, anything that tells them apart); those of any task.
    """
    gone: list[str] = []
    by_name = {(data, picture.name): picture for (data, _), picture in pictures.items()}
    by_source: dict[str, list[Answers]] = {}
    for group in groups:
        by_source.setdefault(group.data, []).append(group)
    for data, own in by_source.items():
        images = list(chosen_samples.pictures(own))
        for group in own:
            if has_gallery(group):
                ids = chosen_samples.disputed(group)
                images += [chosen_samples.any_line(group, i)["image"] for i in ids]
        for image in dict.fromkeys(images):
            path = picture_path(folder, data, image)
            if (data, image) in by_name:
                try:
                    encoded = by_name[data, image].read()
                except (OSError, HalluDecodeError):
                    gone.append(by_name[data, image].where)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded)
    return gone


def has_gallery(group: Answers) -> bool:
    """Whether the report shows what was said of single pictures: captions only."""
    return benchmark_named(group.task).text_kind == "caption"


def picture_path(folder: Path, data: str, image: str) -> Path:
    """Where a picture is kept in a run folder; names from data files never lead outside it.

    Folders in a name stay: one name may stand for several pictures, as under MME's subtasks.
    """
    parts = [p for p in PurePosixPath(image.replace("\\", "/")).parts if p.strip("./ ")]
    return (folder / FOLDER / data.replace("/", "_").replace("..", "_")).joinpath(*parts)
