"""Scenes with and without an object: nothing else changes, and all paired benchmarks read them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.evals.benchmarks.fixed_answers import COPIED
from halludecode.evals.load import load_units
from halludecode.testbed import write_pairs
from halludecode.testbed.scenes import edited, scenes
from tests.support import eval_world as world

TASKS = ("popev2", "beaf", "naturalbench", "phd")


def test_scenes_are_the_splits_own():
    for (scene, _), plain in zip(edited("broken", 5), scenes("broken", 5), strict=True):
        assert np.array_equal(scene.image, plain.image)


def test_an_edit_lacks_one_category_and_changes_nothing_else():
    blur = 2  # pixels that a picture's own blur carries a change
    for scene, edits in edited("iid", 12):
        assert len(edits) == 2
        for name, image in edits.items():
            near = np.zeros(image.shape[:2], bool)
            for thing in scene.things:
                if thing.name == name:
                    x, y, width, height = thing.box
                    near[
                        max(0, y - blur) : y + height + blur, max(0, x - blur) : x + width + blur
                    ] = 1
            changed = (image != scene.image).any(axis=2)
            assert changed.any()
            assert not changed[~near].any()


def test_a_set_is_read_by_every_paired_benchmark(tmp_path):
    folder = write_pairs(tmp_path / "pairs", "iid", 6)
    units = load_units([folder], world.select(*TASKS))
    counts = {unit.task: len(unit.samples) for unit in units}
    questions = json.loads((folder / "beaf" / "beaf_qna.json").read_text())
    assert counts == {"popev2": 24, "beaf": len(questions), "naturalbench": 24, "phd": 24}
    for unit in units:
        ours = unit.benchmark.score(
            [
                {"id": s.id, "image": s.image, "prompt": s.prompt}
                | unit.benchmark.answered(s, str(s.label))
                for s in unit.samples
            ]
        )
        assert ours.metrics["Acc" if unit.task == "naturalbench" else "accuracy"] == 1
        labels = {"yes": 0, "no": 0}
        for sample in unit.samples:
            labels[str(sample.label).lower()] += 1
        if unit.task != "beaf":
            assert labels["yes"] == labels["no"]


def test_it_is_told_that_a_copied_answer_gets_no_pair(tmp_path):
    from halludecode.evals.runner.run import run_eval

    folder = write_pairs(tmp_path / "pairs", "broken", 3)
    options = {"tasks": list(TASKS), "strategies": ["greedy"], "progress": False}
    report = run_eval(world.FakeEngine(), output=tmp_path / "run", data=[folder], **options)
    assert report.failed == report.left_out == 0
    nothing = {"popev2": "pair_accuracy", "beaf": "TU", "naturalbench": "Q_Acc"}
    nothing["phd"] = "pair_accuracy"
    for entry in report.results["runs"]:
        assert entry["fixed_answers"][COPIED][nothing[entry["task"]]] == 0


def test_the_same_seed_gives_the_same_digest_and_another_another(tmp_path):
    told = [
        json.loads((write_pairs(tmp_path / name, "iid", 2, seed) / "dataset.json").read_text())
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    digests = [about["digest"] for about in told]
    assert digests[0] == digests[1] != digests[2]


def test_bad_wishes_are_one_sentence(tmp_path):
    with pytest.raises(InvalidParameter, match="Split 'train' has no pairs; use one of iid"):
        write_pairs(tmp_path / "a", "train", 2)
    (tmp_path / "full" / "x").mkdir(parents=True)
    with pytest.raises(InvalidData, match="is not empty"):
        write_pairs(tmp_path / "full", "iid", 1)
    assert not (tmp_path / "a").exists()
