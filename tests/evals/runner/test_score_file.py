"""Scoring of files made elsewhere: the document it gives and the sentences it complains with."""

from __future__ import annotations

import json

import pytest

from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.evals.runner.score_file import score_predictions

QUESTIONS = [
    {"question_id": i, "image": f"{i // 2}.jpg", "text": "Is there a dog in the image?", "label": y}
    for i, y in ((1, "yes"), (2, "no"), (3, "yes"), (4, "no"))
]
SAID = {1: "Yes", 2: "No", 3: "No", 4: "Perhaps"}


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def asked(tmp_path):
    return lines(tmp_path / "questions.jsonl", QUESTIONS)


@pytest.mark.parametrize("key", ["answer", "text"])
def test_pope_document(tmp_path, asked, key):
    records = [{"question_id": i, key: said} for i, said in reversed(SAID.items())]
    made = score_predictions("pope", lines(tmp_path / "a.jsonl", records), asked)
    assert json.loads(json.dumps(made)) == made
    assert made["task"] == "pope"
    assert made["n"] == 4
    assert made["metrics"] == {
        "accuracy": {"value": 0.5},
        "precision": {"value": 0.5},
        "recall": {"value": 0.5},
        "f1": {"value": 0.5},
        "yes_ratio": {"value": 0.5},
        "unparsed": {"value": 1.0},
        "unread": {"value": 0.0},
    }
    assert made["parser"] == "official"
    assert made["unparsed"] == 1
    assert made["degenerate"] == []
    assert set(made["files"]) == {"predictions", "annotations"}


def test_pope_parser_is_passed_on(tmp_path, asked):
    records = [{"question_id": i, "answer": said} for i, said in SAID.items()]
    path = lines(tmp_path / "a.jsonl", records)
    assert score_predictions("pope", path, asked, parser="repope")["metrics"]["accuracy"] == {
        "value": 2 / 3
    }
    with pytest.raises(InvalidData, match=r"'gpt' is unknown; the known ones are official, opera"):
        score_predictions("pope", path, asked, parser="gpt")


def test_intervals_on_request(tmp_path, asked):
    path = lines(tmp_path / "a.jsonl", [{"question_id": i, "answer": s} for i, s in SAID.items()])
    made = score_predictions("pope", path, asked, resamples=200)["metrics"]
    assert made["accuracy"]["low"] < 0.5 < made["accuracy"]["high"]
    assert all(set(metric) == {"value", "low", "high"} for metric in made.values())


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"question_id": 1, "answer": "Yes"}], r"a\.jsonl: 3 of 4 predictions are missing: ques"),
        (
            [{"question_id": i, "answer": "No"} for i in (1, 2, 3, 4, 5)],
            r"a\.jsonl:5: question_id 5 is no question of the annotations \(1 such answers\)",
        ),
        (
            [{"question_id": i, "answer": "No"} for i in (1, 2, 3, "x4")],
            r"a\.jsonl:4: question_id 'x4' is no question of the .*; it is text, the annotations",
        ),
        (
            [{"question_id": 1, "answer": "No"}] * 2,
            r"a\.jsonl:2: question_id 1 was already answered on line 1",
        ),
        ([{"question_id": 1, "said": "No"}], r'a\.jsonl:1: key "answer" or "prediction" or '),
        ([{"question_id": 1, "answer": None}], r'a\.jsonl:1: "answer" is None; it must be'),
        ([{"name": 1, "answer": "No"}], r'a\.jsonl:1: key "question_id" is missing'),
        ([[1, "No"]], r"a\.jsonl:1: expected a JSON object|a\.jsonl:1: not JSON"),
    ],
)
def test_bad_pope_predictions_are_named(tmp_path, asked, records, message):
    path = lines(tmp_path / "a.jsonl", records)
    with pytest.raises(InvalidData, match=message) as caught:
        score_predictions("pope", path, asked)
    assert "\n" not in str(caught.value)


def test_pope_needs_questions(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"question_id": 1, "answer": "No"}])
    with pytest.raises(InvalidData, match="give --annotations"):
        score_predictions("pope", path)


def test_unknown_task_is_named(tmp_path):
    with pytest.raises(
        InvalidParameter, match=r"Unknown task 'vqa'\..* Known: amber, .*chair, .*vlind\."
    ):
        score_predictions("vqa", tmp_path)


# ---------------------------------------------------------------- POPE's splits


@pytest.fixture
def splits(tmp_path):
    """Folders of answers, of questions and of later labels for two splits."""
    folders = [tmp_path / name for name in ("said", "asked", "later")]
    for folder in folders:
        folder.mkdir()
    answers = [{"question_id": i, "answer": said} for i, said in SAID.items()]
    later = [QUESTIONS[0] | {"label": "no"}, QUESTIONS[3] | {"question_id": 9, "label": "yes"}]
    for split in ("random", "popular"):
        lines(folders[0] / f"model_{split}_greedy.jsonl", answers)
        lines(folders[1] / f"coco_pope_{split}.json", QUESTIONS)
        lines(folders[2] / f"coco_repope_{split}.json", later)
    lines(folders[0] / "model_popular_greedy.jsonl", [a | {"answer": "Yes"} for a in answers])
    (folders[1] / "coco_co_occur.json").write_text('{"dog": []}')  # POPE's folder has it too
    return folders


def test_every_split_and_their_mean(splits):
    made = score_predictions("pope", *splits[:2])
    assert json.loads(json.dumps(made)) == made
    assert made["n"] == 8
    assert list(made["splits"]) == ["random", "popular"]
    assert made["splits"]["random"]["metrics"]["accuracy"] == {"value": 0.5}
    assert made["splits"]["popular"]["metrics"]["recall"] == {"value": 1.0}
    assert made["splits"]["random"]["n"] == 4
    assert made["metrics"]["recall"] == {"value": 0.75}
    assert made["metrics"]["yes_ratio"] == {"value": 0.75}
    assert made["metrics"]["unparsed"] == {"value": 1.0}
    assert "relabelled" not in made


def test_every_split_under_later_labels(splits):
    made = score_predictions("pope", *splits[:2], relabel=splits[2])
    one = {"kept": 2, "dropped": 2, "yes_to_no": 1, "no_to_yes": 1}
    assert made["splits"]["random"]["relabelled"] == one
    assert made["relabelled"] == {name: 2 * count for name, count in one.items()}
    assert made["n"] == 4
    assert made["splits"]["popular"]["metrics"]["precision"] == {"value": 0.5}
    alone = score_predictions(
        *("pope", splits[0] / "model_random_greedy.jsonl", splits[1] / "coco_pope_random.json"),
        relabel=splits[2] / "coco_repope_random.json",
    )
    assert alone["relabelled"] == one
    assert alone["metrics"] == made["splits"]["random"]["metrics"]
    assert "relabel" in alone["files"]


def test_unequal_folders_are_named(splits):
    said, asked, later = splits
    alone = score_predictions("pope", said / "model_random_greedy.jsonl", asked)
    assert alone["n"] == 4  # its name says of which split it is
    (later / "coco_repope_popular.json").unlink()
    with pytest.raises(InvalidData, match=r"later holds the splits random, .*random, popular"):
        score_predictions("pope", said, asked, relabel=later)
    (said / "model_popular_greedy.jsonl").unlink()
    with pytest.raises(
        InvalidData, match=r"said holds the splits random, the annotations random, pop"
    ):
        score_predictions("pope", said, asked)
    with pytest.raises(InvalidData, match="1 of 4 predictions are missing"):
        lines(said / "popular.jsonl", [{"question_id": i, "answer": "No"} for i in (1, 2, 3)])
        score_predictions("pope", said, asked)


def test_answers_to_what_is_dropped_must_be_there_too(splits):
    said, asked, later = (sorted(folder.glob("*random*"))[0] for folder in splits)
    lines(said, [{"question_id": i, "answer": "No"} for i in (1, 3)])
    with pytest.raises(InvalidData, match="2 of 4 predictions are missing"):
        score_predictions("pope", said, asked, relabel=later)


@pytest.mark.parametrize(
    ("task", "option", "message"),
    [
        ("mme", {"relabel": "r"}, "relabel is for task pope, not mme"),
        ("pope", {"details": "d"}, "details is for task chair, not pope"),
        ("pope", {"family": "pattern"}, "family is for task chair, not pope"),
        ("pope", {"captions": "c.json"}, "captions is for task chair, not pope"),
        ("pope", {"incomplete": "drop"}, "incomplete is for task chair, not pope"),
        ("pope", {"image_ids": "chair500"}, "image-ids is for task chair, not pope"),
    ],
)
def test_options_of_other_tasks_are_refused(tmp_path, task, option, message):
    with pytest.raises(InvalidData, match=message):
        score_predictions(task, tmp_path / "p.jsonl", **option)


# ---------------------------------------------------------------- CHAIR


def coco(folder):
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2)]
    kinds = [{"id": 1, "name": "dog"}, {"id": 2, "name": "person"}]
    boxes = [{"id": 1, "image_id": 1, "category_id": 1}, {"id": 2, "image_id": 2, "category_id": 2}]
    texts = [{"id": 1, "image_id": 1, "caption": "A dog on a couch."}]
    instances = {"images": images, "annotations": boxes, "categories": kinds}
    (folder / "instances.json").write_text(json.dumps(instances))
    captions = {"images": images, "annotations": texts}
    (folder / "captions.json").write_text(json.dumps(captions))
    return folder / "instances.json", folder / "captions.json"


@pytest.fixture
def said(tmp_path):
    return lines(
        tmp_path / "c.jsonl",
        [
            {"image_id": 1, "caption": "A dog and a cat on a couch."},
            {"image_id": 2, "caption": "A woman."},
        ],
    )


def test_chair_document(tmp_path, said):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    instances, captions = coco(tmp_path)
    made = score_predictions("chair", said, instances, captions)
    assert json.loads(json.dumps(made)) == made
    assert made["task"] == "chair"
    assert made["n"] == 2
    assert made["metrics"] == {
        "chair_s": {"value": 0.5},
        "chair_i": {"value": 0.25},
        "recall": {"value": 1.0},
        "length": {"value": 6.0},
    }
    assert (made["family"], made["gt_family"]) == ("wordnet", "wordnet")
    assert made["path"] in ("nltk", "tables")
    first = made["sentences"][0]
    assert first["image_id"] == 1
    assert first["generated"] == ["dog", "cat", "couch"]
    assert first["hallucinated"] == ["cat"]
    assert first["mentions"][1] == {
        "object": "cat",
        "word": "cat",
        "start": 12,
        "end": 15,
        "index": 4,
        "hallucinated": True,
    }


def test_chair_without_reference_captions_counts_instances_only(tmp_path, said):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    instances, captions = coco(tmp_path)
    captions.unlink()
    made = score_predictions("chair", said, instances, family="pattern")
    assert made["sentences"][0]["hallucinated"] == ["cat", "couch"]
    assert made["family"] == made["gt_family"] == "pattern"
    assert made["path"] == "tables"


def test_chair_counts_the_captions_beside_the_instances(tmp_path, said):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    instances, captions = coco(tmp_path)
    found = score_predictions("chair", said, instances)
    assert found["metrics"] == score_predictions("chair", said, instances, captions)["metrics"]
    assert found["captions"] == str(captions)
    assert f"The truth is instances and the captions of {captions}." in found["told"]
    captions.unlink()
    assert "The truth is instances only." in score_predictions("chair", said, instances)["told"]


def test_chair_reads_no_yes_and_no(said):
    with pytest.raises(InvalidData, match="parser is for answers of yes and no, not chair"):
        score_predictions("chair", said, parser="vcd")


def test_chair_falls_back_on_no_other_truth(tmp_path, said):
    with pytest.raises(InvalidData, match=r"c\.jsonl:1: image_id 1 is no image of the annotations"):
        score_predictions("chair", said)  # the shipped COCO sets know no images 1 and 2
    with pytest.raises(InvalidData, match="shipped object sets are of the wordnet family"):
        score_predictions("chair", said, gt_family="pattern")
    with pytest.raises(InvalidData, match="needs COCO instances beside it"):
        score_predictions("chair", said, captions=tmp_path / "captions.json")
    with pytest.raises(InvalidData, match="'spacy' is unknown; the known ones are wordnet"):
        score_predictions("chair", said, family="spacy", gt_family="wordnet")


def test_chair_against_the_shipped_sets(tmp_path):
    path = lines(tmp_path / "c.jsonl", [{"image_id": 9, "caption": "Broccoli in a bowl, a cat."}])
    made = score_predictions("chair", path)
    assert made["sentences"][0]["generated"] == ["broccoli", "bowl", "cat"]
    assert made["sentences"][0]["hallucinated"] == ["cat"]
    assert made["metrics"]["recall"]["value"] == 2 / 3


def test_chair_of_a_list_of_pictures(tmp_path, said):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    instances, _ = coco(tmp_path)
    ids = tmp_path / "ids.txt"
    for text, message in (
        ("1\n", r"c\.jsonl:2: image_id 2 is no image of .*ids\.txt \(1 such answers\)"),
        ("1\n2\n3\n", r"c\.jsonl: 1 of the 3 image ids asked for are missing, 3 first"),
    ):
        ids.write_text(text)
        with pytest.raises(InvalidData, match=message):
            score_predictions("chair", said, instances, image_ids=ids)
    ids.write_text("2\n1\n")
    made = score_predictions("chair", said, instances, image_ids=ids)
    assert (made["n"], made["image_ids"]) == (2, str(ids))


def test_chair_without_the_last_sentence(tmp_path):
    path = lines(tmp_path / "c.jsonl", [{"image_id": 9, "caption": "A bowl. A cat on"}])
    kept, dropped = (
        score_predictions("chair", path, incomplete=how)["sentences"][0]["hallucinated"]
        for how in ("keep", "drop")
    )
    assert (kept, dropped) == (["cat"], [])
    assert score_predictions("chair", path, incomplete="drop")["incomplete"] == "drop"
    with pytest.raises(InvalidData, match="must be keep or drop"):
        score_predictions("chair", path, incomplete="cut")


def test_chair_writes_what_it_found_in_every_caption(tmp_path, said):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    instances, captions = coco(tmp_path)
    file = tmp_path / "details.jsonl"
    made = score_predictions("chair", said, instances, captions, details=file)
    assert made["details"]["file"] == str(file)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [r["image_id"] for r in records] == [1, 2]
    assert records[0]["mscoco_generated_words"] == made["sentences"][0]["generated"]
    assert records[0]["mscoco_hallucinated_words"] == [["cat", "cat"]]
    assert records[0]["mscoco_gt_words"] == ["couch", "dog"]
    before = said.read_bytes()
    with pytest.raises(InvalidData, match=r"c\.jsonl is an input; write details to another file"):
        score_predictions("chair", said, instances, details=said)
    assert said.read_bytes() == before


# ---------------------------------------------------------------- MME


def results(folder, truths=("Yes", "No"), answers=("Yes", "Yes")):
    folder.mkdir()
    rows = [
        f"a.jpg\tQ{i}?\t{t}\t{a}\n" for i, (t, a) in enumerate(zip(truths, answers, strict=True))
    ]
    (folder / "existence.txt").write_text("".join(rows))
    return folder


def test_mme_document(tmp_path):
    made = score_predictions("mme", results(tmp_path / "r"))
    assert json.loads(json.dumps(made)) == made
    assert made["task"] == "mme"
    assert made["n"] == 2
    assert made["metrics"] == {
        "existence.acc": {"value": 0.5},
        "existence.acc_plus": {"value": 0.0},
        "existence.score": {"value": 50.0},
        "perception": {"value": 50.0},
        "cognition": {"value": 0.0},
        "hallucination_subset": {"value": 50.0},
        "total": {"value": 50.0},
    }
    assert made["subtasks"] == ["existence"]
    assert made["fixed_answers"]["always yes"]["total"] == 50.0


def test_mme_results_must_answer_the_annotated_questions(tmp_path):
    asked = tmp_path / "asked"
    (asked / "existence").mkdir(parents=True)
    text = "a.jpg\tQ0?\tYes\na.jpg\tQ1?\tNo\n"
    (asked / "existence" / "q.txt").write_text(text)
    assert score_predictions("mme", results(tmp_path / "r"), asked)["n"] == 2
    (asked / "existence" / "q.txt").write_text(text + text.replace("a.jpg", "b.jpg"))
    with pytest.raises(InvalidData, match=r"existence/b\.jpg#1 is not answered \(2 missing"):
        score_predictions("mme", tmp_path / "r", asked)
    (asked / "existence" / "q.txt").write_text("a.jpg\tQ0?\tNo\na.jpg\tQ1?\tYes\n")
    with pytest.raises(InvalidData, match=r"the truth of existence/a\.jpg#1 is 'yes', the annot"):
        score_predictions("mme", tmp_path / "r", asked)


def test_broken_mme_results_name_their_line(tmp_path):
    folder = results(tmp_path / "r")
    path = folder / "existence.txt"
    path.write_text("a.jpg\tQ\tYes\tyes\n\nb.jpg\tQ\tNo\tno\n")
    with pytest.raises(
        InvalidData, match=r"existence\.txt:3: MME existence: the pair of a\.jpg is"
    ):
        score_predictions("mme", folder)
    path.write_text("\n")
    with pytest.raises(InvalidData, match=r"existence\.txt is empty"):
        score_predictions("mme", folder)


def test_mme_wants_a_folder(tmp_path):
    (tmp_path / "r.txt").write_text("x")
    with pytest.raises(InvalidData, match="is not a folder"):
        score_predictions("mme", tmp_path / "r.txt")
