"""Truth from COCO's files: one, or several of a folder."""

from __future__ import annotations

import json

import pytest

from halludecode.core.errors import InvalidData
from halludecode.evals.runner.score_file import score_predictions

pytest.importorskip("pycocotools", reason="pycocotools is not installed")


def split(folder, name, objects, captions=()):
    """An instances file of pictures with one object each, perhaps with captions beside it."""
    kinds = {"dog": 1, "person": 2}
    images = [{"id": i, "file_name": f"COCO_{name}_{i:012d}.jpg"} for i in objects]
    boxes = [{"id": i, "image_id": i, "category_id": kinds[thing]} for i, thing in objects.items()]
    made = {"images": images, "annotations": boxes}
    listed = [{"id": n, "name": thing} for thing, n in kinds.items()]
    folder.mkdir(exist_ok=True)
    whole = json.dumps({**made, "categories": listed})
    (folder / f"instances_{name}.json").write_text(whole)
    if captions:
        texts = [{"id": n, "image_id": i, "caption": text} for n, (i, text) in enumerate(captions)]
        whole = json.dumps({"images": images, "annotations": texts})
        (folder / f"captions_{name}.json").write_text(whole)


@pytest.fixture
def said(tmp_path):
    rows = [(1, "A dog on a couch."), (2, "A man and a dog.")]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"image_id": i, "caption": c}) + "\n" for i, c in rows))
    return path


def test_a_folder_of_train_and_val_holds_the_pictures_of_both(tmp_path, said):
    coco = tmp_path / "annotations"
    split(coco, "train2014", {1: "dog"}, [(1, "A dog lies on a couch.")])
    split(coco, "val2014", {2: "person"})
    made = score_predictions("chair(path=tables)", said, coco)
    assert [one["hallucinated"] for one in made["sentences"]] == [[], ["dog"]]
    beside = str(coco / "captions_train2014.json")
    assert json.loads(json.dumps(made))["captions"] == [beside, None]
    assert (
        f"The truth is instances and the captions of {beside} (instances_train2014.json)."
        in (made["told"])
    )
    assert "The truth is instances only (instances_val2014.json)." in made["told"]


def test_a_picture_of_two_files_must_be_the_same_in_both(tmp_path, said):
    coco = tmp_path / "annotations"
    split(coco, "val2014", {1: "dog", 2: "person"})
    split(coco, "minival2014", {2: "person"})
    assert score_predictions("chair(path=tables)", said, coco)["n"] == 2
    split(coco, "minival2014", {2: "dog"})
    with pytest.raises(InvalidData, match=r"picture 2 has other objects in .*mini.* than in .*val"):
        score_predictions("chair(path=tables)", said, coco)


def test_what_a_folder_cannot_be_is_said(tmp_path, said):
    coco = tmp_path / "annotations"
    coco.mkdir()
    with pytest.raises(InvalidData, match="no COCO instances file is in this folder; give a file"):
        score_predictions("chair", said, coco)
    split(coco, "train2014", {1: "dog"}, [(1, "A dog.")])
    split(coco, "val2014", {2: "person"})
    with pytest.raises(InvalidData, match="one captions file for 2 instances files in"):
        score_predictions("chair", said, coco, coco / "captions_train2014.json")
