"""Pictures that show nothing."""

from __future__ import annotations

from halludecode.core.prompt import Picture


def white(picture: Picture) -> Picture:
    """A white picture of the same size."""
    from PIL import Image

    return Picture.of(Image.new("RGB", picture.image.size, (255, 255, 255)))
