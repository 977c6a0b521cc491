import hashlib
from pathlib import Path

import numpy as np
import pytest

from halludecode.core.errors import InvalidData
from halludecode.testbed import atlas
from halludecode.testbed.categories import CATEGORIES
from halludecode.testbed.drawings import SHAPES, draw

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_DIGEST = "e5899ed38b8ed83e08bd3ac5de09791e9d19d288333a796de1d35ad17396f1ec"


def test_every_category_has_its_sprites():
    sprites = atlas.load()
    assert {name: len(variants) for name, variants in sprites.items()} == {
        c.name: len(c.emoji) or 1 for c in CATEGORIES
    }
    assert sum(map(len, sprites.values())) == 106


def test_sprites_are_tight_and_96_long():
    for name, variants in atlas.load().items():
        for sprite in variants:
            alpha = np.asarray(sprite)[..., 3]
            assert max(sprite.size) == 96, name
            assert sprite.mode == "RGBA"
            for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]):
                assert edge.max() > 0, name


def test_drawings_are_the_categories_without_emoji():
    assert set(SHAPES) == {c.name for c in CATEGORIES if not c.emoji}
    assert all(np.asarray(draw(name))[..., 3].any() for name in SHAPES)
    with pytest.raises(KeyError):
        draw("dog")


def test_the_font_s_licence_is_shipped():
    licence = (atlas.ASSETS / "OFL-1.1.txt").read_text("utf-8")
    assert "SIL OPEN FONT LICENSE Version 1.1" in licence
    assert "OFL-1.1.txt" in (atlas.ASSETS / "NOTICE.txt").read_text("utf-8")


def test_the_sheet_is_reproducible(tmp_path):
    if not FONT.is_file():
        pytest.skip(f"{FONT} (Debian: fonts-noto-color-emoji) is not installed")
    if hashlib.sha256(FONT.read_bytes()).hexdigest() != FONT_DIGEST:
        pytest.skip(f"{FONT} is not version 2.042, from which the sheet was made")
    assert atlas.build(FONT, tmp_path) == 106
    shipped, made = atlas.load(), atlas.load(tmp_path)
    for name, variants in shipped.items():
        for one, two in zip(variants, made[name], strict=True):
            assert np.abs(np.asarray(one, int) - np.asarray(two, int)).max() <= 2, name


def test_a_missing_font_or_sheet_is_told(tmp_path):
    with pytest.raises(InvalidData, match="fonts-noto-color-emoji"):
        atlas.build(tmp_path / "none.ttf", tmp_path)
    with pytest.raises(InvalidData, match="reinstall"):
        atlas.load(tmp_path)
