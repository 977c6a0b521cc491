"""Pairs of captions: VTI's lines, and those made of a folder's captions and instances."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from halludecode.analysis.calibration_samples import samples
from halludecode.core.calibration import CaptionPair
from halludecode.core.errors import InvalidData

LINE = {"image": "0.png", "value": "A cat.", "h_value": "A cat and a dog.", "id": 7}


@pytest.fixture
def folder(tmp_path):
    """Three pictures: cat and dog, cat and dog and cup, cat alone."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(3)]
    for each in images:
        Image.new("RGB", (8, 8), (40 * each["id"], 0, 0)).save(
            tmp_path / "images" / each["file_name"]
        )
    told = [{"image_id": i, "caption": f"{w} {i}."} for i in range(3) for w in ("First", "Second")]
    names = ["cat", "dog", "cup", "owl"]
    holds = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)]
    seen = [{"image_id": i, "category_id": k} for i, k in holds]
    categories = [{"id": k, "name": name} for k, name in enumerate(names)]
    for name, content in (
        ("captions", {"images": images, "annotations": told}),
        ("instances", {"images": images, "annotations": seen, "categories": categories}),
    ):
        (tmp_path / "annotations" / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def lines(folder, *given):
    path = folder / "pairs.jsonl"
    path.write_text("".join(f"{json.dumps(each)}\n" for each in given))
    return path


def test_lines_as_published(folder):
    path = lines(folder, LINE, {**LINE, "image": "1.png", "question": "And this?"})
    found = samples("m", [], folder / "images", path, kind="pairs")
    assert [pair for _, pair in found] == [CaptionPair("A cat.", "A cat and a dog.")] * 2
    assert [r.prompt for r, _ in found] == ["Please describe this image in detail.", "And this?"]
    assert found[1][0].images[0].getpixel((0, 0)) == (40, 0, 0)
    assert len(samples("m", [], folder / "images", path, kind="pairs", limit=1)) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"image": "0.png", "value": "A cat."}, r'line 2: not \{"image".*\(\'h_value\'\)'),
        ({**LINE, "image": "9.png"}, r"line 2: picture .*9\.png does not exist"),
        ([1], "line 2: not"),
    ],
)
def test_a_bad_line_is_named(folder, line, said):
    with pytest.raises(InvalidData, match=said):
        samples("m", [], folder / "images", lines(folder, LINE, line), kind="pairs")


def test_a_thing_that_is_often_there_and_is_not_is_made_up(folder):
    found = samples("m", [str(folder)], kind="pairs")
    added = " There is also {} in the picture."
    assert [pair.true for _, pair in found] == ["First 0.", "First 1.", "First 2."]
    made = [pair.hallucinated.removeprefix(pair.true) for _, pair in found]
    assert made == [added.format(each) for each in ("a cup", "an owl", "a dog")]


def test_a_folder_without_instances_makes_none(folder):
    (folder / "annotations" / "instances.json").write_text('{"images": [], "annotations": [1]}')
    with pytest.raises(InvalidData, match="not a COCO instances file"):
        samples("m", [str(folder)], kind="pairs")
    (folder / "annotations" / "instances.json").unlink()
    with pytest.raises(InvalidData, match=r"no pairs of captions.*instances\*\.json"):
        samples("m", [str(folder)], kind="pairs")
