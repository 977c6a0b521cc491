import dataclasses
import io

import pytest
from PIL import Image

from halludecode.core.errors import InvalidData, InvalidParameter, InvalidRequest
from halludecode.evals.benchmarks.pope import POPE
from halludecode.evals.benchmarks.registry import BENCHMARKS
from halludecode.evals.data.samples import EvalImage, EvalUnit, Sample
from halludecode.evals.load import load_units
from halludecode.evals.presets import PRESETS, Preset, preset_for
from tests.support import eval_world as world

TASKS = ("pope", "chair", "mme")


def select(tasks=TASKS, **more):
    return world.select(*tasks, **more)


def by_key(units):
    return {unit.key: unit for unit in units}


# Prompts


@pytest.mark.parametrize(
    ("name", "task", "question", "prompt"),
    [
        ("llava-1.5", "pope", "Q?", "Q?\nAnswer the question using a single word or phrase."),
        ("vcd", "pope", "Q?", "Q? Please answer this question with one word."),
        ("opera", "pope", "Q?", "Q?"),
        ("opera", "chair", "", "Please describe this image in detail."),
        ("pai", "chair", "", "Please help me describe the image in detail."),
        ("opera", "mme", "Q?  Please answer yes or no.", "Q?  Please answer yes or no."),
        (
            "llava-1.5",
            "mme",
            "Q?  Please answer yes or no.",
            "Q?\nAnswer the question using a single word or phrase.",
        ),
    ],
)
def test_presets_word_the_prompt_as_published(name, task, question, prompt):
    assert PRESETS[name].prompt(BENCHMARKS.get(task).wording, question) == prompt


def test_default_preset_follows_the_model():
    assert preset_for(None, "testbed", ["pope"])[0] == "testbed"
    assert preset_for(None, "llava-hf/llava-1.5-7b-hf", ["pope"])[0] == "llava-1.5"
    testbed = preset_for(None, "testbed", TASKS)[1]
    assert testbed.prompt("question", "Q?") == "Q? Please answer yes or no."


def test_unknown_preset_is_named_with_the_known_ones():
    with pytest.raises(InvalidParameter, match=r"'nope'; known: llava-1\.5, vcd"):
        preset_for("nope", "m", ["pope"])


def test_a_preset_without_a_prompt_for_the_task_does_not_fall_back():
    with pytest.raises(InvalidParameter, match="'damro' has no pope prompt, only chair"):
        preset_for("damro", "m", ["pope"])


def test_template_shows_where_the_question_goes():
    assert (
        PRESETS["vcd"].template("question")
        == "{question} Please answer this question with one word."
    )
    assert PRESETS["opera"].template("caption") == "Please describe this image in detail."
    assert "without" in PRESETS["llava-1.5"].template("instructed")


def test_token_limits():
    pope, chair, amber = (BENCHMARKS.get(name)() for name in ("pope", "chair", "amber"))
    opera = PRESETS["opera"]
    assert (pope.tokens("pope", opera), chair.tokens("chair", opera)) == (10, 512)
    assert chair.tokens("chair", Preset("x", max_new_tokens={"caption": 64})) == 64
    # AMBER is asked in POPE's words, but no protocol of POPE says how long its answers are.
    assert [amber.tokens(kind, opera) for kind in amber.kinds()] == [16, 512]


# Pictures and samples


def test_undecodable_picture_names_its_file(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"not a picture")
    made = EvalImage.from_file(path, "broken.png")
    with pytest.raises(InvalidRequest, match=r"broken\.png: the picture cannot be decoded"):
        made.load()


def test_truncated_picture_is_a_failed_request(tmp_path):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "PNG")
    path = tmp_path / "half.png"
    path.write_bytes(buffer.getvalue()[:900])
    with pytest.raises(InvalidRequest, match=r"half\.png"):
        EvalImage.from_file(path, "half.png").load()


def test_sample_digest_depends_on_data_and_not_on_the_prompt(tmp_path):
    world.picture(tmp_path / "a.png", 1)
    world.picture(tmp_path / "b.png", 2)
    one, other = (EvalImage.from_file(tmp_path / n, n) for n in ("a.png", "b.png"))
    sample = Sample(1, "Q?", "a.png", label="yes", prompt="Q? suffix", picture=one)
    assert dataclasses.replace(sample, prompt="Q?").digest == sample.digest
    for change in ({"picture": other}, {"label": "no"}, {"question": "R?"}, {"id": 2}):
        assert dataclasses.replace(sample, **change).digest != sample.digest
    first = EvalUnit(POPE(), "d", "random", (sample,))
    assert first.digest != EvalUnit(POPE(), "d", "random", (sample, sample)).digest


# Folders


def test_folder_serves_every_task(tmp_path):
    units = by_key(load_units([world.folder(tmp_path / "set")], select()))
    assert list(units) == [
        ("pope", "set", "random"),
        ("pope", "set", "adversarial"),
        ("chair", "set", None),
        ("mme", "set", None),
    ]
    captions = units["chair", "set", None].samples
    assert captions[0].objects == ("cat", "dog")
    assert captions[0].id == 10
    assert [s.id for s in units["mme", "set", None].samples[:4]] == [
        "existence/pic_0.png#1",
        "existence/pic_0.png#2",
        "color/pic_0.png#1",
        "color/pic_0.png#2",
    ]


def test_limit_counts_pictures_and_takes_mme_subtasks_in_turn(tmp_path):
    units = by_key(load_units([world.folder(tmp_path / "set")], select(limit=2)))
    assert len(units["pope", "set", "random"].samples) == 4  # two questions a picture here
    assert len(units["chair", "set", None].samples) == 2
    subtasks = {s.id.split("/")[0] for s in units["mme", "set", None].samples}
    assert (subtasks, len(units["mme", "set", None].samples)) == ({"existence", "color"}, 4)


def test_larger_limit_extends_the_smaller(tmp_path):
    source = world.folder(tmp_path / "set")
    few, many = (by_key(load_units([source], select(limit=n))) for n in (1, 3))
    for key, unit in few.items():
        ids = [s.id for s in many[key].samples]
        assert ids[: len(unit.samples)] == [s.id for s in unit.samples]


def test_missing_picture_names_file_and_line(tmp_path):
    source = world.folder(tmp_path / "set")
    (source / "images" / "pic_1.png").unlink()
    with pytest.raises(InvalidData, match=r"random\.jsonl:3: picture .*pic_1\.png does not exist"):
        load_units([source], select(["pope"]))
    with pytest.raises(InvalidData, match=r"instances\.json: image 11: picture .*pic_1\.png"):
        load_units([source], select(["chair"]))


def test_missing_mme_picture_names_its_line(tmp_path):
    source = world.folder(tmp_path / "set")
    (source / "mme" / "color" / "pic_2.png").unlink()
    with pytest.raises(InvalidData, match=r"color\.txt:5: picture .*color/pic_2\.png"):
        load_units([source], select(["mme"]))


def test_duplicate_question_id_names_both_lines(tmp_path):
    source = world.folder(tmp_path / "set")
    path = source / "pope" / "random.jsonl"
    asked = world.lines(path)
    asked[2]["question_id"] = 1
    world.write_lines(path, asked)
    with pytest.raises(InvalidData, match=r"random\.jsonl:3: .*1 was already used on line 1"):
        load_units([source], select(["pope"]))


def test_duplicate_image_id_is_refused(tmp_path):
    source = world.folder(tmp_path / "set")
    path = source / "annotations" / "instances.json"
    path.write_text(path.read_text().replace('"id": 11, "file_name"', '"id": 10, "file_name"'))
    with pytest.raises(InvalidData, match=r"instances\.json.*10"):
        load_units([source], select(["chair"]))


def test_task_without_files_says_what_it_needs(tmp_path):
    world.picture(tmp_path / "set" / "images" / "a.png", 0)
    with pytest.raises(InvalidData, match=r"No questions for pope in .*set; it needs pope/"):
        load_units([tmp_path / "set"], select(["pope"]))


def test_unknown_source_is_not_mistaken_for_a_hub_id(tmp_path):
    for source in ("nowhere", str(tmp_path / "gone"), "testbed-odd"):
        with pytest.raises(InvalidData, match="testbed-iid"):
            load_units([source], select(["pope"]))


def test_what_is_missing_is_said_before_anything_is_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("halludecode.evals.load._from_source", lambda *args: read.append(args))
    gone, here = tmp_path / "gone", tmp_path
    for sources, images, annotations in (
        (["testbed-iid"], gone, None),
        (["testbed-iid", gone], None, None),
        (["testbed-iid"], here, gone),
    ):
        with pytest.raises(InvalidData, match=f"{gone}.* (no such folder|does not exist)"):
            load_units(sources, select(["pope"]), images, annotations)
    assert read == []


def test_pictures_given_with_the_testbed_are_the_ones_asked_about(tmp_path):
    """As with any other data folder, and not left unused."""
    from halludecode.testbed import dataset

    select_two = dataclasses.replace(select(["pope(split=random)"], limit=2), testbed_images=2)
    own = sorted((dataset("testbed-iid", 2) / "images").iterdir())
    for number, path in enumerate(own):
        world.picture(tmp_path / path.name, number)
    (unit,) = load_units(["testbed-iid"], select_two, tmp_path)
    (plain,) = load_units(["testbed-iid"], select_two)
    assert [s.prompt for s in unit.samples] == [s.prompt for s in plain.samples]
    digests = {s.picture.digest for s in unit.samples}
    assert len(digests) == 2 and not digests & {s.picture.digest for s in plain.samples}


def test_two_sources_of_one_name_are_refused(tmp_path):
    first, second = (world.folder(tmp_path / n / "set") for n in ("a", "b"))
    with pytest.raises(InvalidData, match="both named 'set'"):
        load_units([first, second], select(["pope"]))


def test_pope_split_choice(tmp_path):
    source = world.folder(tmp_path / "set")
    units = load_units([source], select(["pope(split=adversarial)"]))
    assert [u.split for u in units] == ["adversarial"]
    with pytest.raises(InvalidData, match="no popular split; found random, adversarial"):
        load_units([source], select(["pope(split=popular)"]))


# Files


def test_images_with_a_question_file(tmp_path):
    source = world.folder(tmp_path / "set")
    units = load_units([], select(["pope"]), source / "images", source / "pope" / "random.jsonl")
    assert [u.key for u in units] == [("pope", "images", "random")]


def test_images_with_coco_files_take_the_pictures_that_are_there(tmp_path):
    source = world.folder(tmp_path / "set")
    (source / "images" / "pic_0.png").unlink()
    instances = source / "annotations" / "instances.json"
    (unit,) = load_units([], select(["chair"]), source / "images", instances)
    assert [s.id for s in unit.samples] == [11, 12, 13]


def test_annotations_for_another_task_are_named(tmp_path):
    source = world.folder(tmp_path / "set")
    with pytest.raises(
        InvalidData, match="holds chair annotations, and the tasks asked for are pope"
    ):
        load_units(
            [], select(["pope"]), source / "images", source / "annotations" / "instances.json"
        )


def test_annotations_need_their_pictures(tmp_path):
    source = world.folder(tmp_path / "set")
    with pytest.raises(InvalidData, match="add --images DIR"):
        load_units([], select(["pope"]), None, source / "pope" / "random.jsonl")


def test_coco_picture_names_give_the_source_its_name(tmp_path):
    name = "COCO_val2014_000000000042.jpg"
    world.picture(tmp_path / "val" / name, 1)
    question = {"question_id": 1, "image": name, "text": "Is there a dog?", "label": "no"}
    world.write_lines(tmp_path / "q.jsonl", [question])
    (unit,) = load_units([], select(["pope"]), tmp_path / "val", tmp_path / "q.jsonl")
    assert (unit.data, unit.split) == ("coco", "q")
