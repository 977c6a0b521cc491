import itertools

import numpy as np
import pytest

from halludecode.core.errors import InvalidParameter
from halludecode.testbed.categories import PARTNERS
from halludecode.testbed.scenes import SPLITS, casts, scenes

EVALUATION = ("iid", "broken", "dev-iid", "dev-broken")


@pytest.fixture(scope="module")
def made():
    return {split: list(scenes(split, 60)) for split in SPLITS}


@pytest.mark.parametrize("split", EVALUATION)
def test_evaluation_scenes_keep_the_rules(made, split):
    for scene in made[split]:
        assert len(scene.names) >= 3 and len(scene.things) <= 8
        for number, thing in enumerate(scene.things):
            assert thing.area == (scene.ids == number).sum() >= 40
            assert thing.area >= 0.35 * thing.full
            assert not thing.hidden
        assert scene.image.shape == (120, 120, 3) and scene.image.dtype == np.uint8


def test_training_scenes_hide_some_objects():
    things = [thing for scene in scenes("train", 300) for thing in scene.things]
    assert 0.18 < sum(thing.hidden for thing in things) / len(things) < 0.26


def test_splits_share_no_scene(made):
    pictures = {
        split: {scene.image.tobytes() for scene in all_of} for split, all_of in made.items()
    }
    stages = {
        split: [(scene.theme, tuple(t.box for t in scene.things)) for scene in all_of]
        for split, all_of in made.items()
    }
    for one, two in itertools.combinations(made, 2):
        assert not pictures[one] & pictures[two]
        assert not set(stages[one]) & set(stages[two])
    assert all(len(found) == 60 for found in pictures.values())


def test_a_scene_does_not_depend_on_count_nor_on_the_others(made):
    again = list(scenes("broken", 5))
    for one, two in zip(again, made["broken"], strict=False):
        assert np.array_equal(one.image, two.image)
        assert np.array_equal(one.ids, two.ids)
        assert one.things == two.things


def test_another_seed_gives_other_scenes(made):
    other = next(scenes("iid", 1, seed=1))
    assert not np.array_equal(other.image, made["iid"][0].image)


def paired(split):
    """How often an anchor that has a partner comes with it."""
    with_partner = total = 0
    for names in casts(split, 3000):
        for name in set(names[:1]) & set(PARTNERS):
            total += 1
            with_partner += PARTNERS[name] in names
    return with_partner / total


def test_partners_come_often_in_iid_and_seldom_in_broken():
    assert 0.64 < paired("train") < 0.76
    assert 0.64 < paired("iid") < 0.76
    assert 0.2 < paired("broken") < 0.45


def test_training_casts_are_the_training_scenes():
    for names, scene in zip(casts("train", 20), scenes("train", 20), strict=True):
        assert sorted(names) == sorted(thing.name for thing in scene.things)


@pytest.mark.parametrize(
    ("split", "count", "seed", "words"),
    [
        ("val", 1, 0, "iid, broken, dev-iid, dev-broken"),
        ("iid", 0, 0, "at least 1"),
        ("iid", -3, 0, "at least 1"),
        ("iid", 1, -1, "between 0"),
        ("iid", 1, 2**64, "between 0"),
    ],
)
def test_wrong_choices_are_told(split, count, seed, words):
    with pytest.raises(InvalidParameter, match=words):
        next(scenes(split, count, seed))
