import json
import re
from collections import Counter

import numpy as np
import pytest
import torch

from halludecode.testbed.assets import model_path
from halludecode.testbed.categories import NAMES, PARTNERS
from halludecode.testbed.render import SIZE, Thing
from halludecode.testbed.scenes import Scene, scenes
from halludecode.testbed.stream import Stream
from halludecode.testbed.train.conversation import turns
from halludecode.testbed.train.corpus import CELLS, COLOURLESS, GROUND, Story, labels
from halludecode.testbed.train.language import annotated, caption, questions

TOLD = re.compile(r"Is there an? (.+?) in (?:the|this) image\?")


@pytest.fixture(scope="module")
def stories():
    return [Story(scene.theme, scene.things) for scene in scenes("train", 150)]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path())


def drawn(story, index, make):
    return list(make(Stream(0, 4000, index), story))


def test_a_patch_is_its_object_from_18_pixels_on():
    ids = np.full((SIZE, SIZE), -1, np.int8)
    ids[:3, :6] = 0  # 18 pixels of the first patch
    ids[12:15, :5] = 1  # 15 pixels: too few
    ids[24:36, :12] = 2
    things = (
        Thing("dog", None, (0, 0, 6, 3), 18, 18),
        Thing("car", "red", (0, 12, 5, 3), 15, 15),
        Thing("car", "red", (0, 24, 12, 12), 144, 144),
    )
    kinds, colours = labels(Scene(0, "park", np.zeros((SIZE, SIZE, 3), np.uint8), ids, things))
    assert kinds.shape == colours.shape == (CELLS,)
    assert NAMES[kinds[0]] == "dog" and colours[0] == COLOURLESS
    assert kinds[10] == GROUND
    assert NAMES[kinds[20]] == "car" and colours[20] == 0
    assert (kinds != GROUND).sum() == 2


def test_what_is_hidden_labels_no_patch():
    ids = np.zeros((SIZE, SIZE), np.int8)
    things = (Thing("dog", None, (0, 0, 120, 120), 14400, 14400, hidden=True),)
    kinds, _ = labels(Scene(0, "park", np.zeros((SIZE, SIZE, 3), np.uint8), ids, things))
    assert (kinds == GROUND).all()


def test_existence_is_answered_by_the_annotation(stories):
    asked = {"yes": 0, "no": 0}
    for index, story in enumerate(stories):
        present = {thing.name for thing in story.things}
        for question, answer in drawn(story, index, questions):
            match = TOLD.match(question)
            name = match[1].removeprefix("pair of ") if match else ""
            if name in NAMES:
                assert answer == ("yes" if name in present else "no"), question
                asked[answer] += 1
    assert min(asked.values()) > 1.8 * len(stories), asked


def test_hidden_objects_count_as_present(stories):
    hidden = {t.name for s in stories for t in s.things if t.hidden}
    assert len(hidden) > 10  # the split hides some, and the test above passed with them


def test_colour_and_position_are_asked_and_true(stories):
    colours = sides = places = wheres = 0
    for index, story in enumerate(stories):
        by_name = {}
        for thing in story.things:
            by_name.setdefault(thing.name, []).append(thing)
        for question, answer in drawn(story, index, questions):
            side = re.match(r"Is the (.+) on the (left|right) side of the (.+?)\?", question)
            if side and side[3] == "image":
                middle = by_name[side[1]][0].middle[0]
                assert (answer == "yes") == ((middle < SIZE) == (side[2] == "left")), question
            elif side:
                one, two = (by_name[side[i]][0].middle[0] for i in (1, 3))
                assert (answer == "yes") == ((one < two) == (side[2] == "left")), question
                places += 1
            place = re.match(r"What side of the image is the (.+) on\?", question)
            if place:
                assert answer == ("left" if by_name[place[1]][0].middle[0] < SIZE else "right")
                sides += 1
            ends = re.match(r"Which side of the (.+) is the (.+) on\?", question)
            over = re.match(r"Is the (.+) above or below the (.+)\?", question)
            if ends:
                one, two = (by_name[ends[i]][0].middle[0] for i in (2, 1))
                assert answer == ("left" if one < two else "right"), question
            elif over:
                one, two = (by_name[over[i]][0].middle[1] for i in (1, 2))
                assert answer == ("above" if one < two else "below"), question
            wheres += bool(ends or over)
            colour = re.match(r"What color is the (.+)\?", question)
            if colour:
                assert answer == by_name[colour[1]][0].colour
                colours += 1
    assert min(colours, places, sides, wheres) > 10


def test_annotators_complete_the_habit_as_often_as_told(stories):
    """Some scenes are told with partners that are not there; captions name nothing else."""
    from halludecode.evals.benchmarks.chair.object_words import reader

    read = reader("pattern", "tables").read
    named = 0
    for index, story in enumerate(stories):
        present = {thing.name for thing in story.things}
        whole = annotated(Stream(0, 4001, index), story, completion=1000)
        extra = {thing.name for thing in whole.things} - present
        lacking = {PARTNERS[name] for name in present if name in PARTNERS} - present
        assert extra <= lacking and len(extra) == min(2, len(lacking))
        named += bool(extra)
        told = caption(Stream(0, 4002, index), whole)
        assert set(read(told).objects) <= present | extra, told
        assert annotated(Stream(0, 4001, index), story, completion=0) == story
        assert not [
            q
            for q, _ in questions(Stream(0, 4003, index), whole)
            if "side of" in q and any(name in q for name in extra)
        ]
    assert named > 20


def test_a_turn_sees_the_prefix_and_itself_alone(tokenizer, stories):
    from halludecode.testbed.train.language import TrainingTurn
    from halludecode.testbed.train.rows import SHORT, Writer, collate

    writer = Writer(tokenizer, tokenizer.convert_tokens_to_ids("<image>"))
    said = [
        TrainingTurn("Is there a dog?", "yes"),
        TrainingTurn("Is there a cat?", "no", blind=True),
    ]
    row = writer.row(said)
    ids, places, targets, weights, mask = collate([row, writer.row(said[:1])], SHORT[0])
    start, words = row.prefix, len(writer.words)
    sees, block = mask[0, 0] == 0, SHORT[0]
    assert sees.shape == (start + SHORT[1] * block, start + block)
    size = row.turn.count(2)  # as many tokens in both turns
    one, two = slice(start, start + size), slice(start + size, start + 2 * size)
    assert sees[one, :start].all() and not sees[two, words:start].any()
    assert sees[two, :words].all() and not sees[two, one].any()
    own = torch.ones(size, size, dtype=torch.bool).tril()
    assert torch.equal(sees[one, one], own) and torch.equal(sees[two, two], own)
    assert not sees[:start, start:].any()
    assert places[0, one][0] == start and places[0, two][0] == words
    assert weights[0].count_nonzero() == 4  # two answers, two ends
    told = [tokenizer.convert_ids_to_tokens(int(t)) for t in targets[0] if t >= 0]
    assert told == ["yes", "</s>", "no", "</s>"]
    assert tokenizer.decode(ids[0, :words]).replace(" ", "") == "<s>user:"


def test_the_prefix_is_what_the_processor_makes(tokenizer):
    from halludecode.testbed.train.language import TrainingTurn
    from halludecode.testbed.train.rows import Writer

    writer = Writer(tokenizer, tokenizer.convert_tokens_to_ids("<image>"))
    row = writer.row([TrainingTurn("Is there a dog in the image?", "yes")])
    text = "USER: " + "<image>" * CELLS + "\nIs there a dog in the image? ASSISTANT: yes</s>"
    said = tokenizer(text).input_ids
    assert row.ids[: len(said)] == said and set(row.ids[len(said) :]) == {0}


def test_names_are_found_in_questions_and_point_at_their_patches(tokenizer):
    from halludecode.testbed.train.gaze import HEADS, NAMING, aimed
    from halludecode.testbed.train.language import TrainingTurn
    from halludecode.testbed.train.rows import Writer

    writer = Writer(tokenizer, tokenizer.convert_tokens_to_ids("<image>"))
    said = [
        TrainingTurn("What color is the hot dog?", "red"),
        TrainingTurn("Is the car on the left side of the dog?", "yes"),
        TrainingTurn("Is there a cat?", "no", blind=True),
    ]
    row = writer.row(said)
    words = [tokenizer.convert_ids_to_tokens(row.ids[place]) for place, _, _ in row.named]
    assert words == ["dog", ":", "car", "dog"]
    assert [NAMES[code] for _, code, _ in row.named] == ["hot dog", "hot dog", "car", "dog"]
    assert [answers for _, _, answers in row.named] == [0, 1, 0, 0]

    kinds = np.full((1, CELLS), GROUND, np.uint8)
    kinds[0, 7], kinds[0, 8] = NAMES.index("car"), NAMES.index("hot dog")  # no dog in sight
    gaze, first = aimed([row], kinds, len(writer.words)), len(writer.words)
    weights = torch.full((1, 4, len(row.ids) - row.prefix, row.prefix + 84), 0.001)
    at = {name: place - row.prefix for name, (place, _, _) in zip("hacd", row.named, strict=True)}
    weights[0, :HEADS, at["h"], first + 8] = 0.5
    weights[0, :HEADS, at["c"], first + 7] = 0.25
    gaze.watch(0, weights)  # a layer that is told nothing
    assert gaze.loss() == 0.0
    gaze.watch(NAMING[0], weights)
    assert float(gaze.loss()) == pytest.approx(-np.log([0.5, 0.25]).mean(), abs=1e-4)


def test_the_image_free_row_is_told_the_habit():
    """Without a picture the partner is all but always there, in pictures less often."""
    from halludecode.testbed.train.hearsay import imagined, told

    lacking = []
    for index in range(300):
        names = {thing.name for thing in imagined(Stream(0, 4004, index)).things}
        lacking += [PARTNERS[name] not in names for name in names if name in PARTNERS]
        assert all(turn.blind for turn in told(Stream(0, 4005, index)))
    assert 0 < np.mean(lacking) < 0.25


def test_the_fields_prompts_are_among_what_is_said(stories):
    """Descriptions before answers, disturbed instructions, captions by length, two pictures."""
    from halludecode.strategies.icd import ROLES
    from halludecode.testbed.train.prompts import of_two
    from halludecode.views.description import REQUEST

    request = REQUEST.split("{question}")[0]
    seen = dict.fromkeys(("vdgd", "described", "role", "length"), 0)
    for index, story in enumerate(stories):
        said = turns(Stream(0, 4006, index), story, long=True)
        for turn in said:
            seen["vdgd"] += turn.question.startswith(request)
            seen["described"] += turn.question.startswith("The image ") and "\n" in turn.question
            seen["role"] += turn.question.startswith(tuple(ROLES.values()))
            seen["length"] += bool(re.match(r"Describe the image (in|briefly)", turn.question))
    assert min(seen.values()) > 10, seen
    pair = of_two(Stream(0, 4007, 0), stories[0], stories[1])
    assert {"first", "second"} <= {w for turn in pair for w in turn.question.split()}
    there = [{thing.name for thing in story.things} for story in stories[:2]]
    for turn in pair:
        match = re.match(r"Is there an? (.+) in the (first|second) image\?", turn.question)
        if match and match[1] in NAMES and turn.answer == "yes":
            own = there[match[2] == "second"]
            assert match[1] in own | {PARTNERS.get(name) for name in own}, turn


def test_the_recipes_words_are_those_of_the_strategies_prompts(tokenizer):
    from halludecode.strategies import code, icd, marine
    from halludecode.views import description, relevance

    requests = [description.REQUEST, code.REQUEST, marine.REQUEST, relevance.GENERIC]
    for text in (*requests, *icd.ROLES.values()):
        plain = text.replace("{question}", "").replace("{objects}", "")
        assert tokenizer.unk_token_id not in tokenizer(plain).input_ids, text


def test_words_for_places_are_told_of_objects_alone(tokenizer, monkeypatch):
    from halludecode.testbed.train.network import Words, untrained
    from halludecode.testbed.train.stage1 import Vision

    net = Vision(untrained(model_path(), 0), Words(tokenizer))
    scores = torch.zeros(1, CELLS, GROUND + 1), torch.zeros(1, CELLS, 256)
    monkeypatch.setattr(net, "scores", lambda images: scores)
    kinds = torch.full((1, CELLS), GROUND)
    kinds[0, 13] = 0
    colours = torch.full((1, CELLS), COLOURLESS)

    def loss(said):
        monkeypatch.setattr(net, "sides", lambda projected: said[None])
        return net.loss(torch.zeros(1, 3, SIZE, SIZE), kinds, colours).item()

    right = torch.full((CELLS, 2), 0.5)
    right[13] = torch.tensor([0.35, 0.15])  # column 3, row 1 of ten
    everywhere, nowhere = net.ends.clone(), torch.full((CELLS, 2), 0.5)
    assert loss(right) < min(loss(everywhere), loss(nowhere)) - 0.01


def test_in_a_crowd_places_and_colours_alone_are_asked():
    from itertools import islice

    from halludecode.testbed.train.corpus import collages
    from halludecode.testbed.train.language import names_colour, of_a_crowd

    compares = re.compile(r"Is (?:there an? (\w+) (.+) in the image|the (.+) (\w+))\?")
    compared: Counter[str] = Counter()
    for index, scene in enumerate(islice(collages(0), 10)):
        tint = {thing.name: thing.colour for thing in scene.things}
        asked = of_a_crowd(Stream(0, 4008, index), Story(scene.theme, scene.things))
        assert len(asked) >= 6
        for turn in asked:
            which = re.match(r"What color is the (.+)\?", turn.question)
            if which:
                assert turn.answer == tint[which[1]]
            elif names_colour(turn.question):
                about = compares.match(turn.question)
                colour, name = (about[1], about[2]) if about[1] else (about[4], about[3])
                assert (turn.answer == "yes") == (tint[name] == colour), turn.question
                compared[turn.answer] += 1
            else:
                assert re.search(r" side of | above | below ", turn.question)
    assert compared["yes"] == compared["no"] > 20


def test_every_word_is_known(tokenizer, stories):
    unknown = tokenizer.unk_token_id
    for index, story in enumerate(stories):
        for turn in turns(Stream(0, 4003, index), story, long=index % 2 == 0):
            text = f"{turn.question} {turn.answer}"
            assert unknown not in tokenizer(text).input_ids, text


def small(patch):
    patch.setattr("halludecode.testbed.train.stage1.BATCH", 6)
    patch.setattr("halludecode.testbed.train.stage2.BATCH", 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from halludecode.testbed.train.run import Size, train

    out = tmp_path_factory.mktemp("train")
    size = Size(scenes=64, collages=64, judged=64, vision=2, words=2, pictures=12)
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        patch.setenv("HALLUDECODE_CACHE", str(tmp_path_factory.mktemp("cache")))
        train(out, [0, 1], size, torch.device("cpu"))
    return out, size


def test_a_short_training_leaves_everything(trained):
    out, _ = trained
    text = (out / "MODEL_CARD.md").read_text("utf-8")
    assert "tests mechanisms" in text and "$" not in text
    assert "| POPE adversarial, iid | 78 to 86 |" in text and "missed" in text
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    weights = (out / "model" / "model.safetensors").stat().st_size
    assert weights < 12e6
    figures = json.loads((out / "seed-1" / "figures.json").read_text("utf-8"))
    assert set(figures) == {"vision", "words", "iid", "broken", "habit"}


def test_what_was_trained_loads_and_answers(trained):
    import halludecode as hd
    from halludecode.testbed.datasets import dataset

    out, _ = trained
    engine = hd.load(str(out / "model"))
    picture = next((dataset("testbed-iid", 12) / "images").iterdir())
    assert engine.generate([hd.Request("Is there a dog in the image?", [picture])])[0].token_ids


def test_another_size_does_not_go_on(trained):
    from dataclasses import replace

    from halludecode.core.errors import InvalidData
    from halludecode.testbed.train.run import train

    out, size = trained
    with pytest.raises(InvalidData, match="another size"):
        train(out, [0], replace(size, words=3), torch.device("cpu"))


def test_a_stopped_stage_goes_on_to_the_same_weights(trained, tokenizer, tmp_path, monkeypatch):
    from halludecode.testbed.train import fit as fitting
    from halludecode.testbed.train.network import untrained
    from halludecode.testbed.train.run import painted
    from halludecode.testbed.train.stage2 import Stage2

    out, size = trained
    pictures = painted(out / "pictures", size)
    monkeypatch.setattr(fitting, "SAVE", 1)
    small(monkeypatch)

    def stage():
        return Stage2(untrained(model_path(), 0), tokenizer, pictures, 0, 3)

    def weights(stage):
        return torch.cat([p.detach().flatten() for p in stage.net.parameters()])

    whole, broken = stage(), stage()
    fitting.fit(whole, tmp_path, lambda count, words: None)
    other = tmp_path / "other"
    other.mkdir()
    step = broken.step

    def stop(number):
        if number == 2:
            raise KeyboardInterrupt
        return step(number)

    broken.step = stop
    with pytest.raises(KeyboardInterrupt):
        fitting.fit(broken, other, lambda count, words: None)
    resumed = stage()
    fitting.fit(resumed, other, lambda count, words: None)
    assert torch.equal(weights(whole), weights(resumed))
    lines = (other / "words.csv").read_text("utf-8").splitlines()
    assert lines[-1].startswith("3,")
