"""R-Bench: the counts of its script, up to what that adds below the line; its release."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.rbench import RBench
from halludecode.evals.load import load_units
from tests.support import eval_world as world
from tests.support.answered import OFFICIAL, lines_of, samples_of

INSTANCE = OFFICIAL["rbench_instance"]
THINGS = {"subject": "Man", "object": "Horse"}


def test_scores_equal_the_official_scripts():
    given = OFFICIAL["rbench"]["rows"]
    rows = [
        {"question_id": i, "image": f"{i}.jpg", "question": "Is he riding it?", "answer": label}
        for i, label, _ in given
    ]
    answers = {i: answer for i, _, answer in given}
    lines = lines_of(RBench(), samples_of(RBench(), rows), lambda s: answers[s.id])
    metrics = RBench().score(lines).metrics
    for name, value in OFFICIAL["rbench"]["scores"].items():
        assert metrics[name] == pytest.approx(value, abs=1e-5)  # its rates have 1e-5 below the line


def test_the_release_is_found(tmp_path):
    rows = [{"question_id": 7, "image": "a.jpg", "text": "Is he on it?", "label": "no"}]
    (tmp_path / "rbench").mkdir()
    (tmp_path / "rbench" / "image-level_filterd.json").write_text(json.dumps(rows))
    world.picture(tmp_path / "images" / "a.jpg", 1)
    (unit,) = load_units([tmp_path], world.select("rbench"))
    assert [(s.id, s.question, s.label) for s in unit.samples] == [(7, "Is he on it?", "no")]


def instance_folder(root, **more):
    row = {"question_id": 7, "image": "a.png", "text": "Is the man on the horse?", "label": "Yes"}
    row |= {**THINGS, **INSTANCE["boxes"], **more}
    (root / "rbench").mkdir(exist_ok=True)
    (root / "rbench" / "instance-level_filterd.json").write_text(json.dumps([row]))
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    mask = np.zeros((15, 20), dtype=np.uint8)
    mask[2:7, 3:10] = 1
    mask[5:12, 8:18] = 2
    for place, pixels in (("images/a.png", noise), ("rbench/instance_mask/7.png", mask)):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / place)
    return root


@pytest.mark.parametrize(("text", "subject", "thing", "level", "asked"), INSTANCE["questions"])
def test_marked_things_are_named_as_officially(text, subject, thing, level, asked):
    row = {"question_id": 1, "image": "a.jpg", "question": text, "answer": "yes"}
    row |= {"subject": subject, "object": thing, **INSTANCE["boxes"]}
    (sample,) = samples_of(RBench(level=level), [row])
    assert sample.question == asked


@pytest.mark.parametrize("level", ["box", "mask"])
def test_pictures_are_marked_pixel_for_pixel_as_officially(tmp_path, level):
    (unit,) = load_units([instance_folder(tmp_path)], world.select(f"rbench(level={level})"))
    (sample,) = unit.samples
    pixels = np.asarray(sample.picture.load())
    assert pixels.shape == (30, 40, 3)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == INSTANCE[f"{level}_sha256"]
    line = {"id": sample.id, "image": sample.picture.name}
    assert RBench.cluster(line) == "a.png"  # one picture, whatever is marked


def test_what_an_instance_lacks_is_one_sentence(tmp_path):
    instance_folder(tmp_path, sub_box=[0.5, 0.1, 0.2, 0.9])
    with pytest.raises(InvalidData, match=r"json:1: sub_box \[0.5, .*\] is no box of four shares"):
        load_units([tmp_path], world.select("rbench(level=box)"))
    instance_folder(tmp_path, subject=None)
    with pytest.raises(InvalidData, match=r"json:1: no subject; level=box needs it"):
        load_units([tmp_path], world.select("rbench(level=box)"))
    (instance_folder(tmp_path) / "rbench" / "instance_mask" / "7.png").unlink()
    with pytest.raises(InvalidData, match=r"mask .*7\.png does not exist; level=mask needs the"):
        load_units([tmp_path], world.select("rbench(level=mask)"))


def test_a_table_of_both_levels_is_read_by_level(tmp_path):
    rows = [
        {"question_id": n, "image": "a.png", "question": "Is the man on the horse?", "label": "Yes"}
        | {"level": level, "sub_box": "[0.1, 0.2, 0.5, 0.8]", "obj_box": "[0, 0, 1, 1]", **THINGS}
        for n, level in enumerate(("image", "instance"))
    ]
    world.write_lines(tmp_path / "rbench.jsonl", rows)
    world.picture(tmp_path / "images" / "a.png", 1)
    for level, number in (("image", 0), ("box", 1)):
        (unit,) = load_units([tmp_path], world.select(f"rbench(level={level})"))
        assert [s.id for s in unit.samples] == [number]
