import pytest

from halludecode.evals.benchmarks.chair.object_words import reader
from halludecode.testbed.categories import NAMES
from halludecode.testbed.phrases import captions, noun, plural, where
from halludecode.testbed.render import Thing
from halludecode.testbed.scenes import scenes
from halludecode.testbed.stream import Stream


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (noun("airplane"), "an airplane"),
        (noun("car", 1, "red"), "a red car"),
        (noun("person", 2), "two people"),
        (noun("skis"), "a pair of skis"),
        (noun("vase", 3), "a vase"),
        (plural("mouse"), "mice"),
    ],
)
def test_noun_phrases(words, expected):
    assert words == expected


@pytest.mark.parametrize("family", ["wordnet", "pattern"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_chair_reads_every_noun_phrase_as_its_object(family, count):
    read = reader(family, "tables").read
    # "bus" is singularised to "bu" by the pattern family: known, and true of COCO's captions too.
    unread = {"bus"} if family == "pattern" and count == 1 else set()
    for name in NAMES:
        found = set(read(f"The image shows {noun(name, count)}.").objects)
        assert found == {name} - unread, name


@pytest.mark.parametrize("family", ["wordnet", "pattern"])
def test_captions_name_what_is_there_and_nothing_else(family):
    read = reader(family, "tables").read
    for scene in scenes("broken", 60):
        told = captions(Stream(0, 99, scene.index), scene)
        assert len(told) == 3
        for caption in told:
            assert set(read(caption).objects) <= set(scene.names)
        for caption in told[:2]:
            assert all(noun(name)[2:] in caption or plural(name) in caption for name in scene.names)


def thing(x, y):
    return Thing("dog", None, (x, y, 10, 10), 100, 100)


def test_where_takes_the_longer_way():
    assert where(thing(0, 0), thing(50, 20)) == "to the left of"
    assert where(thing(50, 0), thing(0, 20)) == "to the right of"
    assert where(thing(0, 0), thing(5, 20)) == "above"
    assert where(thing(0, 30), thing(5, 20)) == "below"
