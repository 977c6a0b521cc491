"""What calibration reads: folders, files and the testbed, each sample with its answer."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from halludecode.analysis.calibration_samples import samples
from halludecode.core.errors import InvalidData, InvalidRequest


def folder(root: Path, pictures: int = 3, *, pope: bool = True, captions: bool = True) -> Path:
    """A data folder: two questions a picture in two splits, two captions a picture."""
    names = [f"{i}.png" for i in range(pictures)]
    for i, name in enumerate(names):
        (root / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(root / "images" / name)
    if pope:
        (root / "pope").mkdir()
        for split in ("random", "adversarial"):
            asked = [
                {"question_id": 2 * i + k, "image": n, "text": f"Is there a {w}?", "label": label}
                for i, n in enumerate(names)
                for k, (w, label) in enumerate((("cat", "yes"), (f"{split} dog", "no")))
            ]
            text = "".join(json.dumps(q) + "\n" for q in asked)
            (root / "pope" / f"{split}.jsonl").write_text(text)
    if captions:
        (root / "annotations").mkdir()
        content = {
            "images": [{"id": i, "file_name": n} for i, n in enumerate(names)],
            "annotations": [
                {"image_id": i, "caption": f"{w} picture {i}"}
                for i in range(pictures)
                for w in ("first", "second")
            ],
        }
        (root / "annotations" / "captions.json").write_text(json.dumps(content))
    return root


def test_a_folder_gives_questions_and_captions(tmp_path):
    found = samples("some/model", [str(folder(tmp_path))])
    asked = [(r, a) for r, a in found if a in ("yes", "no")]
    told = [(r, a) for r, a in found if a not in ("yes", "no")]
    assert Counter(a for _, a in asked) == {"yes": 3, "no": 3}
    assert [a for _, a in told[:3]] == ["first picture 0", "second picture 0", "first picture 1"]
    assert told[0][0].prompt == "Please describe this image in detail."
    assert asked[0][0].prompt.endswith("Answer the question using a single word or phrase.")
    assert told[2][0].images[0].getpixel((0, 0)) == (40, 0, 0)


def test_every_picture_is_asked_the_questions_of_one_split(tmp_path):
    found = samples("m", [str(folder(tmp_path, captions=False))])
    kinds = Counter("random" in r.prompt for r, a in found if a == "no")
    assert kinds == {True: 2, False: 1}
    assert len({(r.prompt, r.images[0].tobytes()) for r, _ in found}) == len(found)


def test_a_limit_keeps_the_first_pictures(tmp_path):
    found = samples("m", [str(folder(tmp_path))], limit=2)
    assert len(found) == 2 * 2 + 2 * 2
    assert {r.images[0].getpixel((0, 0))[0] for r, _ in found} == {0, 40}


def test_a_prompt_preset_words_the_questions(tmp_path):
    found = samples("m", [str(folder(tmp_path, captions=False))], prompt_preset="vcd")
    assert found[0][0].prompt == "Is there a cat? Please answer this question with one word."


def test_a_file_and_its_pictures(tmp_path):
    root = folder(tmp_path)
    told = samples("m", [], root / "images", root / "annotations" / "captions.json")
    assert len(told) == 6
    asked = samples("m", [], root / "images", root / "pope" / "random.jsonl")
    assert Counter(a for _, a in asked) == {"yes": 3, "no": 3}


def test_captions_of_absent_pictures_are_left_out(tmp_path):
    root = folder(tmp_path)
    (root / "images" / "1.png").unlink()
    told = samples("m", [], root / "images", root / "annotations" / "captions.json", limit=2)
    assert [a[-1] for _, a in told] == ["0", "0", "2", "2"]


def test_the_testbed_has_both(tmp_path, monkeypatch):
    monkeypatch.setenv("HALLUDECODE_CACHE", str(tmp_path))
    found = samples("testbed", ["testbed-dev-iid"], limit=2)
    kinds = Counter(a if a in ("yes", "no") else "caption" for _, a in found)
    assert kinds == {"yes": 6, "no": 6, "caption": 6}
    assert found[0][0].prompt.endswith("Please answer yes or no.")


def test_bad_sources_are_one_sentence(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        InvalidData, match=r"nothing to calibrate on; it needs questions with labels \(pope/"
    ):
        samples("m", [str(empty)])
    with pytest.raises(InvalidData, match="no such folder, and not a hub id"):
        samples("m", [str(tmp_path / "absent")])
    with pytest.raises(InvalidData, match="--images and --annotations go together"):
        samples("m", [], empty)
    bad = tmp_path / "captions.json"
    bad.write_text(json.dumps({"annotations": [{"caption": "no picture"}], "images": []}))
    with pytest.raises(InvalidData, match="not a COCO captions file"):
        samples("m", [], empty, bad)
    bad.write_text(json.dumps({"annotations": [], "images": []}))
    with pytest.raises(InvalidData, match="holds none of the pictures"):
        samples("m", [], empty, bad)


def test_a_picture_that_cannot_be_decoded_is_one_sentence(tmp_path):
    root = folder(tmp_path)
    (root / "images" / "1.png").write_text("no picture")
    with pytest.raises(InvalidRequest, match=r"1\.png: the picture cannot be decoded"):
        samples("m", [str(root)])
