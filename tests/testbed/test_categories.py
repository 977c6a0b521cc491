from halludecode.testbed.categories import (
    BANDS,
    CATEGORIES,
    COCO_ID,
    COLOURS,
    NAMES,
    PARTNERS,
    SCALE,
    THEMES,
    TINTED,
)


def test_coco_s_80_categories():
    assert len(CATEGORIES) == len(set(NAMES)) == 80
    ids = list(COCO_ID.values())
    assert ids == sorted(set(ids))
    gaps = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert set(ids) == set(range(1, 91)) - gaps
    assert COCO_ID["hair drier"] == 89


def test_tables_name_only_categories():
    known = set(NAMES)
    for theme, anchors in THEMES.items():
        assert set(anchors) <= known, theme
    assert set(PARTNERS) | set(PARTNERS.values()) | set(SCALE) | TINTED <= known
    assert len(TINTED) == 23 and len(THEMES) == 16
    assert list(BANDS) == list(THEMES)
    assert not set(COLOURS) & known


def test_every_category_is_at_home_in_a_theme():
    assert {name for anchors in THEMES.values() for name in anchors} == set(NAMES)
    assert all(name != partner for name, partner in PARTNERS.items())
