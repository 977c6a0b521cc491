from collections import Counter

from halludecode.testbed.mme import SUBTASKS, questions
from halludecode.testbed.scenes import scenes
from halludecode.testbed.stream import Stream


def asked(count=120):
    return [(s, questions(Stream(0, 99, s.index), s)) for s in scenes("iid", count)]


def test_every_pair_is_true_then_false():
    for scene, pairs in asked():
        names = scene.names
        yes, no = (q.removeprefix("Is there ").partition(" in this")[0] for q in pairs["existence"])
        assert yes.partition(" ")[2] in names and no.partition(" ")[2] not in names
        assert all("a total of" in question for question in pairs["count"])
        assert scene.theme in pairs["scene"][0] and scene.theme not in pairs["scene"][1]


def test_counts_are_right_and_wrong():
    words = {"one": 1, "two": 2, "three": 3}
    for scene, pairs in asked():
        how_many = Counter(thing.name for thing in scene.things)
        right, wrong = (words.get(q.split()[5], 0) for q in pairs["count"])
        assert right in how_many.values() and right != wrong


def test_colours_are_those_of_a_single_object():
    seen = 0
    for scene, pairs in asked():
        if "color" not in pairs:
            continue
        seen += 1
        colour, name = pairs["color"][0].split(" in ")[0].split(" ", 3)[3].split(" ", 1)
        alike = [thing for thing in scene.things if thing.name == name]
        assert [thing.colour for thing in alike] == [colour]
        assert f" {colour} " not in pairs["color"][1]
    assert seen > 30


def test_positions_are_clear():
    seen = 0
    for scene, pairs in asked():
        if "position" not in pairs:
            continue
        seen += 1
        left = " left " in pairs["position"][0]
        assert left != (" left " in pairs["position"][1])
        words = pairs["position"][0].removeprefix("Is the ").partition("?")[0]
        one, _, two = words.partition(f" on the {'left' if left else 'right'} side of the ")
        x = {thing.name: thing.middle[0] for thing in scene.things}
        assert (x[one] < x[two]) == left
        assert abs(x[one] - x[two]) > 30
    assert seen > 60


def test_all_questions_end_as_mme_s():
    for _, pairs in asked(20):
        assert set(pairs) <= set(SUBTASKS)
        assert all(
            q.endswith("? Please answer yes or no.") for pair in pairs.values() for q in pair
        )
