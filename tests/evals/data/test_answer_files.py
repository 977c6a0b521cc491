"""Files of answers as people have them, read by what is in their columns."""

from __future__ import annotations

import csv
import gzip
import json

import pytest

from halludecode.core.errors import InvalidData
from halludecode.evals.data.final_answer import final_answer
from halludecode.evals.runner.score_file import score_predictions

ASKED = [
    {
        "question_id": n,
        "image": f"COCO_val2014_{42 + n // 4:012d}.jpg",
        "text": f"Is there a {thing} in the image?",
        "label": ("yes", "no")[n % 2],
    }
    for n, thing in enumerate(("lamp", "sled", "kite", "drum", "lamp", "fork"), start=0)
]
RIGHT = ("Yes", "No") * 3


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(
            file, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t"
        )
        writer.writeheader()
        writer.writerows(rows)
    return path


def workbook(path, rows):
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is not installed")
    book = openpyxl.Workbook()
    for row in (list(rows[0]), *(list(row.values()) for row in rows)):
        book.active.append(row)
    book.save(path)
    return path


@pytest.fixture
def asked(tmp_path):
    return lines(tmp_path / "questions.jsonl", ASKED)


def _records(make):
    return [make(q, said) for q, said in zip(ASKED, RIGHT, strict=True)]


KIT = {"index": 0, "question": "", "answer": "", "category": "random", "prediction": ""}
SHAPES = {
    "ours": lambda q, a: {"question_id": q["question_id"], "answer": a},
    "text ids": lambda q, a: {"question_id": str(q["question_id"]), "answer": a},
    "official": lambda q, a: {"question": q["text"], "answer": a},
    "PAI": lambda q, a: {
        "query": q["text"],
        "label": int(q["label"] == "yes"),
        "ans": a,
        "question": f"USER: <ImageHere> {q['text']} ASSISTANT:",
    },
    "record": lambda q, a: {**q, "prediction": a},
    "record with a response": lambda q, a: {**q, "answer": q["label"], "response": a},
    "llava": lambda q, a: {
        "question_id": q["question_id"],
        "prompt": f"{q['text']}\nAnswer the question using a single word or phrase.",
        "text": a,
        "model_id": "m",
    },
    "other words": lambda q, a: {
        "question_id": q["question_id"],
        "prompt": f"Does this picture show a {q['text'].split()[3]}?",
        "text": a,
    },
    "lmms-eval": lambda q, a: {
        "doc_id": q["question_id"],
        "target": q["label"],
        "filtered_resps": [a],
        "resps": [[a + " "]],
        "doc": {
            "question_id": str(q["question_id"]),
            "question": q["text"],
            "answer": q["label"],
            "category": "random",
        },
    },
    "columns in another order": lambda q, a: {"output": a, **dict(reversed(q.items()))},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_json_lines(tmp_path, asked, shape):
    asked = asked.rename(tmp_path / "coco_pope_random.jsonl")
    rows = _records(SHAPES[shape])
    path = lines(tmp_path / "a.jsonl", rows)
    made = score_predictions("pope", path, asked)
    assert made["metrics"]["accuracy"]["value"] == 1.0
    assert str(path) in made["told"][0]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    assert score_predictions("pope", tmp_path / "a.json", asked)["metrics"] == made["metrics"]
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert score_predictions("pope", packed, asked)["metrics"] == made["metrics"]


@pytest.mark.parametrize("ending", ["tsv", "csv", "xlsx"])
@pytest.mark.parametrize("first", [0, 1, 900])  # its own numbers, which need not be the ids
def test_tables_of_vlmevalkit(tmp_path, asked, ending, first):
    rows = [
        {
            **KIT,
            "index": first + n,
            "question": q["text"],
            "answer": q["label"].capitalize(),
            "prediction": said,
        }
        for n, (q, said) in enumerate(zip(ASKED, RIGHT, strict=True))
    ]
    write = workbook if ending == "xlsx" else table
    path = write(tmp_path / f"model_POPE.{ending}", rows)
    asked = asked.rename(tmp_path / "coco_pope_random.jsonl")
    made = score_predictions("pope", path, asked)
    assert made["metrics"]["accuracy"]["value"] == 1.0
    assert "'prediction'" in made["told"][0]
    assert "'answer' is the truth" in made["told"][0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda q, a: q, r'"text" is the question, "label" is the truth'),
        (
            lambda q, a: {"question_id": q["question_id"], "text": a, "answer": q["label"]},
            r"'answer' and 'text' could all be the answer",
        ),
        (
            lambda q, a: {"question_id": q["question_id"], "response": a, "output": a.lower()},
            r"'response' and 'output' could all be the answer; say which it is with --columns",
        ),
        (
            lambda q, a: {
                "question_id": q["question_id"],
                "image": q["image"],
                "question": q["text"],
                "answer": q["label"],
            },
            r'"answer" is the truth in every record',
        ),
    ],
)
def test_what_could_be_the_question_or_the_truth_is_refused(tmp_path, asked, make, message):
    path = lines(tmp_path / "a.jsonl", _records(make))
    with pytest.raises(InvalidData, match=message) as caught:
        score_predictions("pope", path, asked)
    assert "a.jsonl:1" in str(caught.value) and "\n" not in str(caught.value)


def test_the_user_decides(tmp_path, asked):
    rows = _records(lambda q, a: {"n": q["question_id"], "text": a, "answer": "No"})
    path = lines(tmp_path / "a.jsonl", rows)
    columns = {"answer": "text", "id": "n"}
    made = score_predictions("pope", path, asked, columns=columns)
    assert made["metrics"]["accuracy"]["value"] == 1.0
    with pytest.raises(InvalidData, match="no column 'txt' for answer; found n, text, answer"):
        score_predictions("pope", path, asked, columns={"answer": "txt", "id": "n"})
    with pytest.raises(InvalidData, match="'reply' is none of answer, id, question"):
        score_predictions("pope", path, asked, columns={"reply": "text"})


def test_answers_of_another_split_are_refused_with_two_examples(tmp_path, asked):
    other = [
        {**q, "text": q["text"].replace("sled", "bear").replace("drum", "boat")} for q in ASKED
    ]
    rows = [SHAPES["llava"](q, a) for q, a in zip(other, RIGHT, strict=True)]
    path = lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(InvalidData, match=r"a bear in .* here; question_id 3 was .* \(2 of 6") as e:
        score_predictions("pope", path, asked)
    assert "\n" not in str(e.value)
    path = lines(tmp_path / "popular.jsonl", _records(SHAPES["ours"]))
    asked = asked.rename(tmp_path / "random.jsonl")
    with pytest.raises(InvalidData, match="named after the popular split and the annotations"):
        score_predictions("pope", path, asked)


def test_llavas_file_of_all_splits(tmp_path):
    folder = tmp_path / "coco"
    folder.mkdir()
    answers = []
    for k, split in enumerate(("adversarial", "random", "popular")):
        own = [{**q, "text": q["text"].replace("sled", split)} for q in ASKED]
        lines(folder / f"coco_pope_{split}.json", own)
        shifted = [{**q, "question_id": q["question_id"] + k * 10_000_000} for q in own]
        said = RIGHT if split != "popular" else ("Yes",) * 6
        answers += [SHAPES["llava"](q, a) for q, a in zip(shifted, said, strict=True)]
    path = lines(tmp_path / "answers.jsonl", answers)
    made = score_predictions("pope", path, folder)
    accuracy = {s: own["metrics"]["accuracy"]["value"] for s, own in made["splits"].items()}
    assert accuracy == {"random": 1.0, "popular": 0.5, "adversarial": 1.0}
    alone = score_predictions("pope", path, folder / "coco_pope_popular.json")
    assert (alone["n"], alone["metrics"]["accuracy"]["value"]) == (6, 0.5)


@pytest.mark.parametrize(
    "record",
    [
        {"image_id": "COCO_val2014_000000000009.jpg", "caption": "A bowl of broccoli."},
        {"image_id": "000000000009.jpg", "text": "A bowl of broccoli."},
        {"image_id": "9", "response": "A bowl of broccoli."},
        {"question_id": 9, "image": "x.jpg", "prompt": "Describe.", "text": "A bowl of broccoli."},
        {"image": "val2014/COCO_val2014_000000000009.jpg", "answer": "A bowl of broccoli."},
        {"sentences": [{"image_id": 9, "caption": "A bowl of broccoli.", "words": ["a", "b"]}]},
    ],
)
def test_captions_under_any_usual_name(tmp_path, record):
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(record))
    made = score_predictions("chair(path=tables)", path)
    assert made["sentences"][0]["generated"] == ["bowl", "broccoli"]
    assert made["told"][1].startswith("Words are found by the tokeniser and tagger")


def test_captions_that_only_look_good_are_counted(tmp_path):
    rows = [{"image_id": 9, "caption": " "}, {"image_id": 25, "caption": "一只狗"}]
    made = score_predictions("chair(path=tables)", lines(tmp_path / "c.jsonl", rows))
    assert (made["empty"], made["without_objects"]) == (1, 2)
    assert any("1 of 2 captions are empty (image 9)" in told for told in made["told"])
    assert any("name none of the 80 objects" in told for told in made["told"])


def test_bold_captions_are_read_as_nltk_reads_them(tmp_path):
    path = lines(
        tmp_path / "bold_min.jsonl",
        [
            {
                "image_id": 42,
                "caption": "The image features a large herd of **zebras** gathered in a grassy "
                "field.",
            }
        ],
    )
    for answers in ("as_written", "final"):
        made = score_predictions("chair(path=tables)", path, answers=answers)
        assert made["sentences"][0]["generated"] == ["zebra"]
        assert not any("tagger" in told and "differ" in told for told in made["told"])


def test_marks_that_the_own_tagger_is_not_sure_of_are_told(tmp_path):
    path = lines(tmp_path / "c.jsonl", [{"image_id": 9, "caption": "A herd of `zebras`."}])
    made = score_predictions("chair(path=tables)", path)
    assert any("1 of 1 captions have words in `" in told for told in made["told"])
    plain = score_predictions("chair(path=tables)", path, answers="final")
    assert plain["sentences"][0]["generated"] == ["zebra"]
    assert not any("have words in" in told for told in plain["told"])


FINAL = {
    "<think>No, hidden.</think>\n\nYes": "Yes",
    "Okay, no dog </think> Yes": "Yes",
    "<think> no dog, no cat": None,
    "**No**": "No",
    "__No__": "No",
    "No!": "No",
    "NO": "No",
    "B. No": "No",
    "(B) No.": "No",
    "<answer>No</answer>": "No",
    "No</answer>": "No",
    r"\boxed{No}": "No",
    r"It is \boxed{\text{No}}.": "No",
    "Final answer: **no**": "No",
    "**Yes**, a kite is there.": "Yes, a kite is there.",
    "There is no dog.": "There is no dog.",
    "No. 5 is a bus": "No. 5 is a bus",
    "Nothing": "Nothing",
    "": None,
}


@pytest.mark.parametrize("text", FINAL)
def test_final_answers(text):
    assert final_answer(text) == FINAL[text]


def test_captions_keep_their_words():
    text = "<think>A cat?</think>A **dog**.\n- No bus"
    assert final_answer(text, "caption") == "A dog.\nNo bus"


def test_final_answers_are_offered_counted_and_recorded(tmp_path, asked):
    said = ["<think> no </think> Yes", "**No**", "Yes", "No", "<think>never ends", "No"]
    rows = [{"question_id": n, "answer": a} for n, a in enumerate(said)]
    path = lines(tmp_path / "a.jsonl", rows)
    written = score_predictions("pope", path, asked)
    assert written["changed_by_final"] == 3
    assert "3 of 6 answers would be read otherwise" in " ".join(written["told"])
    final = score_predictions("pope", path, asked, answers="final")
    assert (final["answers"], final["metrics"]["accuracy"]["value"]) == ("final", 5 / 6)
    assert (final["unread"], final["unparsed"]) == (1, 1)
    with pytest.raises(InvalidData, match="answers 'last' is unknown; it must be as_written or"):
        score_predictions("pope", path, asked, answers="last")
