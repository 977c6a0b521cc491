import json
import re

import pytest

from halludecode.core.errors import InvalidData, InvalidRequest
from halludecode.evals.demo import CLAIMS, SOURCES, STRATEGIES, _told, released, run_demo
from halludecode.evals.results.build import Report
from tests.support import eval_world as world


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALLUDECODE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def demo(cache, testbed, tmp_path_factory):
    """The real model on a few pictures, under the strategies of the demo."""
    output = tmp_path_factory.mktemp("demo") / "run"
    few = {"images_per_split": 2, "mme_pairs": 5, "planted_images": 1}
    report = run_demo(output, progress=False, engine=testbed, **few)
    return output, report


def test_demo_scores_every_strategy_on_every_task_and_source(demo):
    output, report = demo
    runs = json.loads((output / "results.json").read_text())["runs"]
    found = {(e["task"], e["data"], e["split"]) for e in runs}
    assert found == {
        (task, data, split)
        for data in SOURCES
        for task, split in (
            ("pope", "random"),
            ("pope", "adversarial"),
            ("pope", "mean"),
            ("chair", None),
            ("mme", None),
        )
    }
    assert len(runs) == len(found) * len(STRATEGIES)
    assert report.failed == 0
    sizes = {(e["task"], e["split"]): e["n"] for e in runs}
    assert sizes == {
        ("pope", "random"): 12,
        ("pope", "adversarial"): 12,
        ("pope", "mean"): 24,
        ("chair", None): 2,
        ("mme", None): 10,
    }


def test_demo_leaves_a_page_and_pictures(demo):
    output, _ = demo
    page = (output / "report.html").read_text()
    assert "Stand-in model" in page
    gallery, samples = page[page.index("What was said") :].split('id="browse"')
    assert gallery.count("data:image/jpeg;base64,") == 4
    assert samples.count("data:image/jpeg;base64,") >= 4
    assert len(list((output / "pictures").rglob("*.png"))) >= 4
    for strategy in STRATEGIES:
        assert f">{strategy}<" in page


def test_margin_points_to_the_answer_under_greedy(demo):
    output, _ = demo
    lines = [x for x in world.lines(output / "samples.jsonl") if x["strategy"] == "greedy"]
    told = [x for x in lines if x["task"] != "chair" and abs(x["margin"]) > 1e-4]
    assert len(told) > 50
    assert all((x["margin"] > 0) == (x["parsed"] == "yes") for x in told)


def test_the_model_sees_its_pictures(demo):
    _, report = demo
    (entry,) = (
        e
        for e in report.results["runs"]
        if (e["data"], e["split"], e["strategy"]) == ("testbed-iid", "random", "greedy")
    )
    assert entry["metrics"]["accuracy"]["value"] > 0.7


def test_strategies_do_something(demo):
    output, _ = demo
    captions = {}
    for line in world.lines(output / "samples.jsonl"):
        if line["task"] == "chair":
            captions.setdefault(line["strategy"].split("(")[0], []).append(line["answer"])
    assert captions["vcd"] != captions["greedy"]


def test_var_edits_where_sinks_are_planted(demo):
    output, report = demo
    folder = output / "planted"
    results, run = (json.loads((folder / f).read_text()) for f in ("results.json", "run.json"))
    *_, ours, theirs = _told(report, Report(results, folder, run))
    assert "testbed-planted" in theirs.title
    (told,) = theirs.columns[2].cells
    assert re.search(r"It edited something in (\d+) of \1 answers\.", told)
    told = dict(zip(*(column.cells for column in ours.columns[1:]), strict=True))
    assert set(told) == set(STRATEGIES) - {"greedy"}
    assert "It edited something in 0 of" in told["var"] and "changed none of" in told["var"]


def test_demo_resumes(cache, tmp_path):
    options = {"images_per_split": 2, "mme_pairs": 2, "planted_images": 0}
    options["strategies"] = ("greedy", "vcd")
    with pytest.raises(KeyboardInterrupt):
        engine = world.FakeEngine(model_id="testbed", stop_after=3)
        run_demo(tmp_path / "run", progress=False, engine=engine, **options)
    engine = world.FakeEngine(model_id="testbed")
    report = run_demo(tmp_path / "run", progress=False, engine=engine, **options)
    whole = run_demo(
        tmp_path / "whole",
        progress=False,
        engine=world.FakeEngine(model_id="testbed"),
        **options,
    )
    assert world.timeless(report.results) == world.timeless(whole.results)


def test_demo_prints_its_table(cache, tmp_path, capsys):
    engine = world.FakeEngine(model_id="testbed")
    run_demo(tmp_path / "run", None, 2, 2, ("greedy", "vcd"), engine=engine, planted_images=0)
    out = capsys.readouterr().out
    assert "CHAIR on testbed-broken" in out
    assert "report.html" in out
    assert max(map(len, out.splitlines())) <= max(120, len(str(tmp_path)) + 40)


def test_own_picture_is_described_and_not_scored(tmp_path, capsys):
    world.picture(tmp_path / "my <pic>.png", 3)
    engine = world.FakeEngine(model_id="testbed")
    page = run_demo(tmp_path / "out", tmp_path / "my <pic>.png", engine=engine)
    text = page.read_text()
    assert page == tmp_path / "out" / "report.html"
    for strategy in STRATEGIES:
        assert f">{strategy}<" in text
    assert "Nothing is scored" in text
    assert "<table>" not in text  # no table of scores
    assert '<s class="wrong"' not in text
    assert not re.search(r"https?:", text)
    assert "my &lt;pic&gt;.png" in text
    answers = json.loads((tmp_path / "out" / "results.json").read_text())["answers"]
    assert set(answers) == set(STRATEGIES)
    assert answers["greedy"]["answer"] in capsys.readouterr().out
    assert (tmp_path / "out" / "pictures" / "my <pic>.png").is_file()


def test_unreadable_picture_is_named(tmp_path):
    (tmp_path / "x.png").write_text("hello")
    with pytest.raises(InvalidRequest, match=r"x\.png: the picture cannot be decoded"):
        run_demo(tmp_path / "out", tmp_path / "x.png", engine=world.FakeEngine("testbed"))
    with pytest.raises(InvalidData, match=r"gone\.png: the picture cannot be opened"):
        run_demo(tmp_path / "out", tmp_path / "gone.png", engine=world.FakeEngine("testbed"))


def test_demo_ends_with_four_claims_about_real_models(tmp_path):
    table, sentence = released()
    claims, metrics, values, gaps, left = (list(column.cells) for column in table.columns)
    assert len(claims) == len(CLAIMS) == 4
    assert metrics == ["CHAIR_s", "CHAIR_s", "CHAIR_s", "accuracy"]
    assert values == ["55.8, 36.0", "44.8, 37.0", "47.4, 18.0", "82.2, 83.3"]
    assert gaps[3] == "+1.1* [+0.1, +2.1]"
    assert "stands" not in left
    assert "published_claims.md" in sentence
    (alone,) = released(tmp_path / "absent")
    assert "in the repository" in alone
