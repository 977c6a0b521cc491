"""MIHBench: several pictures reach the model in order, from files and from a table of lists."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from halludecode.core.errors import InvalidData, InvalidRequest
from halludecode.evals.benchmarks.mihbench import MIHBench
from halludecode.evals.data.samples import EvalImage
from halludecode.evals.load import load_units
from halludecode.evals.runner.run import run_eval
from tests.support import eval_world as world

ROWS = [
    {"images": ["a.png", "b.png"], "question": "As many cups?", "label": "yes", "task": "count"},
    {"images": ["b.png", "a.png"], "question": "As many cups?", "label": "no", "task": "count"},
    {"images": ["a.png", "b.png", "c.png"], "question": "A dog in all?", "label": "no"}
    | {"task": "existence_random"},
]


def folder(root):
    world.write_lines(root / "mihbench.jsonl", ROWS)
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        world.picture(root / "images" / name, number)
    return root


class Watch(world.FakeEngine):
    """Keeps the red of every picture of a request."""

    def _one(self, request, strategy, scored):
        self.calls.append([image.getpixel((0, 0))[0] for image in request.images])
        return super()._one(request, strategy, scored)


def test_the_model_sees_all_pictures_in_order(tmp_path):
    engine = Watch()
    options = {"tasks": ["mihbench"], "strategies": ["greedy"], "progress": False}
    source = folder(tmp_path / "set")
    report = run_eval(engine, output=tmp_path / "run", data=[source], **options)
    assert report.failed == 0
    shown = [call for call in engine.calls if isinstance(call, list)]
    assert sorted(shown) == [[0, 40], [0, 40, 80], [40, 0]]
    lines = world.lines(tmp_path / "run" / "samples.jsonl")
    assert {x["id"]: x["image"] for x in lines} == {
        "count 1": "a.png + b.png",
        "count 2": "b.png + a.png",
        "existence_random 1": "a.png + b.png + c.png",
    }
    assert len({x["data_hash"] for x in lines}) == 3
    (entry,) = report.results["runs"]
    assert {"accuracy", "accuracy.count", "accuracy.existence_random"} <= entry["metrics"].keys()


def test_one_unreadable_picture_fails_its_questions_alone(tmp_path):
    source = folder(tmp_path / "set")
    (source / "images" / "c.png").write_bytes(b"\x00\x00\x00\x18ftypmp42")
    options = {"tasks": ["mihbench"], "strategies": ["greedy"], "progress": False}
    report = run_eval(world.FakeEngine(), output=tmp_path / "run", data=[source], **options)
    assert report.failed == 1
    (error,) = world.lines(tmp_path / "run" / "errors.jsonl")
    assert "c.png is a video, and only pictures are read: take frames from it" in str(error)


def test_a_table_of_lists_is_read(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    made = folder(tmp_path / "plain")
    rows = [{**x, "images": [str(made / "images" / n) for n in x["images"]]} for x in ROWS]
    feature = datasets.Features(
        {name: datasets.Value("string") for name in ("question", "label", "task")}
        | {"images": datasets.Sequence(datasets.Image())}
    )
    table = datasets.Dataset.from_list(rows, features=feature)
    (tmp_path / "hub").mkdir()
    table.to_parquet(tmp_path / "hub" / "test.parquet")
    for limit in (None, 2):
        (unit,) = load_units([tmp_path / "hub"], world.select("mihbench", limit=limit))
        reds = [[p.load().getpixel((0, 0))[0] for p in s.picture.all] for s in unit.samples]
        assert reds == [[0, 40], [40, 0], [0, 40, 80]][:limit]


@pytest.mark.parametrize("cell", ["a.png", [], ["a.png", 3]])
def test_what_is_no_list_of_pictures_is_named(tmp_path, cell):
    root = folder(tmp_path)
    world.write_lines(root / "mihbench.jsonl", [*ROWS, {**ROWS[0], "images": cell}])
    with pytest.raises(InvalidData, match=r'mihbench\.jsonl:4: "?images"? is .*list of file names'):
        load_units([root], world.select("mihbench"))


def test_joined_pictures_can_be_looked_at_side_by_side(tmp_path):
    for number, name in enumerate(("a", "b")):
        world.picture(tmp_path / name / "x.png", number)
    parts = [EvalImage.from_file(tmp_path / name / "x.png", f"{name}.png") for name in ("a", "b")]
    joined = EvalImage.joined(parts)
    sheet = Image.open(io.BytesIO(joined.read()))
    assert (joined.name, sheet.size) == ("a.png + b.png", (48, 16))
    assert [sheet.getpixel((x, 0))[0] for x in (0, 47)] == [0, 40]
    assert joined.digest != EvalImage.joined(parts[::-1]).digest
    assert parts[0].all == (parts[0],)


def test_metrics_are_by_task():
    lines = [
        {"id": n, "image": "a", "part": part, "answer": answer, "parsed": answer, "label": "yes"}
        | {"score": int(answer == "yes")}
        for n, (part, answer) in enumerate((("count", "yes"), ("count", "no"), ("existence", "no")))
    ]
    metrics = MIHBench().score(lines).metrics
    assert (metrics["accuracy"], metrics["accuracy.count"]) == (pytest.approx(1 / 3), 0.5)
    assert metrics["accuracy.existence"] == 0


def test_a_picture_that_is_a_video_says_what_to_do(tmp_path):
    (tmp_path / "x.png").write_bytes(b"\x1a\x45\xdf\xa3")
    with pytest.raises(InvalidRequest, match=r"x\.png is a video, .*'ffmpeg -i VIDEO -vf fps=1 "):
        EvalImage.from_file(tmp_path / "x.png", "x.png").load()
