import csv
import html
import io
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from halludecode import __version__
from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.evals.benchmarks.chair import CHAIR
from halludecode.evals.benchmarks.chair import object_words as words
from halludecode.evals.benchmarks.registry import BENCHMARKS
from halludecode.evals.report import gallery
from halludecode.evals.report.html import verdict, widths
from halludecode.evals.report.render import render
from halludecode.evals.results.build import Answers, Report
from halludecode.evals.results.chosen_samples import disputed
from halludecode.evals.results.kept_pictures import picture_path
from halludecode.evals.results.sections import Section
from halludecode.evals.results.terminal import comparison_tables
from halludecode.evals.runner import batching as batches
from halludecode.evals.runner.run import run_eval
from tests.support import eval_world as world

TABLES = {"family": "wordnet", "path": "tables"}
READER = words.reader(**TABLES)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    source = world.folder(root / "set", pictures=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(batches.BATCH, "hf", 4)
        report = run_eval(
            world.FakeEngine(model_id="tiny <model>"),
            tasks=["pope", "chair", "mme"],
            strategies=["greedy", "vcd", "pai"],
            data=[source],
            prompt_preset="opera",
            progress=False,
            output=root / "run",
        )
    return root / "run", report


class Page(HTMLParser):
    """Tags, attributes and the text inside chosen elements."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.struck, self.text = [], [], [], []
        self._open = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._open.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        self.text.append(data)
        if "s" in self._open:
            self.struck.append(data)


def test_page_is_self_contained(made):
    text = render([made[0]], "html")
    page = Page(text)
    words_only = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//\w|url\(|@import", words_only)
    assert not {"link", "iframe", "object", "base"} & set(page.tags)
    assert not re.search(r"<script[^>]*\ssrc", text)
    assert "default-src 'none'; img-src data:" in text  # the page forbids itself every request
    outside = [link for link in page.links if not link.startswith("data:image/jpeg;base64,")]
    assert len(outside) < len(page.links)
    assert all(link.startswith("#") and f'id="{link[1:]}"' in text for link in outside)


def test_page_escapes_what_comes_from_outside(made):
    text = render([made[0]], "html")
    assert "tiny <model>" not in text
    assert html.escape("tiny <model>") in text


def test_page_holds_every_number_of_the_table(made):
    folder, report = made
    text = " ".join(Page(render([folder], "html")).text)
    for entry in report.results["runs"]:
        for column in BENCHMARKS.get(entry["task"]).metrics:
            value = entry["metrics"][column.name]["value"] * column.scale
            assert f"{value:.1f}" in text
    for word in ("POPE on set", "CHAIR on set", "MME on set", "0123", f"halludecode {__version__}"):
        assert word in text
    assert "Stand-in" not in text


def test_testbed_is_marked_as_a_stand_in(made, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("run.json", "results.json", "samples.jsonl"):
        (folder / name).write_text((made[0] / name).read_text().replace("tiny <model>", "testbed"))
    assert "Stand-in model" in render([folder], "html")


def test_gallery_strikes_out_exactly_the_invented_objects(made):
    folder, _ = made
    text = render([folder], "html")
    page = Page(text[text.index("What was said") : text.index('id="browse"')])
    lines = [x for x in world.lines(folder / "samples.jsonl") if x["task"] == "chair"]
    shown = {name for name in page.text for line in lines if name == line["image"]}
    wrong = [w for line in lines for w in line["parsed"]["hallucinated"]]
    assert sorted(page.struck[1:]) == sorted(wrong)  # the first is the legend
    assert not shown - {line["image"] for line in lines}
    assert "picture not kept" not in text[: text.index('id="browse"')]


def strike(caption, objects):
    return gallery.strike(caption, CHAIR.mentions(caption, {"objects": objects}, TABLES))


def test_strike_marks_words_by_object_and_keeps_the_caption():
    marked, count = strike("A puppy & a fire hydrant near two Cars.", ["dog"])
    assert count == 2
    assert marked.startswith('A <span class="true">puppy</span> &amp; a <s class="wrong"')
    assert re.findall(r"<s [^>]*>(.*?)</s>", marked) == ["fire hydrant", "Cars"]
    assert marked.count("\N{BALLOT X}") == 2  # a mark besides colour


@given(
    st.lists(st.sampled_from(["dog", "a bus", "<b>", "&", "cups", "hot dogs", "sky", ". "])),
    st.lists(st.sampled_from(["dog", "bus", "cup"]), unique=True),
)
def test_strike_loses_no_letter(parts, objects):
    caption = " ".join(parts)
    marked, count = strike(caption, objects)
    bare = re.sub(r"<sup[^>]*>.*?</sup>", "", marked)
    bare = re.sub(r"</?(?:s|span)\b[^>]*>", "", bare)
    assert html.unescape(bare) == caption
    said = READER.read(caption).objects
    assert count == sum(name not in objects for name in said)


def test_unknown_truth_marks_nothing():
    assert strike("a <dog>", None) == ("a &lt;dog&gt;", None)


def test_gallery_takes_the_pictures_strategies_disagree_on():
    def line(wrong):
        return {"parsed": {"hallucinated": ["dog"] * wrong}}

    lines = {"greedy": {None: {1: line(1), 2: line(3), 3: line(0)}}}
    lines["vcd"] = {None: {1: line(1), 2: line(1), 3: line(1)}}
    group = Answers("chair", "d", {}, lines)
    assert disputed(group, 2) == [2, 3]


def test_picture_names_from_data_stay_in_the_folder(tmp_path):
    for data, name in (("../up", "../../etc/x.png"), ("a/b", "/root/y.png")):
        path = picture_path(tmp_path, data, name).resolve()
        assert path.is_relative_to(tmp_path.resolve() / "pictures")


@pytest.mark.parametrize(
    ("low", "high", "lower", "said"),
    [
        (0.1, 0.3, False, "better"),
        (0.1, 0.3, True, "worse"),
        (-0.3, -0.1, True, "better"),
        (-0.3, -0.1, False, "worse"),
        (0.1, 0.3, None, "changed"),
        (-0.1, 0.3, False, "open"),
        (0.0, 0.3, False, "open"),
    ],
)
def test_verdict_follows_the_interval_and_the_direction(low, high, lower, said):
    assert verdict({"value": (low + high) / 2, "low": low, "high": high}, lower) == said


def test_paragraph_on_widths_states_half_widths():
    entries = {
        ("greedy", None): {"metrics": {"chair_i": {"value": 0.2, "low": 0.15, "high": 0.27}}}
    }
    gaps = {("vcd", None): {"metrics": {"chair_i": {"value": 0.1, "low": 0.06, "high": 0.14}}}}
    said = widths(Section("chair", "d", entries, gaps))
    assert said.startswith("CHAIR_i is known to about ±6.0 points.")
    assert "known to about ±4.0" in said
    assert widths(Section("chair", "d", {}, {})) == ""


def test_csv_has_one_line_per_metric(made):
    folder, report = made
    rows = list(csv.DictReader(io.StringIO(render([folder], "csv"))))
    assert len(rows) == sum(len(e["metrics"]) for e in report.results["runs"])
    row = next(
        r
        for r in rows
        if (r["task"], r["strategy"], r["metric"]) == ("chair", "vcd(alpha=1.0)", "chair_i")
    )
    (gap,) = (
        g
        for g in report.results["differences"]
        if (g["task"], g["strategy"]) == ("chair", "vcd(alpha=1.0)")
    )
    assert float(row["difference"]) == gap["metrics"]["chair_i"]["value"]
    matched = gap["controls"]["length"]["matched"]["metrics"]["chair_i"]
    assert (row["control"], float(row["control_low"])) == ("length", matched["low"])
    greedy = [r for r in rows if r["strategy"] == "greedy"]
    assert greedy and not any(r["difference"] or r["control"] for r in greedy)


def test_markdown_tables_are_rectangular(made):
    text = render([made[0]], "md")
    widths_of = [
        {line.count("|") for line in block.splitlines() if line.startswith("|")}
        for block in text.split("\n## ")[1:]
    ]
    assert [len(counts) for counts in widths_of] == [1, 1, 1, 0]  # the last is the recipe
    assert "vcd" in text


def test_markdown_marks_nothing_up_by_accident(made, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(made[0], folder)
    run = (folder / "run.json").read_text()
    (folder / "run.json").write_text(run.replace('"spec": "vcd"', '"spec": "a*b|c`d<i>[e](f)"'))
    text = render([folder], "md")
    assert r"| a\*b\|c\`d\<i>[e]\(f) |" in text
    assert "fake" not in text
    stars = re.sub(r"\\\*", "", text)
    assert "*" not in stars


def test_several_runs_in_one_report(made, tmp_path):
    other = tmp_path / "else" / "run"
    shutil.copytree(made[0], other)
    text = render([made[0], other, made[0]], "html")
    home = made[0].parent.name
    heads = re.findall(r'<h2 class="run">Run ([^<]+)<', text)
    assert heads == [f"{home}/run", "else/run", f"{home}/run (2)"]
    assert text.count('id="browse"') == 1
    rows = list(csv.DictReader(io.StringIO(render([made[0], other], "csv"))))
    assert {row["run"] for row in rows} == {f"{home}/run", "else/run"}
    render([made[0], other], "lmms-eval", tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"{home}_run", "else_run"}


# A benchmark that is gone ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gone(made, tmp_path_factory):
    """The run as it was made with a plugin's benchmarks, which nobody has installed here."""
    folder = tmp_path_factory.mktemp("gone") / "run"
    shutil.copytree(made[0], folder)
    names = {"pope": "naturalpope", "chair": "longcaptions"}
    for name in ("run.json", "results.json"):
        text = (folder / name).read_text()
        for known, stranger in names.items():
            text = text.replace(f'"{known}"', f'"{stranger}"')
        (folder / name).write_text(text)
    lines = world.lines(folder / "samples.jsonl")
    for line in lines:
        line["task"] = names.get(line["task"], line["task"])
    world.write_lines(folder / "samples.jsonl", lines)
    return folder


def test_a_benchmark_that_is_gone_is_shown_under_the_names_of_its_metrics(gone):
    shown = render([gone], "md")
    table = shown[shown.index("## NATURALPOPE on set") : shown.index("## LONGCAPTIONS on set")]
    assert "random accuracy | random precision" in table
    (entry,) = (
        e
        for e in json.loads((gone / "results.json").read_text())["runs"]
        if (e["task"], e["split"], e["strategy"]) == ("naturalpope", "random", "greedy")
    )
    assert f"{entry['metrics']['precision']['value']:.3f} [" in table
    assert "No benchmark 'naturalpope' is installed here" in shown
    assert "MME total" in shown


def test_a_benchmark_that_is_gone_is_no_reason_to_fail(gone, tmp_path):
    text = render([gone], "html")
    assert "NATURALPOPE on set" in text and "LONGCAPTIONS on set" in text
    rows = list(csv.DictReader(io.StringIO(render([gone], "csv"))))
    assert {row["task"] for row in rows} == {"naturalpope", "longcaptions", "mme"}
    assert not any(row["control"] for row in rows)
    render([gone], "lmms-eval", tmp_path / "lmms")
    (path,) = (tmp_path / "lmms").glob("*vcd/*_results.json")
    assert set(json.loads(path.read_text())["results"]) == {"mme"}
    render([gone], "vlmevalkit", tmp_path / "kit")
    assert any("NATURALPOPE" in p.name for p in (tmp_path / "kit").iterdir())


def test_tables_of_a_benchmark_that_is_gone_fit(gone):
    results, run = (json.loads((gone / f"{name}.json").read_text()) for name in ("results", "run"))
    for table in (
        Report(results, gone, run).table(),
        comparison_tables(results["differences"], {}),
    ):
        file = io.StringIO()
        Console(width=120, file=file).print(table)
        shown = file.getvalue()
        assert "NATURALPOPE" in shown and "LONGCAPTIONS" in shown
        assert max(map(len, shown.splitlines())) <= 120


def test_output_file_is_written(made, tmp_path):
    path = render([made[0]], "html", tmp_path / "deep" / "r.html")
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_wrong_use_is_named(made, tmp_path):
    with pytest.raises(InvalidParameter, match="'pdf'; the known ones are html, md, csv"):
        render([made[0]], "pdf")
    with pytest.raises(InvalidData, match=r"no results\.json"):
        render([tmp_path], "html")


def test_results_json_is_not_changed_by_reporting(made):
    before = (made[0] / "results.json").read_text()
    render([made[0]], "html")
    assert (made[0] / "results.json").read_text() == before
    assert json.loads(before)["schema"] == 1
