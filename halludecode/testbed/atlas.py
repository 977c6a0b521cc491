"""The sprites: 106 pictures of the 80 categories in one PNG, and the function that made it.

`build` renders the emoji with the Noto Color Emoji font (SIL Open Font License 1.1) and the rest
with `halludecode.testbed.drawings`. The result is shipped, so nobody who uses the testbed needs the
font: `load` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from halludecode.core.errors import InvalidData
from halludecode.testbed.categories import CATEGORIES, Category
from halludecode.testbed.drawings import draw

if TYPE_CHECKING:
    from PIL import Image

ASSETS = Path(__file__).parent / "assets"
PICTURE, INDEX = "sprites.png", "sprites.json"
SIDE = 96  # long side of a sprite
_STRIKE = 109  # the one size of the font's bitmaps
_WIDTH = 12 * SIDE
_VISIBLE = 40  # alpha above which a pixel belongs to the sprite's box


def load(folder: Path = ASSETS) -> dict[str, list[Image.Image]]:
    """Reads the shipped sprites.

    Returns:
        Category name to its variants, RGBA pictures whose long side is 96 pixels.

    Raises:
        InvalidData: The files are absent or do not belong together.
    """
    from PIL import Image

    try:
        index = json.loads((folder / INDEX).read_text("utf-8"))
        with Image.open(folder / PICTURE) as picture:
            sheet = picture.convert("RGBA")
    except (OSError, ValueError) as error:
        raise InvalidData(
            f"{folder}: the sprites cannot be read ({error}); reinstall halludecode."
        ) from None
    return {
        name: [sheet.crop((x, y, x + width, y + height)) for x, y, width, height in boxes]
        for name, boxes in index.items()
    }


def build(font: Path | str, folder: Path = ASSETS) -> int:
    """Renders all sprites and writes the sheet and its index into ``folder``.

    Args:
        font: ``NotoColorEmoji.ttf`` (the shipped sheet is version 2.042).
        folder: An existing folder.

    Returns:
        The number of sprites.

    Raises:
        InvalidData: The font cannot be opened or lacks an emoji.
    """
    from PIL import Image

    sprites = [(category.name, picture) for category, picture in _render(font)]
    # Shelves of falling height keep the sheet small.
    places: dict[str, list[list[int]]] = {category.name: [] for category in CATEGORIES}
    boxes: dict[int, tuple[int, int]] = {}
    x = y = shelf = 0
    for at in sorted(range(len(sprites)), key=lambda i: -sprites[i][1].height):
        width, height = sprites[at][1].size
        if x + width > _WIDTH:
            x, y, shelf = 0, y + shelf, 0
        boxes[at] = (x, y)
        x, shelf = x + width, max(shelf, height)
    sheet = Image.new("RGBA", (_WIDTH, y + shelf), (0, 0, 0, 0))
    for at, (name, sprite) in enumerate(sprites):
        sheet.paste(sprite, boxes[at])
        places[name].append([*boxes[at], *sprite.size])
    sheet.save(folder / PICTURE, optimize=True)
    (folder / INDEX).write_text(json.dumps(places) + "\n", "utf-8")
    return len(sprites)


def _render(font: Path | str) -> Iterator[tuple[Category, Image.Image]]:
    from PIL import Image, ImageDraw, ImageFont

    try:
        face = ImageFont.truetype(str(font), _STRIKE)
    except OSError as error:
        raise InvalidData(
            f"{font}: the font cannot be opened ({error}); "
            "install fonts-noto-color-emoji and give the path of NotoColorEmoji.ttf."
        ) from None
    for category in CATEGORIES:
        for point in category.emoji:
            picture = Image.new("RGBA", (150, 150), (0, 0, 0, 0))
            # Old symbols have a text form; the variation selector asks for the coloured one.
            text = chr(point) + ("\ufe0f" if point < 0x3000 else "")
            ImageDraw.Draw(picture).text((4, 4), text, font=face, embedded_color=True)
            yield category, _trim(picture, f"{font}: U+{point:X} ({category.name})")
        if not category.emoji:
            yield category, _trim(draw(category.name), category.name)


def _trim(picture: Image.Image, name: str) -> Image.Image:
    """Cuts a picture to what is visible and makes its long side `SIDE`."""
    from PIL import Image

    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha > _VISIBLE)).getbbox()
    if box is None:
        raise InvalidData(
            f"{name} is empty; use the colour emoji font with version 2.042 or later."
        )
    cut = picture.crop(box)
    longest = max(cut.size)
    size = tuple(max(4, round(side * SIDE / longest)) for side in cut.size)
    return cut.resize(size, Image.Resampling.LANCZOS)
