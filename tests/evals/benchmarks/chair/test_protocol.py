"""CHAIR's protocol: mixed families, unfinished sentences, presets, image ids, and odd captions."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.evals.benchmarks.chair import CHAIR
from halludecode.evals.benchmarks.chair import object_words as words
from halludecode.evals.benchmarks.chair import scoring as chair
from halludecode.evals.benchmarks.chair.image_ids import LISTS, load_ids
from halludecode.evals.load import load_units
from halludecode.evals.presets import PRESETS
from halludecode.evals.results.build import score_lines
from halludecode.evals.runner.run import run_eval
from tests.support import eval_world as world
from tests.support.published import published_captions, use_nltk_data
from tests.support.published import truth as published_truth

# ---------------------------------------------------------------- odd captions

# Read by hand along the script: tokens, pairs of words, toilet seats, vocabulary.
ODD = [
    ("It is hot. Dog runs.", ["dog"]),  # a sentence end stands between the words
    ("A hot\ndog.", ["hot dog"]),  # a line end does not
    ("A hot, dog.", ["dog"]),
    ("Toilet seat, seat.", ["toilet"]),
    ("A SEAT. The Toilet.", ["toilet"]),  # anywhere in the caption, and in either order
    ("Two toilet seats.", ["toilet"]),
    ("A seat and a sofa.", ["chair", "couch"]),
    ("\u201ccat\u201d and \u2018dog\u2019", ["cat", "dog"]),
    ('"cats", (dogs) [birds]!', ["cat", "dog", "bird"]),
    ("cat/dog and cat-dog", []),
    ("cats & dogs", ["cat", "dog"]),
    ("The cat's bowl, the dogs' bed.", ["cat", "bowl", "dog", "bed"]),
    ("Teddy bears; train tracks.", ["teddy bear"]),
    ("A passenger train track.", ["train"]),  # what a pair becomes is not looked at again
    ("A hot dog dog.", ["hot dog", "dog"]),
    ("An adult baby dog.", ["person", "dog"]),  # the later pair: no pair begins with "adult baby"
    ("A baby. Elephant.", ["person", "elephant"]),
    ("DOG DOG dog", ["dog", "dog", "dog"]),
    ("", []),
    (" . ", []),
    ("...", []),
    ("\u0130 cat", ["cat"]),
]


@pytest.mark.parametrize(("family", "path"), [("pattern", "tables"), ("wordnet", "tables")])
@pytest.mark.parametrize(("caption", "objects"), ODD, ids=lambda value: str(value)[:24] or "empty")
def test_odd_captions(family, path, caption, objects):
    assert words.reader(family, path).read(caption).objects == objects


@pytest.mark.parametrize(("caption", "objects"), ODD, ids=lambda value: str(value)[:24] or "empty")
def test_odd_captions_with_nltk(caption, objects):
    use_nltk_data()
    assert words.reader("wordnet", "nltk").read(caption).objects == objects


# ---------------------------------------------------------------- word families


def test_a_mixture_names_both_families():
    assert chair.families_of() == ("wordnet", "wordnet")
    assert chair.families_of("pattern") == ("pattern", "pattern")
    assert chair.families_of("wordnet", "pattern") == ("wordnet", "pattern")
    assert chair.families_of("opera_published") == ("wordnet", "pattern")
    assert chair.families_of("opera_published", "pattern") == ("wordnet", "pattern")
    with pytest.raises(InvalidData, match="has ground truth of family 'pattern', not 'wordnet'"):
        chair.families_of("opera_published", "wordnet")
    with pytest.raises(InvalidData, match=r"'opera' is unknown; the known ones are .*, opera_publ"):
        chair.families_of("opera")
    with pytest.raises(
        InvalidData, match="'spacy' is unknown; the known ones are wordnet, pattern"
    ):
        chair.families_of("wordnet", "spacy")


def test_operas_table_comes_of_its_mixture():
    use_nltk_data()
    score = chair.score(
        published_captions("llava-1.5_greedy"), published_truth("pattern"), family="opera_published"
    )
    shown = [round(100 * score.metrics[name], 2) for name in ("chair_s", "chair_i", "recall")]
    assert shown == [45.0, 12.73, 80.38]
    assert (score.notes["family"], score.notes["gt_family"]) == ("wordnet", "pattern")


def test_an_unknown_picture_is_named_with_its_line(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"image_id": 1, "caption": "A cat."}\n{"image_id": 5, "caption": "A dog."}\n')
    with pytest.raises(
        InvalidData, match=r"c\.jsonl:2: image_id 5 is not in the annotations \(1 o"
    ):
        chair.score(chair.load_captions(path), {1: frozenset()}, path="tables")


# ---------------------------------------------------------------- unfinished sentences


class Captioner(world.FakeEngine):
    """Every caption breaks off after naming a bus that is not there."""

    def _one(self, request, strategy, scored):
        output = super()._one(request, strategy, scored)
        text = "A dog and a cat. There is a bus on the"
        choice = dataclasses.replace(output.choices[0], text=text, finish_reason="length")
        return dataclasses.replace(output, choices=(choice,))


def captioned(tmp_path, name, **more):
    source = tmp_path / "set"
    if not source.exists():
        world.folder(source)
    options = {"tasks": ["chair"], "strategies": ["greedy"], "data": [source], "progress": False}
    folder = tmp_path / name
    return run_eval(Captioner(), output=folder, **{"prompt_preset": "opera", **options, **more})


def entry(report):
    (found,) = report.results["runs"]
    return found


def test_a_protocol_is_prompt_tokens_and_last_sentence():
    def recipe(name):
        preset = PRESETS[name]
        tokens = CHAIR().tokens("chair", preset)
        return (preset.prompt("caption", ""), tokens, preset.incomplete)

    prompt = "Please describe this image in detail."
    assert recipe("opera") == recipe("opera-512") == (prompt, 512, "keep")
    assert recipe("opera-64") == (prompt, 64, "drop")
    assert recipe("ritual") == (prompt, 64, "keep")
    assert {p.incomplete for p in PRESETS.values()} == set(chair.INCOMPLETE)


def test_a_run_drops_the_unfinished_sentence_where_its_protocol_does(tmp_path):
    kept = captioned(tmp_path, "kept", prompt_preset="opera-512")
    dropped = captioned(tmp_path, "dropped", prompt_preset="opera-64")
    assert entry(kept)["metrics"]["length"]["value"] == 12
    assert entry(dropped)["metrics"]["length"]["value"] == 6
    assert entry(kept)["cut"] == entry(dropped)["cut"] == 4
    assert kept.run["chair"]["incomplete"] == "keep"
    assert dropped.run["chair"]["incomplete"] == "drop"
    assert dropped.run["sampling"]["chair"]["max_new_tokens"] == 64
    for line in world.lines(tmp_path / "dropped" / "samples.jsonl"):
        assert line["answer"].endswith("on the")  # what the model said stays
        assert line["parsed"]["generated"] == ["dog", "cat"]
        assert line["parsed"]["words"] == ["a", "dog", "and", "a", "cat", "."]


def test_the_option_goes_before_the_protocol(tmp_path):
    report = captioned(tmp_path, "run", prompt_preset="opera-64", incomplete="keep")
    assert report.run["chair"]["incomplete"] == "keep"
    assert entry(report)["metrics"]["length"]["value"] == 12
    with pytest.raises(InvalidData, match="must be keep or drop"):
        captioned(tmp_path, "other", incomplete="cut")


def test_the_last_sentence_is_part_of_the_recipe(tmp_path):
    captioned(tmp_path, "run", prompt_preset="opera")
    with pytest.raises(InvalidData, match=r"holds a run with chair\.incomplete 'keep', not 'drop'"):
        captioned(tmp_path, "run", prompt_preset="opera", incomplete="drop")


def test_what_was_hallucinated_is_kept_word_by_word(tmp_path):
    captioned(tmp_path, "run")
    line = world.lines(tmp_path / "run" / "samples.jsonl")[0]
    present = line["objects"]
    wanted = [[name, name] for name in ("dog", "cat", "bus") if name not in present]
    assert line["parsed"]["hallucinated_words"] == wanted
    assert line["parsed"]["words"][-3:] == ["bus", "on", "the"]


def test_the_unfinished_sentence_goes_before_a_cut_at_equal_length():
    line = {"id": 1, "answer": "A dog runs far. A cat on", "objects": ["dog"]}
    families = {"family": "pattern", "gt_family": "pattern", "path": "tables", "incomplete": "drop"}
    lengths = {
        words: score_lines("chair", {1: line}, families, words).metrics["length"]
        for words in (None, 2, 6)
    }
    # Without the cat; cut after two words; and at most what is left.
    assert lengths == {None: 5.0, 2: 2.0, 6: 5.0}
    assert score_lines("chair", {1: line}, families).notes["incomplete"] == "drop"
    older = {name: value for name, value in families.items() if name != "incomplete"}
    assert score_lines("chair", {1: line}, older).metrics["length"] == 8.0


# ---------------------------------------------------------------- image ids


def test_the_shipped_list_is_the_one_published_captions_are_of():
    ids = load_ids("chair500")
    assert len(ids) == len(set(ids)) == 500
    assert set(ids) <= set(chair.load_truth())
    for name in ("llava-1.5_greedy", "llava-1.5_opera", "shikra_greedy"):
        assert ids == tuple(caption.image_id for caption in published_captions(name))


def test_the_readme_of_the_data_names_the_list():
    text = (words.DATA / "README.md").read_text()
    assert all(path.name in text for path in LISTS.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"ids\.txt holds no image ids"),
        ("# only words\n", r"ids\.txt holds no image ids"),
        ("12\n\nx7\n", r"ids\.txt:3: 'x7' is no image id"),
        ("12\n-7\n", r"ids\.txt:2: '-7' is no image id"),
        ("12\n13\n12\n", r"ids\.txt:3: image id 12 is already on line 1"),
    ],
)
def test_bad_lists_are_named(tmp_path, text, message):
    path = tmp_path / "ids.txt"
    path.write_text(text)
    with pytest.raises(InvalidData, match=message):
        load_ids(path)


def test_unknown_lists_name_the_shipped_ones():
    with pytest.raises(
        InvalidData, match="'coco500': no such file, and the shipped lists are chair"
    ):
        load_ids("coco500")


def chosen(tmp_path, ids, **more):
    source = world.folder(tmp_path / "set")
    selection = world.select(CHAIR(image_ids=ids), **more)
    instances = source / "annotations" / "instances.json"
    return load_units([], selection, source / "images", instances)


def test_a_list_chooses_the_pictures_and_their_order(tmp_path):
    (unit,) = chosen(tmp_path, (13, 10, 12))
    assert [sample.id for sample in unit.samples] == [13, 10, 12]
    shutil.rmtree(tmp_path / "set")
    (unit,) = chosen(tmp_path, (13, 10, 12), limit=2)
    assert [sample.id for sample in unit.samples] == [13, 10]


def test_missing_pictures_of_a_list_are_counted(tmp_path):
    with pytest.raises(InvalidData, match=r"instances\.json .* 2 of the 3 image ids .* 99 first"):
        chosen(tmp_path, (10, 99, 98))
    (tmp_path / "set" / "images" / "pic_1.png").unlink()
    selection = world.select("chair(image_ids=(10,11))")
    instances = tmp_path / "set" / "annotations" / "instances.json"
    with pytest.raises(InvalidData, match="1 of the 2 image ids asked for are missing, 11 first"):
        load_units([], selection, tmp_path / "set" / "images", instances)


def test_a_run_over_a_list_records_it(tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("12\n10  # the first picture\n")
    report = captioned(tmp_path, "run", image_ids=ids)
    assert entry(report)["n"] == 2
    assert report.run["image_ids"] == {"chair": str(ids)}
    lines = world.lines(tmp_path / "run" / "samples.jsonl")
    assert {line["id"] for line in lines} == {10, 12}
    with pytest.raises(InvalidParameter, match="image_ids is for chair, which is not among"):
        captioned(tmp_path, "other", tasks=["pope"], image_ids=ids)


def test_sets_of_ground_truth_by_family_need_their_files(tmp_path):
    report = captioned(tmp_path, "run", family="pattern")
    assert report.run["chair"]["family"] == report.run["chair"]["gt_family"] == "pattern"
    mixed = captioned(tmp_path, "mixed", family="opera_published")
    assert mixed.run["chair"]["family"] == "wordnet"
    assert mixed.run["chair"]["gt_family"] == "pattern"


def test_published_captions_lose_their_last_sentence():
    # Cut at 48 words, as captions of 64 tokens are: spec of OPERA's short protocol.
    captions = published_captions("llava-1.5_greedy")
    shown = {}
    for incomplete in chair.INCOMPLETE:
        cut = [chair.Caption(c.image_id, " ".join(c.text.split()[:48])) for c in captions]
        score = chair.score(cut, published_truth("wordnet"), incomplete=incomplete, path="tables")
        shown[incomplete] = [100 * score.metrics[name] for name in ("chair_s", "chair_i")]
    assert shown["keep"] == pytest.approx([18.6, 5.8], abs=0.2)
    assert shown["drop"] == pytest.approx([13.2, 5.0], abs=0.2)


def test_bad_annotation_files_are_named(tmp_path):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    path = tmp_path / "instances.json"
    good = {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "dog"}]}
    for change, message in (
        ({"images": {}}, 'instances.json: not a COCO file, "images" is no list'),
        ({"images": [{"file_name": "a"}]}, r"instances.json: .*, images\[0\] lacks 'id'"),
        ({"annotations": [3]}, r"annotations\[0\] lacks 'image_id'"),
        (
            {"annotations": [{"id": 7, "image_id": 1, "category_id": 9}]},
            "annotation 7 is of category 9, which the file does not list",
        ),
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(InvalidData, match=message):
            chair.ground_truth(path)
    path.write_text("[" * 100_000)
    with pytest.raises(InvalidData, match=r"instances\.json: not JSON we can read"):
        chair.ground_truth(path)
