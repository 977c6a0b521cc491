"""Answers made elsewhere as a run folder, and two files of them compared at once."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from halludecode.cli.answers import compared, named
from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.evals.data.run_files import read_json, read_lines
from halludecode.evals.report.render import render
from halludecode.evals.results.compare import compare_runs, compare_seeds
from halludecode.evals.runner.import_answers import import_answers
from halludecode.evals.runner.score_file import score_predictions

OBJECTS = ("lamp", "sled", "kite", "drum", "vase", "fork")
QUESTIONS = [
    {
        "question_id": n,
        "image": f"{n // 2}.jpg",
        "text": f"Is there a {thing} in the image?",
        "label": ("yes", "no")[n % 2],
    }
    for n, thing in enumerate(OBJECTS)
]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def asked(tmp_path):
    return lines(tmp_path / "questions.jsonl", QUESTIONS)


def said(path, words, key="answer"):
    return lines(path, [{"question_id": n, key: w} for n, w in enumerate(words)])


@pytest.fixture
def two(tmp_path):
    """A system that is right throughout, and one that denies the first three."""
    return {
        "vcd": said(tmp_path / "a.jsonl", ["Yes", "No"] * 3),
        "greedy": said(tmp_path / "b.jsonl", ["No", "No", "No", "No", "Yes", "No"], "text"),
    }


def test_a_run_folder_that_compare_and_report_take(tmp_path, asked, two):
    stated = {"model": "a model", "temperature": 0.0}
    made = import_answers("pope", two, annotations=asked, output=tmp_path / "run", stated=stated)
    (gap,) = compare_runs([str(tmp_path / "run")]).differences
    assert (gap["strategy"], gap["baseline"], gap["n"]) == ("vcd", "greedy", 6)
    assert gap["metrics"]["accuracy"]["value"] == pytest.approx(1 / 3)
    assert {"p", "p_holm", "low", "high"} <= gap["metrics"]["accuracy"].keys()
    run = read_json(tmp_path / "run" / "run.json")
    assert (run["model"], run["engine"], run["answers"]) == ("a model", "imported", "as_written")
    assert run["imported"]["stated"] == stated
    assert len(run["strategies"]["vcd"]["files"][str(two["vcd"])]) == 64
    assert "'text'" in made.told[1]
    for format in ("html", "md", "csv"):
        render([tmp_path / "run"], format, tmp_path / f"out.{format}")
    scored = score_predictions("pope", two["greedy"], asked)["metrics"]
    (entry,) = [
        e for e in made.results["runs"] if (e["strategy"], e["split"]) == ("greedy", "mean")
    ]
    assert {n: v["value"] for n, v in entry["metrics"].items()} == {
        n: v["value"] for n, v in scored.items()
    }


def test_what_not_all_answered_is_left_out_and_counted(tmp_path, asked, two):
    lines(two["greedy"], [{"question_id": n, "answer": "No"} for n in (2, 3)])
    made = import_answers("pope", two, annotations=asked, output=tmp_path / "run")
    entries = {e["strategy"]: e for e in made.results["runs"] if e["split"] != "mean"}
    assert (entries["vcd"]["n"], entries["vcd"]["left_out"]) == (2, 4)
    assert (entries["greedy"]["n"], entries["greedy"].get("left_out", 0)) == (2, 0)
    assert len(read_lines(tmp_path / "run" / "samples.jsonl")) == 8
    (gap,) = compare_runs([str(tmp_path / "run")]).differences
    assert gap["left_out"] == {"strategy": 4, "baseline": 0}
    lines(two["greedy"], [{"question_id": 2, "answer": "No"}])
    lines(two["vcd"], [{"question_id": 3, "answer": "No"}])
    with pytest.raises(InvalidData, match="vcd and greedy have no answered sample in common"):
        import_answers("pope", two, annotations=asked, output=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def shown(made):
    """What a terminal shows, in one line."""
    console = Console(width=400, file=io.StringIO())
    console.print(made)
    return " ".join(console.file.getvalue().split())


def test_what_numbers_hide_is_said_by_import_compare_and_score_alike(tmp_path, asked, two):
    """Words of no rule, few pictures, samples without an answer, what one side answered alone."""
    said(two["vcd"], ["Ja", "Nein"] * 3)
    lines(two["greedy"], [{"question_id": n, "answer": "No"} for n in (2, 3)])
    made = import_answers("pope", two, annotations=asked, output=tmp_path / "run")
    neither = "answers hold neither yes nor no as a word; rule official leaves 0 unread"
    for text in (
        f"vcd, pope on questions: 2 of 2 {neither} and counts the others as yes or no.",
        "pope on questions: only 1 picture or pair to resample: intervals say little",
        "vcd, pope on questions: left out, as not all answered the same: 4 of its answers.",
    ):
        assert text in shown(made.table())
    assert "time/ token" not in shown(made.table())  # nobody timed them
    assert "samples have no answer" not in shown(made.table())
    few = import_answers(
        "pope", {"greedy": two["greedy"]}, annotations=asked, output=tmp_path / "few"
    )
    assert "questions: 4 of 6 samples have no answer." in shown(few.table())
    render([tmp_path / "run"], "html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "left out, as not all answered the same: 4 of its answers." in page
    assert "temperature not stated" in page and "time per token" not in page
    assert not {"on None", "weights None", "None (None)"} & set(re.findall(r"\w+ \(?None\)?", page))
    render([tmp_path / "run"], "md", tmp_path / "page.md")
    assert "time/token" not in (tmp_path / "page.md").read_text()
    found = compared([str(two["vcd"]), str(two["greedy"])], "pope", {"annotations": asked})
    for table in (found.summary(), found.table()):
        text = shown(table)
        assert f"a, pope on questions (questions): 2 of 2 {neither}" in text
        assert "left out, as only one side answered: 4 of a, 0 of b." in text
        assert "no difference can be sure" in text
    told = score_predictions("pope", two["vcd"], asked)["told"]
    assert any(sentence.startswith(f"6 of 6 {neither}") for sentence in told)


def test_captions_of_nothing_are_named_by_import_and_compare(tmp_path):
    say = {"a": ["A dog.", "A cat."], "b": ["", "\u732b"], "c": ["A dog.", ""]}
    files = {
        name: lines(
            tmp_path / f"{name}.jsonl",
            [{"image_id": i, "caption": text} for i, text in zip((42, 73), texts, strict=True)],
        )
        for name, texts in say.items()
    }
    made = import_answers("chair", {"greedy": files["a"], "b": files["b"]}, output=tmp_path / "run")
    assert "b, chair on coco: 1 of 2 captions are empty (image 42)" in shown(made.table())
    assert "b, chair on coco: 1 of 2 captions name none of the 80 objects" in shown(made.table())
    assert "b, chair on coco: CHAIR_i: nothing to divide by" in shown(made.table())
    found = compared([str(files["c"]), str(files["a"])], "chair", {})
    assert "c, chair on coco: 1 of 2 captions are empty (image 73)" in shown(found.summary())


def test_one_picture_makes_no_difference_sure(tmp_path):
    sides = {name: tmp_path / f"{name}.jsonl" for name in ("good", "bad")}
    lines(sides["good"], [{"image_id": 42, "caption": "A street."}])
    lines(sides["bad"], [{"image_id": 42, "caption": "A giraffe, a kite, a pizza, a bed."}])
    found = compared([str(path) for path in sides.values()], "chair", {})
    (gap,) = found.differences
    assert gap["metrics"]["chair_i"]["p"] == 1
    assert "sure:" not in shown(found.summary())


def test_results_with_their_own_questions_are_not_called_coco(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    rows = ["p1.jpg\tIs there a cup?\tYes\tYes", "p1.jpg\tIs there a bed?\tNo\tNo"]
    (folder / "existence.txt").write_text("\n".join(rows) + "\n")
    made = import_answers("mme", {"greedy": folder}, output=tmp_path / "run")
    assert {e["data"] for e in made.results["runs"]} == {"MME"}


def test_a_list_of_pictures_holds_for_imports_too(tmp_path):
    answers = lines(tmp_path / "a.jsonl", [{"image_id": 42, "caption": "A dog."}])
    wanted = tmp_path / "ids.txt"
    for ids, why in (("42\n73\n", "1 of the 2 image ids asked for are missing"), ("73\n", "42")):
        wanted.write_text(ids)
        with pytest.raises(InvalidData, match=why):
            import_answers("chair", {"greedy": answers}, output=tmp_path / "r", image_ids=wanted)


def test_several_instances_files_are_one_truth_for_imports(tmp_path):
    """Train and val of COCO side by side, each with its captions; as for ``score``."""
    category = {"id": 18, "name": "dog"}
    for split, image, said_there in (("train", 42, "A cat."), ("val", 73, "A bus.")):
        picture = {"id": image, "file_name": f"COCO_{split}2014_{image:012d}.jpg"}
        objects = [{"id": image, "image_id": image, "category_id": 18}]
        (tmp_path / f"instances_{split}2014.json").write_text(
            json.dumps({"images": [picture], "annotations": objects, "categories": [category]})
        )
        caption = {"id": 1, "image_id": image, "caption": said_there}
        (tmp_path / f"captions_{split}2014.json").write_text(
            json.dumps({"images": [picture], "annotations": [caption]})
        )
    texts = {42: "A dog and a cat.", 73: "A dog and a cat."}
    answers = lines(
        tmp_path / "a.jsonl", [{"image_id": i, "caption": text} for i, text in texts.items()]
    )
    options = {"annotations": tmp_path, "output": tmp_path / "run"}
    made = import_answers("chair", {"greedy": answers}, **options)
    (entry,) = made.results["runs"]
    assert (entry["n"], entry["metrics"]["chair_i"]["value"]) == (2, 0.25)  # no cat in 73
    assert sum("instances and the captions of" in told for told in made.told) == 2
    scored = score_predictions("chair", answers, tmp_path)
    assert scored["metrics"]["chair_i"]["value"] == 0.25


def test_bad_input_leaves_nothing_half_written(tmp_path, asked, two):
    two["greedy"].write_text('{"question_id": 1, "answer": 3}\n')
    with pytest.raises(InvalidData, match=r'b\.jsonl:1: "answer" is 3'):
        import_answers("pope", two, annotations=asked, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    two["greedy"] = said(tmp_path / "b.jsonl", ["No"] * 6)
    import_answers("pope", two, annotations=asked, output=tmp_path / "run")
    with pytest.raises(InvalidData, match="holds a run already; choose another output folder"):
        import_answers("pope", two, annotations=asked, output=tmp_path / "run")
    with pytest.raises(InvalidData, match="'speed' cannot be stated"):
        import_answers("pope", two, annotations=asked, output="x", stated={"speed": 1})


def test_seeds_as_stated(tmp_path, asked, two):
    for seed in range(3):
        folder = tmp_path / f"run{seed}"
        stated = {"temperature": 1.0}
        import_answers("pope", two, annotations=asked, output=folder, seed=seed, stated=stated)
    spread = compare_seeds([str(tmp_path / f"run{seed}") for seed in range(3)])
    assert spread.seeds == (0, 1, 2)


def test_two_files_at_once(tmp_path, asked, two):
    found = compared([str(two["vcd"]), str(two["greedy"])], "pope", {"annotations": asked})
    (gap,) = found.differences
    assert (gap["strategy"], gap["baseline"]) == ("a", "b")
    assert found.to_dict()["read"][0].startswith(f"a: {two['vcd']}: 6 answers from 'answer'")
    renamed = [f"vcd={two['vcd']}", f"greedy={two['greedy']}"]
    (gap,) = compared(renamed, "pope", {"annotations": asked}).differences
    assert (gap["strategy"], gap["baseline"]) == ("vcd", "greedy")
    with pytest.raises(InvalidParameter, match="say to what: --task pope"):
        compared(renamed, None, {})
    with pytest.raises(InvalidParameter, match="two or three files of answers, not 1"):
        compared(renamed[:1], "pope", {})


def test_names_of_predictions():
    assert named(["a=x.jsonl", "b=y", "b=z"]) == {"a": "x.jsonl", "b": ["y", "z"]}
    with pytest.raises(InvalidParameter, match=r"write NAME=FILE, such as greedy=x\.jsonl"):
        named(["x.jsonl"])


def test_our_own_samples_are_read_again(tmp_path, asked, two):
    import_answers("pope", two, annotations=asked, output=tmp_path / "run")
    samples = tmp_path / "run" / "samples.jsonl"
    with pytest.raises(InvalidData, match="holds answers of several strategies: vcd, greedy"):
        score_predictions("pope", samples, asked)
    both = {"vcd": samples, "greedy": samples}
    again = import_answers("pope", both, annotations=asked, output=tmp_path / "again")
    render([tmp_path / "run"], "lmms-eval", tmp_path / "theirs")
    (theirs,) = (tmp_path / "theirs").glob("*vcd/*samples*.jsonl")
    assert score_predictions("pope", theirs, asked)["metrics"]["accuracy"]["value"] == 1.0
    render([tmp_path / "run"], "vlmevalkit", tmp_path / "kit")
    (table,) = (tmp_path / "kit").glob("*vcd*.tsv")
    assert score_predictions("pope", table, asked)["metrics"]["accuracy"]["value"] == 1.0
    accuracy = {
        e["strategy"]: e["metrics"]["accuracy"]["value"]
        for e in again.results["runs"]
        if e["split"] == "mean"
    }
    assert accuracy == {"vcd": 1.0, "greedy": pytest.approx(2 / 3)}


def test_captions(tmp_path):
    rows = {"a": "A bowl of broccoli.", "b": "A bowl, broccoli and a cat."}
    files = {n: lines(tmp_path / n, [{"image_id": 9, "caption": c}]) for n, c in rows.items()}
    made = import_answers("chair(path=tables)", files, output=tmp_path / "run")
    entries = {e["strategy"]: e["metrics"]["chair_i"]["value"] for e in made.results["runs"]}
    assert entries == {"a": 0.0, "b": pytest.approx(1 / 3)}
    (gap,) = compare_runs([f"{tmp_path / 'run'}:b", f"{tmp_path / 'run'}:a"]).differences
    assert gap["metrics"]["chair_s"]["value"] == 1.0
    assert any("path tables" in sentence for sentence in made.told)
