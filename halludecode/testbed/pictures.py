"""The pictures that come with the package for examples, and the function that wrote them.

They are scenes of the split ``broken``, in which habits mislead.
"""

from __future__ import annotations

from pathlib import Path

from halludecode.testbed.assets import picture_path
from halludecode.testbed.png import encode
from halludecode.testbed.scenes import scenes

# Scenes in the order of their names. testbed:3 has no sink: the plain model invents one, where some
# strategies see what else is there.
SHOWN = (11, 16, 12, 9, 3, 8, 20, 2)


def write(folder: Path | None = None) -> list[Path]:
    """Writes the pictures.

    Args:
        folder: Where; None is where they are shipped.

    Returns:
        Their files, testbed:1 first.
    """
    made = {scene.index + 1: scene.image for scene in scenes("broken", max(SHOWN))}
    files = []
    for place, number in enumerate(SHOWN, start=1):
        file = picture_path(place)
        file = file if folder is None else folder / file.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(made[number]))
        files.append(file)
    return files
