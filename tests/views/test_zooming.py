"""The search visits what the official one visits, and settles on the same view."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from halludecode.core.activations import Activations
from halludecode.core.errors import InvalidModel
from halludecode.core.prompt import Picture, Prompt, Turn
from halludecode.views import zooming
from halludecode.views.zooming import Limits

OFFICIAL = json.loads((Path(__file__).parents[1] / "data" / "zoom.json").read_text())
LIMITS = Limits(0.6, 0.0, (0.1, 0.1, 0.2), 3, 5, 0.6, 20)


def confidence(case, look):
    text = f"{case['seed']} {look.kind} {list(look.box)}"
    first = hashlib.sha256(text.encode()).digest()[:4]
    made = int.from_bytes(first, "big") / 2**32 * 2 - 1
    return made - case["shift"] if look.kind == "answer" else made


def run(search, answer):
    """What a search asked, in order, and what it found."""
    looks, told = [], None
    while True:
        try:
            asked = search.send(told)
        except StopIteration as end:
            return looks, end.value
        looks += asked
        told = [answer(look) for look in asked]


@pytest.mark.parametrize("case", OFFICIAL["searches"], ids=lambda case: str(case["seed"]))
def test_views_are_visited_as_by_the_official_search(case):
    names = ("upper", "lower", "drops", "depth", "bias", "smallest")
    limits = Limits(visits=3, **{name: case[name] for name in names})
    size = tuple(case["size"])
    assert zooming.levels(size, limits) == case["levels"]
    rules = {"alone": case["alone"], "whole": case["whole"]}
    search = zooming.search(size, "c", "q", limits, **rules)
    looks, box = run(search, lambda look: confidence(case, look))
    assert [list(look.box) for look in looks if look.kind == "answer"] == case["looked"]
    assert box == (case["found"] and tuple(case["found"]))


@pytest.mark.parametrize("case", OFFICIAL["views"], ids=lambda case: str(case["view"]))
def test_a_view_is_shown_as_wide_as_by_the_official_code(case):
    boxes = [tuple(box) for box in case["boxes"]]
    view = zooming.joined(boxes, tuple(case["size"]), case["smallest"], case["margin"])
    assert view == tuple(case["view"])


@given(st.integers(8, 300), st.integers(8, 300))
def test_parts_cover_a_view_once(wide, high):
    boxes = zooming.parts((0, 0, wide, high))
    assert len(boxes) == 4
    assert sum((r - left) * (b - top) for left, top, r, b in boxes) == wide * high
    assert all(0 <= left < r <= wide and 0 <= top < b <= high for left, top, r, b in boxes)
    assert boxes == sorted(boxes, key=lambda box: (box[1], box[0])), "row by row"


def test_several_cues_are_looked_for_one_by_one():
    def told(look):
        return 0.9 if look.box[2] - look.box[0] <= 20 and look.kind == "answer" else 0.1

    asked, views = run(zooming.search_all((40, 40), ["cup", "dog"], "q", LIMITS, whole=True), told)
    assert [look.about for look in asked[:2]] == [
        "What does the cup look like?",
        "What does the dog look like?",
    ], "of the whole picture first"
    assert len(views) == 2
    everything = zooming.search_all((40, 40), ["cup", "dog"], "q", LIMITS, whole=True)
    assert run(everything, lambda look: 0.9)[1] == [], "the picture itself shows them"
    alone = run(zooming.search_all((40, 40), ["cup"], "q", LIMITS, whole=True), told)
    assert alone[0][0].about == "q"
    assert run(zooming.search_all((40, 40), [], "q", LIMITS, whole=True), told) == ([], [])


def test_a_replay_asks_what_was_not_told_yet():
    told = {}
    while True:
        search = zooming.search((40, 40), "cup", "q", LIMITS)
        looks, box = zooming.replay(search, told)
        if not looks:
            break
        assert not {look.name for look in looks} & set(told)
        told |= {look.name: 0.9 if look.box == (20, 0, 40, 20) else -0.5 for look in looks}
    assert box == (20, 0, 40, 20)


def test_words_of_an_answer():
    assert zooming.cues_in(" a red cup, dog and tall man.\nmore") == (
        "a red cup",
        "dog",
        "tall man",
    )
    assert zooming.cues_in("a cup and a cup") == ("a cup",)
    assert zooming.cues_in("\n") == ()


def test_confidence_is_of_yes_beside_no():
    kept = Activations(word_logits={"yes": 1.0, "no": -1.0})
    p = 1 / (1 + 2.718281828459045**-2)
    assert float(zooming.said("x", kept)) == pytest.approx(2 * p - 1)
    with pytest.raises(InvalidModel, match="no tokens for yes and no"):
        zooming.said("x", Activations(word_logits={"yes": 1.0}))


def test_the_frame_is_drawn_outside_the_view():
    picture = Picture.of(Image.new("RGB", (60, 50), (10, 20, 30)))
    framed = zooming.marked(picture, (10, 12, 30, 32)).image
    red = {(x, y) for x in range(60) for y in range(50) if framed.getpixel((x, y)) == (255, 0, 0)}
    wide, high = range(9, 31), range(11, 33)
    assert red == {(x, y) for x in wide for y in high if x in (9, 30) or y in (11, 32)}


def test_each_picture_stands_before_its_view():
    one, two = (Picture.of(Image.new("RGB", (40, 40), (n, n, n))) for n in (1, 2))
    prompt = Prompt((Turn("user", (one, two, "What?")),))
    both = zooming.shown(prompt, [None, (0, 0, 20, 20)], whole=True)
    assert [p.image.size for p in both.pictures] == [(40, 40), (40, 40), (20, 20)]
    assert both.pictures[0] == one
    alone = zooming.shown(prompt, [None, (0, 0, 20, 20)], whole=False)
    assert [p.image.size for p in alone.pictures] == [(40, 40), (20, 20)]
