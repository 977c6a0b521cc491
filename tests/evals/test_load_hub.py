"""Data sets in the hub's own formats, small and local: columns, streaming, revisions, bad rows."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from halludecode.core.errors import InvalidData
from halludecode.evals import load_hub as hub
from halludecode.evals.benchmarks.amber import description_words as amber_words
from halludecode.evals.load import load_units
from halludecode.evals.runner.run import run_eval
from tests.support import eval_world as world

datasets = pytest.importorskip("datasets", reason="the datasets package is not installed")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is kept in the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def by_key(units):
    return {unit.key: unit for unit in units}


def shown(n):
    return Image.new("RGB", (9, 9), (n, 2, 3))


def png(n):
    buffer = io.BytesIO()
    shown(n).save(buffer, "PNG")
    return buffer.getvalue()


def made(rows):
    """A data set with pictures and strings, as the hub's are; lists and whole numbers stay."""

    def feature(name, value):
        if name == "image":
            return datasets.Image()
        if isinstance(value, list):
            return datasets.List(datasets.Value("string"))
        return datasets.Value("int64" if isinstance(value, int) else "string")

    features = datasets.Features({k: feature(k, v) for k, v in rows[0].items()})
    return datasets.Dataset.from_list(rows, features=features)


def parquet(path, rows, shards=1, split="test"):
    path.mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // shards)
    for n in range(shards):
        part = made(rows[n * size : (n + 1) * size])
        part.to_parquet(path / f"{split}-{n:05}-of-{shards:05}.parquet")
    return path


def pope_rows(pictures=2, splits=("adversarial", "random")):
    return [
        {
            "question_id": str(2 * n + k + 1),
            "question": f"Is there a {world.OBJECTS[(n + k) % 6]} in the image?",
            "answer": answer,
            "image_source": f"COCO_val2014_{n:012}",
            "image": shown(n),
            "category": split,
        }
        for split in splits
        for n in range(pictures)
        for k, answer in enumerate(("yes", "no"))
    ]


def mme_rows(pictures=2, subtasks=("OCR", "count")):
    return [
        {
            "question_id": f"{subtask}/000{n}.png",
            "image": shown(n),
            "question": f"{answer}? Please answer yes or no.",
            "answer": answer,
            "category": subtask,
        }
        for subtask in subtasks
        for n in range(pictures)
        for answer in ("Yes", "No")
    ]


def hallusion_rows(category="VD", figures=2):
    return [
        {
            "category": category,
            "subcategory": "map",
            "visual_input": str(f if category == "VS" else f + 1),
            "set_id": "0",
            "figure_id": str(f),
            "question_id": str(q),
            "question": f"Is it {q}?",
            "gt_answer": str(q),
            "filename": f"./{category}/map/0_{f}.png",
            "image": shown(f),
        }
        for f in range(figures)
        for q in range(2)
    ]


# What the hub's sets hold


def test_pope(tmp_path):
    source = parquet(tmp_path / "POPE", pope_rows())
    units = load_units([source], world.select("pope"))
    assert [u.key for u in units] == [("pope", "POPE", "random"), ("pope", "POPE", "adversarial")]
    assert [s.id for s in units[0].samples] == [1, 2, 3, 4]
    assert units[0].samples[0].picture.load().size == (9, 9)
    assert units[0].samples[0].picture.name == "COCO_val2014_000000000000.jpg"
    assert len(load_units([source], world.select("pope", limit=1))[0].samples) == 2


def test_pope_with_a_split_a_setting(tmp_path):
    for split in ("random", "popular"):
        parquet(tmp_path / "set", pope_rows(splits=(split,)), split=split)
    units = load_units([tmp_path / "set"], world.select("pope(split=popular)"))
    assert [u.key for u in units] == [("pope", "set", "popular")]
    rows = [{k: v for k, v in row.items() if k != "category"} for row in pope_rows()[:4]]
    (unit,) = load_units([parquet(tmp_path / "own", rows, split="train")], world.select("pope"))
    assert unit.key == ("pope", "own", "train")


def test_mme(tmp_path):
    (unit,) = load_units([parquet(tmp_path / "MME", mme_rows())], world.select("mme"))
    assert [s.id for s in unit.samples[:3]] == [
        "OCR/0000.png#1",
        "OCR/0000.png#2",
        "count/0000.png#1",
    ]
    assert [s.label for s in unit.samples[:2]] == ["yes", "no"]


def test_captions_with_objects(tmp_path):
    rows = [
        {"image": shown(n), "question_id": str(n + 1), "gt_object": ["dog", "cat"]}
        for n in range(2)
    ]
    (unit,) = load_units([parquet(tmp_path / "chair", rows)], world.select("chair"))
    assert [(s.id, s.objects) for s in unit.samples] == [(1, ("cat", "dog")), (2, ("cat", "dog"))]
    written = [{**row, "gt_object": json.dumps(row["gt_object"])} for row in rows]
    (same,) = load_units([parquet(tmp_path / "json", written)], world.select("chair"))
    assert same.digest == unit.digest
    rows[1]["gt_object"] = ["dog", "unicorn"]
    with pytest.raises(InvalidData, match=r"row 1: object 'unicorn' is not among CHAIR's 80"):
        load_units([parquet(tmp_path / "bad", rows)], world.select("chair"))


def test_captions_of_coco_have_the_shipped_objects(tmp_path):
    names = ("COCO_val2014_000000000042.jpg", "COCO_val2014_000000000073.jpg")
    rows = [
        {"question_id": name, "image": shown(n), "answer": ["a", "b"], "file_name": name, "id": n}
        for n, name in enumerate(names)
    ]
    (unit,) = load_units([parquet(tmp_path / "caps", rows, split="val")], world.select("chair"))
    assert [s.id for s in unit.samples] == [42, 73]
    assert "motorcycle" in unit.samples[1].objects
    assert [s.picture.name for s in unit.samples] == list(names)
    with pytest.raises(InvalidData, match="of the wordnet family, not 'pattern'"):
        load_units([tmp_path / "caps"], world.select("chair(gt_family=pattern)"))
    chosen = world.select("chair(image_ids=(73,))")
    (unit,) = load_units([tmp_path / "caps"], chosen)
    assert [s.id for s in unit.samples] == [73]
    rows[1]["file_name"] = "COCO_val2014_000000000001.jpg"
    with pytest.raises(InvalidData, match=r"row 1: image id 1 is none of COCO 2014"):
        load_units([parquet(tmp_path / "bad", rows)], world.select("chair"))


def test_amber_descriptions_are_read_by_the_shipped_lists(tmp_path, monkeypatch):
    monkeypatch.setattr(amber_words, "nltk_nouns", lambda: str.split)
    rows = [
        {
            "image": shown(n),
            "question_id": str(n + 1),
            "truth": ["sky", "dog"],
            "hallu": ["bird"],
        }
        for n in range(3)
    ]
    source = parquet(tmp_path / "amber_g", rows, split="train")
    (unit,) = load_units([source], world.select("amber", limit=2))
    assert [(s.id, s.prompt) for s in unit.samples] == [
        (1, "Describe this image."),
        (2, "Describe this image."),
    ]
    judged = unit.benchmark.judge(unit.samples[0], "sky bird")
    assert judged["parsed"]["hallucinated"] == judged["parsed"]["thought_of"] == ["bird"]
    rows[1]["truth"] = ["ghost"]
    with pytest.raises(InvalidData, match=r"row 1: 'ghost' is not a key of relation\.json"):
        load_units([parquet(tmp_path / "bad", rows)], world.select("amber"))


def test_hallusion_in_two_splits(tmp_path):
    blind = hallusion_rows("VS", 1)
    for row in blind:
        row |= {"filename": None, "image": None}
    parquet(tmp_path / "hb", hallusion_rows(), split="image")
    parquet(tmp_path / "hb", blind, split="non_image")
    (unit,) = load_units([tmp_path / "hb"], world.select("hallusionbench"))
    pictures = {s.id: s.picture for s in unit.samples}
    assert pictures["VS_map_0_0_1"].digest == ""
    assert pictures["VD_map_0_1_0"].name == "VD/map/0_1.png"
    assert {s.facts["set_size"] for s in unit.samples} == {2, 4}
    (few,) = load_units([tmp_path / "hb"], world.select("hallusionbench", limit=1))
    assert len(few.samples) == 4


# The hub's formats


def test_saved_to_disk(tmp_path):
    made(pope_rows()).save_to_disk(tmp_path / "one")
    pair = {s: made(pope_rows(splits=(s,))) for s in ("random", "popular")}
    datasets.DatasetDict(pair).save_to_disk(tmp_path / "two")
    for name, splits in (("one", ["random", "adversarial"]), ("two", ["random", "popular"])):
        units = load_units([tmp_path / name], world.select("pope"))
        assert [u.split for u in units] == splits


def image_folder(path, rows=4):
    path.mkdir()
    lines = []
    for n in range(rows):
        (path / f"p{n // 2}.png").write_bytes(png(n // 2))
        asked = {"question_id": n, "question": "Is it?", "answer": ("yes", "no")[n % 2]}
        lines.append({"file_name": f"p{n // 2}.png", **asked, "category": "random"})
    world.write_lines(path / "metadata.jsonl", lines)
    return path


@pytest.mark.parametrize("limit", [None, 1])
def test_image_folder(tmp_path, limit):
    (unit,) = load_units([image_folder(tmp_path / "set")], world.select("pope", limit=limit))
    assert [s.picture.name for s in unit.samples] == ["p0.png", "p0.png", "p1.png", "p1.png"][
        : limit and 2
    ]
    assert unit.samples[0].picture.load().getpixel((0, 0)) == (0, 2, 3)


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_lines_with_paths_of_pictures(tmp_path, kind, limit):
    source = tmp_path / "set"
    (source / "images").mkdir(parents=True)
    rows = pope_rows(splits=("random",))
    for n, row in enumerate(rows):
        row |= {"image": f"images/{n // 2}.png", "question_id": n}
        (source / row["image"]).write_bytes(png(n // 2))
    path = source / f"test.{kind}"

    def save():
        if kind == "jsonl":
            world.write_lines(path, rows)
            return
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    save()
    (unit,) = load_units([source], world.select("pope", limit=limit))
    assert unit.samples[2].picture.load().getpixel((0, 0)) == (1, 2, 3)
    line = 3 if kind == "jsonl" else 4
    rows[2]["answer"] = "perhaps"
    save()
    with pytest.raises(InvalidData, match=rf"test\.{kind}:{line}: answer 'perhaps' is neither"):
        load_units([source], world.select("pope", limit=limit))
    rows[2]["answer"] = "yes"
    save()
    (source / "images" / "1.png").unlink()
    with pytest.raises(
        InvalidData, match=rf"{kind}:{line}: picture 'images/1\.png' does not exist"
    ):
        load_units([source], world.select("pope", limit=limit))


def test_popes_own_keys_with_pictures_in_a_folder(tmp_path):
    source = world.folder(tmp_path / "set")
    own = tmp_path / "own"
    own.mkdir()
    (source / "pope" / "random.jsonl").rename(own / "random.jsonl")
    (unit,) = load_units([own], world.select("pope"), source / "images")
    assert (unit.split, len(unit.samples)) == ("random", 8)
    (source / "images").rename(own / "images")
    (same,) = load_units([own], world.select("pope"))
    assert same.digest == unit.digest
    shutil.copyfile(own / "random.jsonl", own / "coco_pope_popular.jsonl")
    assert [u.split for u in load_units([own], world.select("pope"))] == ["random", "popular"]


def test_pictures_without_a_name_are_told_apart_by_their_content(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "image_source"} for row in pope_rows()]
    source = parquet(tmp_path / "POPE", rows)
    for limit in (None, 1):
        units = load_units([source], world.select("pope", limit=limit))
        for unit in units:
            names = [s.picture.name for s in unit.samples]
            assert names[0] == names[1]
            assert len(set(names)) == len(names) // 2


# VLMEvalKit's tables


def table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def pope_table(path):
    rows = []
    for n in range(4):
        own = base64.b64encode(png(n // 2) * 2).decode()  # as long as a picture is
        category = "adversarial,popular,random" if n % 2 == 0 else ("random", "popular")[n // 2]
        rows.append(
            {
                "index": n,
                "image": own if n % 2 == 0 else n - 1,  # its picture is in the row before
                "question": f"Is there a\n{world.OBJECTS[n]}?",
                "answer": ("Yes", "No")[n % 2],
                "category": category,
            }
        )
    return table(path, rows), rows


def test_pope_table_with_shared_pictures_and_categories(tmp_path):
    source, _ = pope_table(tmp_path / "POPE.tsv")
    units = by_key(load_units([source], world.select("pope")))
    assert [key[2] for key in units] == ["random", "popular", "adversarial"]
    assert [s.id for s in units["pope", "POPE", "random"].samples] == [0, 1, 2]
    first, second, third = (s.picture for s in units["pope", "POPE", "random"].samples)
    assert first.digest == second.digest != third.digest
    assert first.name == second.name
    assert third.load().getpixel((0, 0)) == (1, 2, 3)
    few = load_units([source], world.select("pope", limit=1))
    assert [len(u.samples) for u in few] == [2, 1, 1]


def test_bad_tables_are_named_with_their_line(tmp_path):
    source, rows = pope_table(tmp_path / "POPE.tsv")
    rows[2]["answer"] = "Maybe"
    table(source, rows)
    with pytest.raises(InvalidData, match=r"POPE\.tsv:6: answer 'Maybe' is neither yes nor no"):
        load_units([source], world.select("pope"))
    rows[2] |= {"answer": "Yes", "image": 77}
    table(source, rows)
    with pytest.raises(InvalidData, match=r"POPE\.tsv:6: picture '77' does not exist"):
        load_units([source], world.select("pope"))
    source.write_text("index\tquestion\tanswer\n1\tIs it?\tYes\n")
    with pytest.raises(InvalidData, match="no column 'image' for image; found index, question, an"):
        load_units([source], world.select("pope"))
    source.write_text("index\timage\tquestion\tanswer\n1\tx\tIs it?\n")
    with pytest.raises(InvalidData, match=r"POPE\.tsv:2: 3 columns separated by tabs, the first"):
        load_units([source], world.select("pope"))
    source.write_text("")
    with pytest.raises(InvalidData, match=r"POPE\.tsv is empty"):
        load_units([source], world.select("pope"))
    source.write_bytes(b"index\timage\tquestion\tanswer\n1\t\xff\tq\tYes\n")
    with pytest.raises(InvalidData, match=r"POPE\.tsv:2: not UTF-8"):
        load_units([source], world.select("pope"))


def test_other_tables(tmp_path):
    def cell(n):
        return base64.b64encode(png(n) * 2).decode()

    asked = {"question": "Is it?", "answer": "No"}
    amber_table = table(
        tmp_path / "AMBER.tsv",
        [
            {"index": 7, "image": cell(1), **asked, "category": kind, "image_path": "AMBER_1.jpg"}
            for kind in ("discriminative-attribute-state",)
        ],
    )
    (unit,) = load_units([amber_table], world.select("amber"))
    assert (unit.samples[0].facts, unit.samples[0].picture.name) == (
        {"type": "discriminative-attribute-state"},
        "AMBER_1.jpg",
    )
    rows = [
        {"index": f"a_VD_map_0_{f}_{q}", "category": "VD", "l2-category": "map", "image": cell(f)}
        | asked
        for f in range(2)
        for q in range(2)
    ]
    (unit,) = load_units([table(tmp_path / "HB.tsv", rows)], world.select("hallusionbench"))
    assert [s.id for s in unit.samples] == [f"VD_map_0_{f}_{q}" for f in (0, 1) for q in (0, 1)]
    assert {s.facts["visual_input"] for s in unit.samples} == {None}
    rows = [
        {"index": n, "image": cell(n // 2), "category": "OCR", "question": "Is it?", "answer": a}
        | {"image_path": f"images/{n // 2}.jpg"}
        for n, a in enumerate(("Yes", "No", "Yes", "No"))
    ]
    (unit,) = load_units([table(tmp_path / "MME.tsv", rows)], world.select("mme"))
    assert [s.id for s in unit.samples] == [f"OCR/{n}.jpg#{k}" for n in (0, 1) for k in (1, 2)]


def test_hallusion_without_edit_marks_has_no_easy_and_hard(tmp_path):
    cell = base64.b64encode(png(1) * 2).decode()
    rows = [
        {"index": f"x_VD_map_0_{f}_0", "category": "VD", "l2-category": "map", "image": cell}
        | {"question": f"Is it {f}?", "answer": "Yes"}
        for f in range(2)
    ]
    report = run_eval(
        world.FakeEngine(),
        tasks=["hallusionbench"],
        strategies=["greedy"],
        data=[table(tmp_path / "HallusionBench.tsv", rows)],
        output=tmp_path / "run",
        progress=False,
    )
    metrics = report.results["runs"][0]["metrics"]
    assert {"aAcc", "qAcc", "fAcc"} <= metrics.keys()
    assert not {"easy", "hard"} & metrics.keys()


# Streaming


def test_a_limit_gives_the_same_samples_as_the_whole(tmp_path):
    sets = {
        "pope": pope_rows(5, splits=("adversarial", "popular", "random")),
        "mme": mme_rows(4, subtasks=("OCR", "count", "color")),
    }
    for task, rows in sets.items():
        source = parquet(tmp_path / task, rows, shards=3)
        whole = by_key(load_units([source], world.select(task)))
        for limit in (1, 2, 4):
            for key, unit in by_key(load_units([source], world.select(task, limit=limit))).items():
                pictures = list(dict.fromkeys(s.picture.name for s in unit.samples))
                assert len(pictures) == limit
                kept = [s for s in whole[key].samples if s.picture.name in pictures]
                assert [s.digest for s in unit.samples] == [s.digest for s in kept]
                names = list(dict.fromkeys(s.picture.name for s in whole[key].samples))
                assert pictures == names[:limit]


def test_a_limit_reads_no_shard_behind_what_it_needs(tmp_path):
    rows = pope_rows(30, splits=("random",))
    source = parquet(tmp_path / "POPE", rows, shards=6)
    for n in range(1, 6):  # all but the first are no longer Parquet
        path = source / f"test-0000{n}-of-00006.parquet"
        path.write_bytes(b"gone" * 100)
    (unit,) = load_units([source], world.select("pope(split=random)", limit=4))
    assert len({s.picture.name for s in unit.samples}) == 4
    with pytest.raises(InvalidData, match=r"POPE \(test\), row 10: cannot be read"):
        load_units([source], world.select("pope(split=random)", limit=5))


def test_pictures_behind_the_last_one_wanted_are_not_read(tmp_path, monkeypatch):
    """Three settings share their pictures: words of all are read, pictures of the first rows."""
    source = parquet(tmp_path / "POPE", pope_rows(8, ("adversarial", "popular", "random")))
    asked = []
    real = datasets.load_dataset_builder

    def watched(*args, **kwargs):
        asked.append(kwargs.get("columns"))
        return real(*args, **kwargs)

    read = []
    plain = hub.Streamed._read

    def counted(self, columns):
        for row in plain(self, columns):
            if "image" in columns:
                read.append(1)
            yield row

    monkeypatch.setattr(datasets, "load_dataset_builder", watched)
    monkeypatch.setattr(hub.Streamed, "_read", counted)
    units = load_units([source], world.select("pope", limit=2))
    assert sum(len(u.samples) for u in units) == 12
    assert len(read) == 3  # the second picture's first row, and not one more
    assert ["image"] in asked
    assert all("image" not in c for c in asked if c and c != ["image"])


def test_captions_stream_no_further_than_the_limit(tmp_path):
    rows = [{"image": shown(n), "question_id": str(n), "gt_object": ["dog"]} for n in range(20)]
    source = parquet(tmp_path / "chair", rows, shards=4)
    for n in range(1, 4):
        (source / f"test-0000{n}-of-00004.parquet").write_bytes(b"gone")
    (unit,) = load_units([source], world.select("chair", limit=5))
    assert len(unit.samples) == 5


# Revisions and hashes


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """``some/POPE`` is a local folder that says which commit it is, as the hub does."""
    source = parquet(tmp_path / "POPE", pope_rows())
    real = datasets.load_dataset_builder
    asked = []

    def load(name, config=None, revision=None, **more):
        asked.append((name, config, revision))
        builder = real(str(source), **more)
        builder.hash = COMMIT
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    return asked


@pytest.mark.parametrize("limit", [None, 1])
def test_the_commit_that_was_read_is_recorded(tmp_path, remote, limit):
    report = run_eval(
        world.FakeEngine(),
        tasks=["pope"],
        strategies=["greedy"],
        data=["some/POPE@v1.0"],
        limit=limit,
        output=tmp_path / "run",
        progress=False,
    )
    # What is read after the first look is read at the commit, should the tag move.
    assert remote == [("some/POPE", None, "v1.0")] + [("some/POPE", None, COMMIT)] * len(remote[1:])
    assert len(remote) == (1 if limit is None else 3)
    data = report.run["data"]["pope/some/POPE/random"]
    assert (data["revision"], len(data["digest"])) == (COMMIT, 64)
    assert load_units(["some/POPE"], world.select("pope"))[0].revision == COMMIT


def test_a_configuration_and_a_branch_can_be_named(remote):
    load_units(["some/POPE:Full@refs/convert/parquet"], world.select("pope"))
    assert set(remote) == {("some/POPE", "Full", "refs/convert/parquet")}


def test_the_hash_covers_words_truth_and_pictures(tmp_path):
    def digest(name, change):
        rows = pope_rows(splits=("random",))
        rows[1] |= change
        (unit,) = load_units([parquet(tmp_path / name, rows)], world.select("pope"))
        return unit.digest

    plain = digest("plain", {})
    assert digest("same", {}) == plain
    changes = ({"question": "Is it?"}, {"answer": "yes"}, {"question_id": "9"})
    others = [digest(f"other{n}", change) for n, change in enumerate(changes)]
    picture = pope_rows(splits=("random",))
    for row in picture[:2]:
        row["image"] = shown(99)
    others.append(load_units([parquet(tmp_path / "p", picture)], world.select("pope"))[0].digest)
    assert len({plain, *others}) == 5


def test_changed_data_are_refused_on_resume(tmp_path):
    def run(rows, strategy="greedy"):
        return run_eval(
            world.FakeEngine(),
            tasks=["pope"],
            strategies=[strategy],
            data=[parquet(tmp_path / "POPE", rows)],
            output=tmp_path / "run",
            progress=False,
        )

    rows = pope_rows()
    run(rows)
    before = (tmp_path / "run" / "run.json").read_bytes()
    rows[5]["answer"] = "yes"
    for strategy in ("greedy", "vcd"):  # also under a strategy that has no answers yet
        with pytest.raises(InvalidData, match="sample 2 of pope on POPE was answered for other"):
            run(rows, strategy)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


# Bad input


def test_missing_column_lists_the_found_ones_and_can_be_mapped(tmp_path):
    rows = [{("answers" if k == "answer" else k): v for k, v in r.items()} for r in pope_rows()]
    source = parquet(tmp_path / "POPE", rows)
    with pytest.raises(InvalidData, match="no column 'answer' or 'label' for answer; found quest"):
        load_units([source], world.select("pope"))
    units = load_units([source], world.select("pope", columns={"answer": "answers"}))
    assert len(units) == 2
    with pytest.raises(InvalidData, match="'reply' is none of question_id"):
        load_units([source], world.select("pope", columns={"reply": "answers"}))
    with pytest.raises(InvalidData, match="no column 'nope' for answer"):
        load_units([source], world.select("pope", columns={"answer": "nope"}))


def test_answer_that_is_neither_names_its_row(tmp_path):
    rows = pope_rows()
    rows[3]["answer"] = "maybe"
    with pytest.raises(InvalidData, match=r"\(test\), row 3: answer 'maybe' is neither yes nor no"):
        load_units([parquet(tmp_path / "POPE", rows)], world.select("pope"))


def test_another_kind_is_refused(tmp_path):
    rows = [{**row, "category": "poetry"} for row in pope_rows()]
    with pytest.raises(InvalidData, match=r"row 0: category 'poetry' is neither POPE's"):
        load_units([parquet(tmp_path / "set", rows)], world.select("pope"))
    source = parquet(tmp_path / "MME", mme_rows())
    with pytest.raises(InvalidData, match=r"No questions for pope in .*MME; it needs"):
        load_units([source], world.select("pope"))


def test_duplicate_ids_are_refused(tmp_path):
    rows = pope_rows()
    rows[1]["question_id"] = "1"
    with pytest.raises(InvalidData, match=r"row 1: id 1 was already used at .*row 0"):
        load_units([parquet(tmp_path / "POPE", rows)], world.select("pope"))


@pytest.mark.parametrize("limit", [None, 2])
def test_a_missing_picture_names_its_row(tmp_path, limit):
    rows = pope_rows(splits=("random",))
    rows[2]["image"] = None
    with pytest.raises(InvalidData, match=r"POPE \(test\), row 2: there is no picture"):
        load_units([parquet(tmp_path / "POPE", rows)], world.select("pope", limit=limit))


def test_a_broken_picture_fails_alone(tmp_path):
    rows = [{**row, "image": {"bytes": png(7), "path": None}} for row in pope_rows()]
    for row in rows[:2]:
        row["image"] = {"bytes": png(7)[:40], "path": None}
    report = run_eval(
        world.FakeEngine(),
        tasks=["pope"],
        strategies=["greedy"],
        data=[parquet(tmp_path / "POPE", rows)],
        output=tmp_path / "run",
        progress=False,
    )
    failures = world.lines(tmp_path / "run" / "errors.jsonl")
    assert report.failed == len(failures) == 4
    assert "POPE (test), row 0: the picture cannot be decoded" in failures[0]["error"]


def test_an_unreachable_set_is_one_sentence(monkeypatch):
    def load(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'some/POPE' on the Hub\n(no network)")

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    with pytest.raises(InvalidData) as caught:
        load_units(["some/POPE"], world.select("pope"))
    said = str(caught.value)
    assert "\n" not in said
    assert "some/POPE: the data set cannot be loaded (Couldn't reach 'some/POPE' on the Hub" in said
    assert "give the path of a folder" in said


def test_image_folder_that_lists_what_is_not_there(tmp_path):
    source = image_folder(tmp_path / "set")
    (source / "p1.png").unlink()
    for limit in (None, 2):
        with pytest.raises(InvalidData, match=r"p1\.png|metadata"):
            load_units([source], world.select("pope", limit=limit))


def test_a_broken_file_is_one_sentence(tmp_path):
    source = parquet(tmp_path / "POPE", pope_rows(), shards=2)
    (source / "test-00001-of-00002.parquet").write_bytes(b"gone")
    with pytest.raises(
        InvalidData, match=r"POPE: the data set cannot be loaded \(.*Parquet"
    ) as one:
        load_units([source], world.select("pope"))
    assert "\n" not in str(one.value)


def test_a_file_is_no_data_set(tmp_path):
    path = Path(parquet(tmp_path / "POPE", pope_rows())) / "test-00000-of-00001.parquet"
    with pytest.raises(InvalidData, match="is a file; give the folder it is in"):
        load_units([path], world.select("pope"))
