"""VLind-Bench: the official pipeline of four tests, its release, its reading and its words."""

from __future__ import annotations

import json

import pytest

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.fixed_answers import fixed_answers
from halludecode.evals.benchmarks.vlind import VLindBench
from halludecode.evals.data.samples import Sample
from halludecode.evals.load import load_units
from tests.support import eval_world as world
from tests.support.answered import OFFICIAL, lines_of, samples_of

DATA = OFFICIAL["vlind"]["data"]
STAGE = {"CK": "a{}_image", "VP": "b{}", "CB": "c{}_image", "LP": "d{}"}
OURS = {"non-existent_noun": "absent_noun", "aggregated_human_label_good_images": "votes"}


def rows():
    return [{OURS.get(k, k): v for k, v in x.items() if not k.startswith("m_pred")} for x in DATA]


def answer(sample):
    """What the made-up model said, as the release keeps it."""
    instance = next(x for x in DATA if sample.group == f"{x['concept']} {x['context_id']}")
    key = STAGE[sample.facts["stage"]].format(1 if sample.label == "True" else 2)
    said = instance[f"m_pred_{key}"]
    if sample.facts["stage"] == "LP":
        said = said[sample.image.rpartition("/")[2].removesuffix(".jpg")]
    return said["answer"]


@pytest.mark.parametrize("style", ["all", "photorealistic", "cartoon"])
def test_scores_equal_the_official_scripts(style):
    made = VLindBench(style=style)
    samples = samples_of(made, rows())
    wanted = dict(OFFICIAL["vlind"]["scores"][style])
    assert len({s.group for s in samples}) == wanted.pop("instances")
    metrics = made.score(lines_of(made, samples, answer)).metrics
    assert metrics == pytest.approx(wanted)


def test_one_word_for_all_passes_no_test():
    lines = lines_of(VLindBench(), samples_of(VLindBench(), rows()), lambda s: str(s.label))
    assert set(VLindBench().score(lines).metrics.values()) == {1}
    for block in fixed_answers(VLindBench(), lines).values():
        assert set(block.values()) == {0}


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("True.", "True"),
        ("The statement is false, not true.", "False"),
        ("TRUE\nbecause", "True"),
        ("It is untrue", "other"),
        ("**True**", "other"),
        ("Yes", "other"),
    ],
)
def test_the_first_of_both_words_counts(text, parsed):
    assert VLindBench().judge(Sample(1, "?", None, "True"), text)["parsed"] == parsed


def test_the_release_is_found_and_asked(tmp_path):
    instance = {k: v for k, v in DATA[0].items() if not k.startswith("m_pred")}
    instance |= {"concept": "food", "aggregated_human_label_good_images": {"3": 2, "5": 1, "7": 3}}
    instance["best_img_id"] = "7"
    (tmp_path / "vlind").mkdir()
    (tmp_path / "vlind" / "data.json").write_text(json.dumps([instance]))
    place = tmp_path / "vlind" / "images"
    world.picture(place / "factual" / "food" / "0_fact 0" / "0.jpg", 1)
    for n in (3, 7):
        world.picture(place / "counterfactual" / "food" / "0_context 0" / f"{n}.jpg", n)
    (unit,) = load_units([tmp_path], world.select("vlind"))
    assert [s.id for s in unit.samples] == [
        f"food 0 {test} {word}"
        for test in ("CK", "VP", "CB", "LP 3", "LP 7")
        for word in ("True", "False")
    ]
    prompts = [s.prompt for s in unit.samples]
    assert prompts[0] == (  # the fact holds, which the statement about the picture denies
        "Statement: false 0\nBased on the common sense, is the given statement true or false? "
        "Only respond in True or False."
    )
    assert prompts[2].startswith("Statement: There is thing 0 in the given image.\nBased on the im")
    assert prompts[4] == (
        "Context: context 0\nStatement: true 0\nBased on the context, is the given statement true "
        "or false? Forget real-world common sense and just follow the information provided in the "
        "context. Only respond in True or False."
    )
    assert unit.samples[2].picture.name.endswith("0_context 0/7.jpg")
    instance["aggregated_human_label_good_images"] = ["3"]
    (tmp_path / "vlind" / "data.json").write_text(json.dumps([instance]))
    with pytest.raises(InvalidData, match=r"data\.json:1: the votes on pictures are no map"):
        load_units([tmp_path], world.select("vlind"))


@pytest.mark.parametrize("inside", ["", "VLind-Bench Dataset"])
@pytest.mark.parametrize("commit", [None, "d" * 40])
def test_the_hubs_files_are_read_at_the_commit_that_is_named(tmp_path, monkeypatch, inside, commit):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    folder = tmp_path / ("c" * 40)
    instance = {k: v for k, v in DATA[0].items() if not k.startswith("m_pred")}
    instance |= {"concept": "food", "aggregated_human_label_good_images": {"3": 3}}
    instance["best_img_id"] = "3"
    (folder / inside).mkdir(parents=True)
    (folder / inside / "data.json").write_text(json.dumps([instance]))
    for n, place in enumerate(
        ("factual/food/0_fact 0/0.jpg", "counterfactual/food/0_context 0/3.jpg")
    ):
        world.picture(folder / inside / "images" / place, n)
    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **options: asked.append((name, options["revision"])) or str(folder),
    )
    name = VLindBench.hub
    (unit,) = load_units([f"{name}@{commit}" if commit else name], world.select("vlind"))
    assert asked == [(name, commit)]
    assert (unit.data, unit.revision, len(unit.samples)) == (name, "c" * 40, 8)
