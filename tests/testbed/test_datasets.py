import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halludecode import testbed
from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.evals.benchmarks.chair import scoring as chair
from halludecode.evals.benchmarks.mme import scoring as mme
from halludecode.evals.benchmarks.pope import scoring as pope
from halludecode.testbed import datasets
from halludecode.testbed.scenes import scenes

# Every machine must find these. A change of the generator that alters one: raise VERSION.
GOLDEN = {
    "iid": "658c5119d15bbf35544ab1be4cd91ac9fddd06040b2d99325d27c4d3fd00383e",
    "broken": "53d0df5d3f666de10b773223aba545bb49b64d6024bfe7e04e0e17c0e2586426",
    "dev-iid": "d36416a6120bd955ed323dc6ceaff4852274141448971dbe3f765fff503d258e",
    "dev-broken": "3f757db7722bcc5146f07705b56cf8a82df8f9bb87ae01bab789709951bea6ff",
    "train": "6889dda0df56e72e64526bb4cc456e6077242ed17ade360850b78137ea58f0a9",
}


def read(path):
    return json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize("split", GOLDEN)
def test_digests_are_the_published_ones(folders, split):
    assert read(folders[split] / "dataset.json")["digest"] == GOLDEN[split]
    assert testbed.digest(split, 24) == GOLDEN[split]


def test_a_digest_depends_on_split_count_and_seed():
    found = {
        testbed.digest(*choice)
        for choice in (("iid", 2), ("iid", 3), ("iid", 2, 5), ("dev-iid", 2))
    }
    assert len(found) == 4
    assert testbed.digest("iid", 2, 0) in found


def test_dataset_json_says_what_it_is(folder):
    about = read(folder / "dataset.json")
    assert about["name"] == folder.name
    assert about["split"] == folder.name.removeprefix("testbed-")
    assert (about["seed"], about["count"], about["generator"]) == (0, 24, datasets.VERSION)


def test_pictures_are_the_scenes(folder):
    split = folder.name.removeprefix("testbed-")
    images = read(folder / "annotations/instances.json")["images"]
    for image, scene in zip(images, scenes(split, 24), strict=True):
        assert image["file_name"].endswith(f"{image['id']:012d}.png")
        with Image.open(folder / "images" / image["file_name"]) as picture:
            assert np.array_equal(np.asarray(picture), scene.image)
        assert image["theme"] == scene.theme


# pycocotools 2.0.11 decodes masks the way NumPy 1 liked.
numpy_1 = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@numpy_1
def test_coco_annotations_load_and_agree_with_the_masks(folders):
    from pycocotools.coco import COCO

    for split, folder in folders.items():
        coco = COCO(folder / "annotations/instances.json")
        assert len(coco.getImgIds()) == 24 and len(coco.getCatIds()) == 80
        for annotation in coco.loadAnns(coco.getAnnIds()):
            mask = coco.annToMask(annotation)
            assert mask.shape == (120, 120)
            assert mask.sum() == annotation["area"]
            x, y, width, height = annotation["bbox"]
            if annotation["area"]:
                assert mask[y : y + height, x : x + width].sum() == annotation["area"]
                assert mask[y].any() and mask[:, x].any()
            assert split == "train" or annotation["area"] >= 40


@numpy_1
def test_masks_of_a_picture_do_not_overlap(folder):
    from pycocotools.coco import COCO

    coco = COCO(folder / "annotations/instances.json")
    for image in coco.getImgIds():
        masks = [coco.annToMask(a) for a in coco.loadAnns(coco.getAnnIds(imgIds=image))]
        assert np.sum(masks, 0).max() == 1


def present(folder):
    instances = read(folder / "annotations/instances.json")
    names = {category["id"]: category["name"] for category in instances["categories"]}
    files = {image["id"]: image["file_name"] for image in instances["images"]}
    found = {name: set() for name in files.values()}
    for annotation in instances["annotations"]:
        found[files[annotation["image_id"]]].add(names[annotation["category_id"]])
    return found


@pytest.mark.parametrize("family", ["wordnet", "pattern"])
def test_chair_s_ground_truth_is_what_was_painted(folder, family):
    truth = chair.ground_truth(
        folder / "annotations/instances.json",
        folder / "annotations/captions.json",
        family=family,
        path="tables",
    )
    for name, objects in present(folder).items():
        assert truth[int(name[-16:-4])] == objects


@pytest.mark.parametrize("setting", datasets.SETTINGS)
def test_pope_is_balanced_and_true(folder, setting):
    questions = pope.load_questions(folder / f"pope/{setting}.jsonl")
    objects = present(folder)
    assert len(questions) == 24 * 6
    asked = Counter((q.image, q.label) for q in questions)
    assert set(asked.values()) == {3}
    assert [q.label for q in questions] == ["yes", "no"] * 72
    for question in questions:
        name = question.text.removesuffix(" in the image?").split(" ", 3)[3]
        assert (name in objects[question.image]) == (question.label == "yes")


def test_pope_s_settings_share_their_positives(folder):
    positives = [
        [q.text for q in pope.load_questions(folder / f"pope/{s}.jsonl") if q.label == "yes"]
        for s in datasets.SETTINGS
    ]
    assert positives[0] == positives[1] == positives[2]


def test_mme_files_are_read_with_their_pictures(folder):
    questions = mme.load_questions(folder / "mme")
    counts = Counter(q.subtask for q in questions)
    assert counts["existence"] == counts["count"] == counts["scene"] == 48
    assert counts["color"] > 10 and counts["position"] > 10
    for yes, no in zip(questions[::2], questions[1::2], strict=True):
        assert (yes.label, no.label) == ("yes", "no")
        assert yes.image == no.image
        assert yes.path.read_bytes() == (folder / "images" / yes.image).read_bytes()


def test_the_training_split_has_no_questions(folders):
    assert sorted(p.name for p in folders["train"].iterdir()) == [
        "annotations",
        "dataset.json",
        "images",
    ]
    instances = read(folders["train"] / "annotations/instances.json")["annotations"]
    assert any(annotation.get("hidden") for annotation in instances)


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InvalidData, match="not empty"):
        testbed.write_dataset(tmp_path, "iid", 1)
    with pytest.raises(InvalidData, match="cannot be written"):
        testbed.write_dataset(tmp_path / "mine.txt" / "below", "iid", 1)
    with pytest.raises(InvalidData, match="cannot be written"):
        testbed.write_dataset(tmp_path / "mine.txt", "iid", 1)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(datasets.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_data_set_is_made_once(cache):
    folder = testbed.dataset("testbed-iid", 3)
    assert folder.name == "testbed-iid" and cache in folder.parents
    stamp = (folder / "dataset.json").stat().st_mtime_ns
    assert testbed.dataset("testbed-iid", 3) == folder
    assert (folder / "dataset.json").stat().st_mtime_ns == stamp
    assert testbed.dataset("testbed-iid", 2) != folder
    assert [p.name for p in folder.parent.iterdir()] == ["testbed-iid"]  # nothing half-made is left


@pytest.mark.parametrize("damage", ["dataset.json", "picture", "other"])
def test_a_damaged_data_set_is_made_again(cache, damage):
    folder = testbed.dataset("testbed-broken", 2)
    about = read(folder / "dataset.json")
    if damage == "dataset.json":
        (folder / "dataset.json").write_text("{")
    elif damage == "picture":
        next((folder / "images").iterdir()).unlink()
    else:
        (folder / "dataset.json").write_text(json.dumps(about | {"generator": -1}))
    assert testbed.dataset("testbed-broken", 2) == folder
    assert read(folder / "dataset.json") == about
    assert len(list((folder / "images").iterdir())) == 2


def test_an_interrupted_making_leaves_nothing(cache, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(datasets, "encode", stop)
        with pytest.raises(KeyboardInterrupt):
            testbed.dataset("testbed-iid", 2)
    assert not [p for p in cache.rglob("*") if p.is_file()]
    assert testbed.dataset("testbed-iid", 2).is_dir()


def test_two_makers_at_once_leave_one_data_set(cache, monkeypatch):
    write, folders = datasets._write, []

    def overtaken(out, split, count, seed):
        write(out, split, count, seed)
        if not folders:
            folders.append(out)
            folders.append(testbed.dataset("testbed-iid", 2))

    monkeypatch.setattr(datasets, "_write", overtaken)
    folder = testbed.dataset("testbed-iid", 2)
    assert folder == folders[1] and len(list((folder / "images").iterdir())) == 2
    assert [p.name for p in folder.parent.iterdir()] == ["testbed-iid"]


def test_wrong_data_sets_are_told(cache):
    with pytest.raises(InvalidData, match="testbed-dev-broken"):
        testbed.dataset("testbed-train")
    with pytest.raises(InvalidParameter, match="at least 1"):
        testbed.dataset("testbed-iid", 0)


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv(datasets.CACHE_VARIABLE, str(blocked))
    with pytest.raises(InvalidData, match=datasets.CACHE_VARIABLE):
        testbed.dataset("testbed-iid", 1)


def test_the_default_cache_is_below_home(tmp_path, monkeypatch):
    monkeypatch.delenv(datasets.CACHE_VARIABLE, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    folder = testbed.dataset("testbed-iid", 1)
    assert folder.is_relative_to(tmp_path / ".cache" / "halludecode" / "testbed")
