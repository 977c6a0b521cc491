"""AMBER and HallusionBench as tasks of ``eval``: files, prompts, budgets, scores from lines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from halludecode.core.errors import InvalidData, MissingExtra
from halludecode.evals.benchmarks.amber import description_words as amber_words
from halludecode.evals.benchmarks.amber import scoring as amber
from halludecode.evals.benchmarks.hallusionbench import scoring as hallusion
from halludecode.evals.data.run_files import read_lines
from halludecode.evals.load import load_units
from halludecode.evals.report.render import render
from halludecode.evals.runner import batching as batches
from halludecode.evals.runner.run import run_eval
from tests.support import eval_world as world

DATA = Path(__file__).parents[2] / "data" / "amber"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small batches, and nouns without NLTK."""
    monkeypatch.setitem(batches.BATCH, "hf", 4)

    def split(text):
        return text.replace(".", "").split()

    monkeypatch.setattr(amber_words, "nltk_nouns", lambda: split)


def run(output, source, task, engine=None, **more):
    options = {"tasks": [task], "strategies": ["greedy", "vcd"], "prompt_preset": "llava-1.5"}
    options |= {"progress": False, "data": [source], "output": output, **more}
    return run_eval(engine or world.FakeEngine(), **options)


def amber_folder(root, kinds=("generative", "discriminative")):
    """AMBER's repository in small: five items of each type about seven pictures."""
    data = root / "data"
    (data / "query").mkdir(parents=True)
    for name in ("relation.json", "safe_words.txt"):
        shutil.copyfile(DATA / name, data / name)
    lexicon = amber.load_lexicon(DATA)
    counts, items = {}, []
    for item in json.loads((DATA / "annotations.json").read_text()):
        counts[item["type"]] = counts.get(item["type"], 0) + 1
        if counts[item["type"]] <= 5 and set(item.get("hallu", ())) <= set(lexicon.relation):
            items.append(item)
    (data / "annotations.json").write_text("[" + ",\n".join(map(json.dumps, items)) + "]")
    for kind in kinds:
        mine = [i for i in items if i["type"].startswith("gen") == (kind == "generative")]
        queries = []
        for n, item in enumerate(mine):
            image = f"AMBER_{n % 7}.jpg"
            ask = "Describe this image." if kind == "generative" else f"Is it {item['id']}?"
            queries.append({"id": item["id"], "image": image, "query": ask})
            world.picture(root / "image" / image, n % 7)
        path = data / "query" / f"query_{kind}.json"
        path.write_text("[" + ",\n".join(map(json.dumps, queries)) + "]")
    return root


def hallusion_folder(root, figures=True):
    """Three sets: one asked with and without figures, two of original and edited figures."""
    questions = []
    for category, subcategory, set_id, count in (
        ("VS", "chart", "0", 3),
        ("VD", "illusion", "0", 2),
        ("VD", "map", "0", 2),
    ):
        for figure in range(count):
            name = f"./{category}/{subcategory}/{set_id}_{figure}.png"
            none = category == "VS" and figure == 0
            shift = figure if category == "VS" else figure + 1
            for question in range(2):
                questions.append(
                    {
                        "category": category,
                        "subcategory": subcategory,
                        "visual_input": str(min(shift, 2)),
                        "set_id": set_id,
                        "figure_id": str(figure),
                        "question_id": str(question),
                        "question": f"Is {subcategory} {question} right?",
                        "gt_answer": str((figure + question) % 2),
                        "filename": None if none else name,
                    }
                )
            if figures and not none:
                world.picture(root / "hallusion_bench" / name, len(questions))
    root.mkdir(exist_ok=True)
    path = root / "HallusionBench.json"
    path.write_text("[" + ",\n".join(map(json.dumps, questions)) + "]")
    return root


def entries(report):
    return {e["strategy"]: e for e in report.results["runs"]}


# AMBER


def test_amber_results_are_those_of_score(tmp_path):
    source = amber_folder(tmp_path / "AMBER")
    report = run(tmp_path / "run", source, "amber")
    lines = read_lines(tmp_path / "run" / "samples.jsonl")
    items, lexicon = amber.load_items(source / "data"), amber.load_lexicon(source / "data")
    for strategy, entry in entries(report).items():
        said = {x["id"]: x["answer"] for x in lines if x["strategy"] == strategy}
        wanted = amber.score(items, said, lexicon)
        assert entry["n"] == len(items) == wanted.n
        assert {n: v["value"] for n, v in entry["metrics"].items()} == wanted.metrics
        assert {"chair", "cover", "hal", "cog", "amber", "existence.f1"} <= wanted.metrics.keys()
        assert entry["unparsed"] == 0
    assert report.failed == 0


def test_amber_asks_descriptions_and_questions_with_budgets_of_their_own(tmp_path):
    engine = world.FakeEngine()
    run(tmp_path / "run", amber_folder(tmp_path / "AMBER"), "amber", engine)
    suffix = "\nAnswer the question using a single word or phrase."
    budgets = {p.removesuffix(suffix): n for p, n in engine.tokens}
    assert budgets.pop("Describe this image.") == 512  # as published, without a suffix
    assert set(budgets.values()) == {16}
    assert all(p.endswith(suffix) for p, n in engine.tokens if n == 16)
    recipe = json.loads((tmp_path / "run" / "run.json").read_text())
    tokens = {kind: s["max_new_tokens"] for kind, s in recipe["sampling"].items()}
    assert tokens == {"amber": 16, "amber/generative": 512}
    assert recipe["amber"] == {"similarity": "none"}


def test_amber_lines_hold_what_the_scorer_needs(tmp_path):
    run(tmp_path / "run", amber_folder(tmp_path / "AMBER"), "amber", strategies=["greedy"])
    for line in read_lines(tmp_path / "run" / "samples.jsonl"):
        described = line["type"] == "generative"
        assert ("objects" in line, "label" in line) == (described, not described)
        assert (line["margin"] is None) == described
        if described:
            assert {"nouns", "hallucinated", "covered", "thought_of"} == line["parsed"].keys()
            assert {"hallu", "lexicon"} <= line.keys()


def test_amber_is_asked_what_its_query_files_ask(tmp_path):
    source = amber_folder(tmp_path / "AMBER", kinds=("discriminative",))
    (unit,) = load_units([source], world.select("amber"))
    assert {s.label for s in unit.samples} <= {"yes", "no"}
    report = run(tmp_path / "run", source, "amber", strategies=["greedy"])
    assert "chair" not in entries(report)["greedy"]["metrics"]
    shutil.rmtree(source / "data" / "query")
    with pytest.raises(InvalidData, match=r"data: no query/query_\*\.json"):
        load_units([source], world.select("amber"))


def test_amber_limit_takes_pictures_with_everything_about_them(tmp_path):
    (unit,) = load_units([amber_folder(tmp_path / "AMBER")], world.select("amber", limit=2))
    pictures = {s.picture.name for s in unit.samples}
    assert pictures == {"AMBER_0.jpg", "AMBER_1.jpg"}
    (whole,) = load_units([tmp_path / "AMBER"], world.select("amber"))
    assert len(unit.samples) == sum(s.picture.name in pictures for s in whole.samples)


def test_amber_from_annotations_and_images(tmp_path):
    source = amber_folder(tmp_path / "AMBER")
    images = tmp_path / "elsewhere"
    (source / "image").rename(images)
    for given in (source / "data", source / "data" / "annotations.json"):
        (unit,) = load_units([], world.select("amber"), images, given)
        assert unit.key == ("amber", "elsewhere", None)
    with pytest.raises(InvalidData, match="holds amber annotations, and the tasks asked for are"):
        load_units([], world.select("pope"), images, source / "data" / "annotations.json")


def test_amber_bad_files_are_named_with_their_line(tmp_path):
    source = amber_folder(tmp_path / "AMBER")
    query = source / "data" / "query" / "query_discriminative.json"
    text = query.read_text()
    query.write_text(text.replace('"id": 1006', '"id": 1005'))
    with pytest.raises(InvalidData, match=r"query_discriminative\.json:2: id 1005 is asked diff"):
        load_units([source], world.select("amber"))
    query.write_text(text.replace('"id": 1006', '"id": 99999'))
    with pytest.raises(InvalidData, match=r"discriminative\.json:2: id 99999 is not in .*annot"):
        load_units([source], world.select("amber"))
    query.write_text(text.replace('"query": "Is it 1006', '"text": "Is it 1006'))
    with pytest.raises(InvalidData, match=r'discriminative\.json:2: key "query" is missing; the'):
        load_units([source], world.select("amber"))
    query.write_text(text)
    (source / "image" / "AMBER_3.jpg").unlink()
    with pytest.raises(InvalidData, match=r"query_generative\.json:4: picture .*AMBER_3\.jpg does"):
        load_units([source], world.select("amber"))


def test_amber_without_what_reads_descriptions_stops_before_the_model(tmp_path, monkeypatch):
    def none():
        raise MissingExtra("no NLTK")

    def load():
        raise AssertionError("the model was loaded")

    load.model_id = "some/model"
    monkeypatch.setattr(amber_words, "nltk_nouns", none)
    with pytest.raises(MissingExtra):
        run(tmp_path / "run", amber_folder(tmp_path / "AMBER"), "amber", load)


def test_other_word_lists_are_other_data(tmp_path):
    source = amber_folder(tmp_path / "AMBER")
    run(tmp_path / "run", source, "amber", strategies=["greedy"])
    path = source / "data" / "safe_words.txt"
    path.write_text(path.read_text() + "\ndog")
    with pytest.raises(InvalidData, match="sample 1 of amber on AMBER was answered for other dat"):
        run(tmp_path / "run", source, "amber", strategies=["greedy"])


def test_similarity_is_part_of_the_recipe(tmp_path):
    def always(a, b):
        return 1.0

    source = amber_folder(tmp_path / "AMBER")
    near = run(tmp_path / "run", source, "amber", strategies=["greedy"], similarity=always)
    assert near.run["amber"] == {"similarity": "always"}
    assert entries(near)["greedy"]["metrics"]["chair"]["value"] == 0.0
    with pytest.raises(InvalidData, match=r"amber\.similarity 'always', not 'none'"):
        run(tmp_path / "run", source, "amber", strategies=["greedy"])


# HallusionBench


def test_hallusion_results_are_those_of_score(tmp_path):
    source = hallusion_folder(tmp_path / "hb")
    report = run(tmp_path / "run", source, "hallusionbench")
    lines = read_lines(tmp_path / "run" / "samples.jsonl")
    questions = hallusion.load_questions(source / "HallusionBench.json")
    for strategy, entry in entries(report).items():
        said = {x["id"]: x["answer"] for x in lines if x["strategy"] == strategy}
        wanted = hallusion.score(questions, said)
        assert entry["n"] == 14 == wanted.n
        assert {n: v["value"] for n, v in entry["metrics"].items()} == wanted.metrics
        assert {"aAcc", "qAcc", "fAcc", "easy", "hard"} <= wanted.metrics.keys()


def test_questions_without_a_figure_are_asked_without_a_picture(tmp_path):
    class Watch(world.FakeEngine):
        def generate(self, requests, *args, **kwargs):
            seen.extend((r.prompt, len(r.images)) for r in requests)
            return super().generate(requests, *args, **kwargs)

    seen = []
    source = hallusion_folder(tmp_path / "hb")
    run(tmp_path / "run", source, "hallusionbench", Watch(), strategies=["greedy"])
    assert sorted(n for _, n in seen) == [0, 0] + [1] * 12
    lines = read_lines(tmp_path / "run" / "samples.jsonl")
    blind = [x for x in lines if x["visual_input"] == "0"]
    assert {x["image"] for x in blind} == {"VS_chart_0: no picture"}
    assert {x["id"] for x in blind} == {"VS_chart_0_0_0", "VS_chart_0_0_1"}
    assert not list((tmp_path / "run").rglob("*no picture*"))


def test_not_knowing_without_a_figure_is_right(tmp_path):
    class Unsure(world.FakeEngine):
        def _one(self, request, strategy, scored):
            told = super()._one(request, strategy, scored)
            object.__setattr__(told.choices[0], "text", "I cannot tell.")
            return told

    report = run(tmp_path / "run", hallusion_folder(tmp_path / "hb"), "hallusionbench", Unsure())
    entry = entries(report)["greedy"]
    assert entry["metrics"]["aAcc"]["value"] == 2 / 14
    assert entry["unparsed"] == 14


def test_hallusion_limit_takes_whole_sets(tmp_path):
    (unit,) = load_units(
        [hallusion_folder(tmp_path / "hb")], world.select("hallusionbench", limit=1)
    )
    assert [s.id for s in unit.samples] == [f"VS_chart_0_{f}_{q}" for f in range(3) for q in (0, 1)]


def test_a_set_with_a_failed_question_is_not_scored(tmp_path):
    source = hallusion_folder(tmp_path / "hb")
    (source / "hallusion_bench" / "VD" / "map" / "0_1.png").write_bytes(b"no picture")
    report = run(tmp_path / "run", source, "hallusionbench", strategies=["greedy"])
    entry = entries(report)["greedy"]
    assert (entry["n"], entry["failed"], report.failed) == (10, 2, 2)
    world.picture(source / "hallusion_bench" / "VD" / "map" / "0_1.png", 1)
    assert entries(run(tmp_path / "run", source, "hallusionbench"))["greedy"]["n"] == 14


def test_hallusion_bad_files_are_named_with_their_line(tmp_path):
    source = hallusion_folder(tmp_path / "hb")
    path = source / "HallusionBench.json"
    text = path.read_text()
    path.write_text(text.replace('"gt_answer": "1"', '"gt_answer": "yes"', 1))
    with pytest.raises(InvalidData, match=r"HallusionBench\.json:2: gt_answer is 'yes'"):
        load_units([source], world.select("hallusionbench"))
    path.write_text(text)
    (source / "hallusion_bench" / "VS" / "chart" / "0_1.png").unlink()
    with pytest.raises(InvalidData, match=r"Bench\.json:3: picture .*0_1\.png does not exist"):
        load_units([source], world.select("hallusionbench"))


# Both


def test_both_from_one_folder(tmp_path):
    amber_folder(tmp_path / "set" / "amber")
    hallusion_folder(tmp_path / "set" / "hallusionbench")
    tasks = ["hallusionbench", "amber"]
    report = run_eval(
        world.FakeEngine(),
        tasks=tasks,
        strategies=["greedy"],
        data=[tmp_path / "set"],
        output=tmp_path / "run",
        progress=False,
    )
    assert [(e["task"], e["data"]) for e in report.results["runs"]] == [(t, "set") for t in tasks]


@pytest.mark.parametrize("task", ["amber", "hallusionbench"])
def test_reports_show_the_task(tmp_path, task):
    folder = {"amber": amber_folder, "hallusionbench": hallusion_folder}[task]
    report = run(tmp_path / "run", folder(tmp_path / "set"), task)
    names = {"amber": ("CHAIR", "cover", "F1", "AMBER"), "hallusionbench": ("aAcc", "qAcc", "hard")}
    text = render([tmp_path / "run"], "md", None)
    assert all(f"{name} %" in text for name in names[task])
    render([tmp_path / "run"], "html", tmp_path / "report.html")
    assert task.upper() in (tmp_path / "report.html").read_text()
    render([tmp_path / "run"], "vlmevalkit", tmp_path / "kit")
    assert list((tmp_path / "kit").glob("*.tsv"))
    assert {g["strategy"] for g in report.results["differences"]} == {"vcd(alpha=1.0)"}


@pytest.mark.parametrize("task", ["amber", "hallusionbench"])
@pytest.mark.parametrize("after", [1, 4])
def test_an_interrupted_run_ends_equal(tmp_path, task, after):
    source = {"amber": amber_folder, "hallusionbench": hallusion_folder}[task](tmp_path / "set")
    whole = run(tmp_path / "whole", source, task)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", source, task, world.FakeEngine(stop_after=after))
    resumed = run(tmp_path / "run", source, task)
    assert world.timeless(resumed.results) == world.timeless(whole.results)
