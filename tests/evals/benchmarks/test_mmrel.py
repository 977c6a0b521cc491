"""MMRel: pairs found by their words, the release's folder of files."""

from __future__ import annotations

import json

from halludecode.evals.benchmarks.fixed_answers import fixed_answers
from halludecode.evals.benchmarks.mmrel import MMRel
from halludecode.evals.load import load_units
from tests.support import eval_world as world
from tests.support.answered import lines_of, samples_of

END = " in the image? Please answer with one word."
ROWS = [
    {"question_id": i, "image": image, "question": text + END, "answer": answer}
    for i, image, text, answer in [
        ("b3", "1.jpg", "Is there a flower above to an elephant", "Yes"),
        ("tl", "1.jpg", "Is there an elephant above to a flower", "No"),
        ("7n", "2.jpg", "Does a man ride a horse", "Yes"),
        ("5p", "3.jpg", "Does a horse ride a man", "No"),  # another picture: no pair
        ("h4", "2.jpg", "Does a horse ride a man", "No"),
        ("q1", "3.jpg", "Does a dog eat a bone", "Yes"),  # without a partner
    ]
]


def test_pairs_are_the_same_words_about_the_same_picture():
    samples = samples_of(MMRel(), ROWS)
    pairs = [s.facts["pair"] for s in samples]
    assert pairs[0] == pairs[1] != ""
    assert pairs[2] == pairs[4] != ""
    assert pairs[3] == pairs[5] == ""


def test_a_pair_is_right_where_both_are():
    samples = samples_of(MMRel(), ROWS)
    lines = lines_of(MMRel(), samples, lambda s: "No" if s.id == "b3" else str(s.label))
    found = MMRel().score(lines).metrics
    assert (found["accuracy"], found["pair_accuracy"]) == (5 / 6, 0.5)
    controls = fixed_answers(MMRel(), lines)
    assert [block["pair_accuracy"] for block in controls.values()] == [0, 0, 0]
    assert controls["always yes"]["accuracy"] == 0.5
    few = MMRel().score([line for line in lines if line["id"] != "tl"]).metrics
    assert few["pair_accuracy"] == 1  # of the one pair that is answered whole


def test_the_releases_files_are_splits(tmp_path):
    for name in ("adversarial", "action"):
        file = tmp_path / "MMRel" / "json" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = f"Dall-E_generated/{name}/1.png"
        rows = [{"question_id": "a", "image": picture, "text": "Is it on it?", "label": "Yes"}]
        file.write_text(json.dumps(rows))
        world.picture(tmp_path / "MMRel" / picture, 1)
    other = tmp_path / "MMRel" / "json" / "Fine-tuning" / "data.json"
    other.parent.mkdir()
    other.write_text(json.dumps([{"id": 1, "conversations": []}]))
    units = load_units([tmp_path], world.select("mmrel"))
    assert [(unit.split, len(unit.samples)) for unit in units] == [
        ("action", 1),
        ("adversarial", 1),
    ]
