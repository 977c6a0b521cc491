from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from halludecode.core.errors import InvalidParameter
from halludecode.core.prompt import Picture, Prompt, Turn
from halludecode.views.crops import beside, sharpest_box

OFFICIAL = json.loads((Path(__file__).parents[1] / "data" / "vicrop.json").read_text())["cases"]
SPECS = json.loads((Path(__file__).parents[1] / "data" / "attention.json").read_text())["cases"]
SIZES = 6


def naive(grid, size, base, sizes):
    """Window by window, as the paper says it."""
    rows, columns = len(grid), len(grid[0])
    best = None
    for i in range(sizes):
        side = base * ((10 + 2 * i) / 10)  # the factor as a decimal, as the official list has it
        wide = max(1, min(columns, int(side / (size[0] / columns))))
        high = max(1, min(rows, int(side / (size[1] / rows))))
        if (wide, high) == (columns, rows):
            if best is None:
                return (0, 0, *size)
            continue
        sums = {
            (x, y): sum(grid[y + j][x + i] for j in range(high) for i in range(wide))
            for x in range(columns - wide + 1)
            for y in range(rows - high + 1)
        }
        top = max(sums.values())
        x, y = min(place for place, value in sums.items() if value > top - 1e-9)
        near = [sums[p] for p in ((x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)) if p in sums]
        sharpness = (sums[x, y] - sum(near) / len(near)) / (wide * high)
        if best is None or sharpness > best[0] + 1e-12:
            best = (sharpness, side, (x + wide / 2, y + high / 2))
    _, side, (x, y) = best
    box = []
    for centre, length, count in ((x, size[0], columns), (y, size[1], rows)):
        half = side // 2
        middle = int(centre * (length / count))
        middle = half if middle < half else middle
        middle = length - half if middle > length - half else middle
        box.append((round(max(0, middle - half)), round(min(length, middle + half))))
    return box[0][0], box[1][0], box[0][1], box[1][1]


@pytest.mark.parametrize("case", OFFICIAL, ids=lambda case: f"{case['size']}-{case['base']}")
def test_boxes_are_the_official_functions(case):
    box = sharpest_box(torch.tensor(case["map"]), tuple(case["size"]), case["base"], SIZES)
    assert list(box) == case["box"]


def test_box_of_the_specification():
    case = SPECS["vicrop_bbox"]
    found = sharpest_box(
        torch.tensor(case["attention"]), tuple(case["image_size"]), case["base_size"], SIZES
    )
    assert list(found) == case["bbox"]


@given(st.data())
def test_boxes_are_those_of_a_loop(data):
    rows, columns = data.draw(st.tuples(st.integers(2, 7), st.integers(2, 7)))
    cells = st.lists(st.integers(0, 50), min_size=columns, max_size=columns)
    grid = data.draw(st.lists(cells, min_size=rows, max_size=rows))
    size = data.draw(st.tuples(st.integers(20, 300), st.integers(20, 300)))
    base, sizes = data.draw(st.integers(2, 400)), data.draw(st.integers(1, SIZES))
    box = sharpest_box(torch.tensor(grid), size, base, sizes)
    left, top, right, bottom = box
    assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
    assert box == naive(grid, size, base, sizes)


@pytest.mark.parametrize(
    ("relevance", "sizes"), [([1.0, 2.0], 1), ([[1.0, float("nan")]], 1), ([[1.0, 2.0]], 0)]
)
def test_what_is_no_map_is_refused(relevance, sizes):
    with pytest.raises(InvalidParameter, match=r"expected finite values \[h, w\]"):
        sharpest_box(torch.tensor(relevance), (10, 10), 5, sizes)


def test_a_crop_stands_after_its_picture():
    one, two = (Picture.of(Image.effect_noise((20 + i, 30), 40)) for i in (0, 1))
    chat = Prompt((Turn("user", (one, "What?")), Turn("assistant", ("A.",)), Turn("user", (two,))))
    given = beside(chat, [(1, 2, 9, 12), (0, 0, 21, 30)])
    first = given.turns[0].parts
    assert [getattr(part, "image", None) and part.image.size for part in first[:2]] == [
        (20, 30),
        (8, 10),
    ]
    assert first[2:] == ("What?",)
    assert given.pictures[1].image.tobytes() == one.image.crop((1, 2, 9, 12)).tobytes()
    assert given.pictures[2:] == (two, two), "a crop of the whole picture is the picture"
