import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BASE = ("eval", "--model", "testbed", "--tasks", "pope, chair", "--strategy", "greedy")
RESULTS = {"schema": 1, "runs": []}


class FakeReport:
    def __init__(self, failed=0):
        self.failed, self.left_out, self.gone = failed, 0, ()

    def table(self):
        return "one table"

    def to_dict(self):
        return RESULTS


def replace(monkeypatch, module, **names):
    """Put functions in place of a library module's."""
    fake = ModuleType(module)
    vars(fake).update(names)
    monkeypatch.setitem(sys.modules, module, fake)


@pytest.fixture
def runs(monkeypatch, engines):
    """Calls of ``run_eval``; ``runs.report`` is what it returns."""

    class Runs(list):
        report = FakeReport()

    calls = Runs()

    def run_eval(engine_or_loader, **given):
        calls.append((engine_or_loader, given))
        if isinstance(calls.report, BaseException):
            raise calls.report
        return calls.report

    def dry_run(engine_or_loader, **given):
        calls.append((engine_or_loader, given))
        return {"passes": 12, "seconds": 3.5}

    replace(monkeypatch, "halludecode.evals.runner.run", run_eval=run_eval)
    replace(monkeypatch, "halludecode.evals.runner.dry_run", dry_run=dry_run)
    return calls


def test_a_shard_is_answered_and_scored_with_the_others(cli, runs):
    result = cli(*BASE, "--shard", "2/8", "--output", "runs/x")
    assert runs[0][1]["shard"] == "2/8"
    assert (result.code, result.out) == (0, "") and "`halludecode merge`" in result.err
    for word in ("--dry-run", "--seeds=0..2"):
        result = cli(*BASE, "--shard", "2/8", "--output", "runs/x", word)
        assert result.code == 2 and f"--shard does not go with {word.split('=')[0]}" in result.err


def test_what_the_engine_takes_comes_from_a_file_too(cli, runs, engines, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("engine: {name: vllm, engine_arg: {max_model_len: 512}}\n")
    assert cli(*BASE, "--output", "runs/x", "--config", str(file)).code == 0
    runs[0][0]()
    assert engines[0].arguments["max_model_len"] == 512
    served = ("eval", "--server", "http://x", "--engine-arg", "a=1", *BASE[3:], "--output", "x")
    result = cli(*served)
    assert result.code == 2 and "--engine-arg is for a model loaded here" in result.err


def test_eval_passes_everything_on_and_prints_the_table(cli, runs, engines):
    more = (
        "--strategy vcd --data testbed-iid --data testbed-broken --limit 5 --batch-size 4 --seed 7"
    )
    result = cli(*BASE, *more.split(), "--output", "runs/x", "--fresh")
    assert (result.code, result.out) == (0, "one table\n")
    assert "saved in runs/x" in result.err
    ((loader, given),) = runs
    assert given == {
        "tasks": ["pope", "chair"],
        "strategies": ["greedy", "vcd"],
        "data": ("testbed-iid", "testbed-broken"),
        "images": None,
        "annotations": None,
        "prompt_preset": None,
        "limit": 5,
        "batch_size": 4,
        "seed": 7,
        "output": Path("runs/x"),
        "fresh": True,
    }
    assert engines == []  # loading is the library's to do, after it has looked at the rest
    loader()
    assert (engines[0].model_id, engines[0].engine) == ("testbed", "hf")
    assert engines[0].arguments == {"batch_size": 4}


def test_failed_samples_are_exit_1_and_the_rest_is_shown(cli, runs):
    runs.report = FakeReport(failed=2)
    result = cli(*BASE, "--output", "runs/x")
    assert (result.code, result.out) == (1, "one table\n")
    assert "2 samples failed" in result.err
    assert "errors.jsonl" in result.err


def test_json_prints_the_results(cli, runs):
    result = cli(*BASE, "--output", "runs/x", "--json")
    assert result.code == 0
    assert json.loads(result.out) == RESULTS


def test_interrupt_keeps_what_is_done(cli, runs):
    runs.report = KeyboardInterrupt()
    result = cli(*BASE, "--output", "runs/x")
    assert (result.code, result.out) == (130, "")
    assert "what is done is kept" in result.err


def test_out_of_memory_names_half_the_batch(cli, runs):
    runs.report = RuntimeError("can't allocate memory")
    result = cli(*BASE, "--output", "runs/x", "--batch-size", "8")
    assert result.code == 2
    assert "--batch-size 4" in result.err


def test_dry_run_needs_no_output_and_runs_nothing(cli, runs):
    result = cli(*BASE, "--dry-run")
    assert result.code == 0
    assert result.out.split() == ["passes", "12", "seconds", "3.5000"]
    assert json.loads(cli(*BASE, "--dry-run", "--json").out)["passes"] == 12
    assert "output" not in runs[0][1]


def test_sampling_reaches_the_run_only_where_it_is_given(cli, runs):
    cli(*BASE, "--output", "runs/x", "--temperature", "0.5", "--max-new-tokens", "9")
    cli(*BASE, "--output", "runs/x")
    assert (runs[0][1]["temperature"], runs[0][1]["max_new_tokens"]) == (0.5, 9)
    assert not {"temperature", "max_new_tokens"} & runs[1][1].keys()


def test_chairs_recipe_reaches_the_run_only_where_it_is_given(cli, runs, tmp_path):
    given = {"family": "wordnet", "gt_family": "pattern", "incomplete": "drop"}
    given |= {"image_ids": "chair500", "prompt_preset": "opera-64"}
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    words = [word.replace("_", "-") if word.startswith("--") else word for word in words]
    assert cli(*BASE, "--output", "runs/x", *words).code == 0
    path = tmp_path / "run.yaml"
    path.write_text(
        "".join(f"{name.replace('_', '-')}: {value}\n" for name, value in given.items())
    )
    assert cli(*BASE, "--output", "runs/x", "--config", path).code == 0
    for _, taken in runs:
        assert {name: taken[name] for name in given} == given
    cli(*BASE, "--output", "runs/x")
    assert not (given.keys() - {"prompt_preset"}) & runs[2][1].keys()


def test_the_help_names_every_preset_family_and_list(cli):
    from halludecode.evals.benchmarks.chair.image_ids import LISTS
    from halludecode.evals.benchmarks.chair.object_words import FAMILIES
    from halludecode.evals.benchmarks.chair.scoring import INCOMPLETE, MIXTURES
    from halludecode.evals.presets import PRESETS

    text = " ".join(cli("eval", "--help").out.split())
    for name in [*PRESETS, *FAMILIES, *MIXTURES, *INCOMPLETE, *LISTS]:
        assert name in text


def test_controls_are_the_librarys_choice_unless_given(cli, runs):
    for words in ((), ("--controls",), ("--no-controls",)):
        cli(*BASE, "--output", "runs/x", *words)
    assert [given.get("controls") for _, given in runs] == [None, True, False]
    assert "controls" not in runs[0][1]


@pytest.mark.parametrize("name", ["model", "tasks", "strategy", "output"])
def test_eval_without_a_needed_option(cli, runs, name):
    words = {"model": "m", "tasks": "pope", "strategy": "greedy", "output": "runs/x"}
    given = [word for key in words if key != name for word in (f"--{key}", words[key])]
    result = cli("eval", *given)
    assert result.code == 2
    assert f"--{name}" in result.err
    assert runs == []


def test_eval_from_a_file(cli, runs, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ntasks: pope\nstrategy: greedy\noutput: runs/y\nlimit: 3\n")
    assert cli("eval", "--config", path, "--limit", "9").code == 0
    assert (runs[0][1]["limit"], runs[0][1]["output"]) == (9, Path("runs/y"))


def test_score_prints_metrics(cli, monkeypatch):
    calls = []

    def score_predictions(*given, **named):
        calls.append((given, named))
        return {"task": "pope", "n": 2, "metrics": {"accuracy": {"value": 0.5}}}

    replace(monkeypatch, "halludecode.evals.runner.score_file", score_predictions=score_predictions)
    words = ("score", "--task", "pope", "--predictions", "p.jsonl", "--parser", "vcd")
    result = cli(*words)
    assert result.out.split() == ["task", "pope", "n", "2", "accuracy", "0.5000"]
    assert json.loads(cli(*words, "--json").out)["metrics"]["accuracy"]["value"] == 0.5
    assert calls[0] == (
        ("pope", Path("p.jsonl"), None, None, "vcd", None, None),
        {
            "relabel": None,
            "incomplete": None,
            "image_ids": None,
            "synonyms": None,
            "details": None,
            "similarity": None,
            "allow_missing": False,
            "columns": {},
            "answers": "as_written",
            "resamples": 10_000,
        },
    )


def test_score_of_a_real_file(cli, tmp_path):
    questions = tmp_path / "questions.jsonl"
    question = {"image": "a.jpg", "text": "Is there a cup in the image?"}
    questions.write_text(
        json.dumps({"question_id": 1, "label": "yes", **question})
        + "\n"
        + json.dumps({"question_id": 2, "label": "no", **question})
    )
    answers = tmp_path / "answers.jsonl"
    answers.write_text(
        '{"question_id": 2, "answer": "Yes."}\n{"question_id": 1, "answer": "Yes, there is."}\n'
    )
    words = ("score", "--task", "pope", "--predictions", answers, "--annotations", questions)
    scored = json.loads(cli(*words, "--json").out)
    assert scored["n"] == 2
    assert scored["metrics"]["accuracy"]["value"] == 0.5
    assert scored["metrics"]["recall"]["value"] == 1.0
    assert "0.5000" in cli(*words).out


def test_score_of_every_pope_split(cli, tmp_path):
    for folder in ("said", "asked"):
        (tmp_path / folder).mkdir()
    for split in ("popular", "random"):
        (tmp_path / "asked" / f"coco_pope_{split}.json").write_text(
            '{"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}\n'
        )
    (tmp_path / "said" / "random.jsonl").write_text('{"question_id": 1, "answer": "Perhaps"}\n')
    (tmp_path / "said" / "popular.jsonl").write_text('{"question_id": 1, "answer": "No"}\n')
    words = ("--predictions", tmp_path / "said", "--annotations", tmp_path / "asked")
    rows = [row.split() for row in cli("score", "--task", "pope", *words).out.splitlines()]
    assert rows[0] == ["mean", "random", "popular"]
    assert ["n", "2", "1", "1"] in rows
    (accuracy,) = [row for row in rows if row[0] == "accuracy"]
    assert (accuracy[1], accuracy[4], accuracy[7]) == ("0.5000", "1.0000", "0.0000")
    assert accuracy[2].startswith("[") and accuracy[9].endswith("]")  # each with its interval
    assert ["unparsed", "1", "1", "0"] in rows
    scored = json.loads(cli("score", "--task", "pope", *words, "--json").out)
    assert scored["splits"]["random"]["metrics"]["accuracy"]["value"] == 1.0


def test_score_under_later_labels(cli, tmp_path):
    question = '{"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "%s"}\n'
    for name, label in (("asked", "yes"), ("later", "no")):
        (tmp_path / name).write_text(question % label)
    (tmp_path / "said").write_text('{"question_id": 1, "answer": "No"}\n')
    words = ("--predictions", tmp_path / "said", "--annotations", tmp_path / "asked")
    out = cli("score", "--task", "pope", *words, "--relabel", tmp_path / "later").out
    rows = dict(line.split()[:2] for line in out.splitlines())
    assert (rows["accuracy"], rows["yes_to_no"], rows["dropped"]) == ("1.0000", "1", "0")


def test_score_of_captions_with_every_word(cli, tmp_path):
    said = tmp_path / "said.jsonl"
    said.write_text('{"image_id": 9, "caption": "A bowl of broccoli. A cat on"}\n')
    words = ("score", "--task", "chair", "--predictions", said, "--incomplete", "drop")
    result = cli(*words, "--details", tmp_path / "d.jsonl", "--json")
    assert json.loads(result.out)["incomplete"] == "drop"
    (record,) = map(json.loads, (tmp_path / "d.jsonl").read_text().splitlines())
    assert record["words"] == ["a", "bowl", "of", "broccoli", "."]
    assert record["mscoco_hallucinated_words"] == []


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            '{"image_id": 9, "caption": "A cat."}\n{"image_id": 9, "caption": "A"}',
            r":2: image_id 9 was",
        ),
        (
            '{"image_id": 9, "caption": "A cat."}\n{"image_id": 1, "caption": "A"}',
            r":2: image_id 1 is n",
        ),
        ('{"image_id": 9}', ':1: key "caption" or "text" or "response" is missing'),
        (
            '{"image_id": "x", "caption": "A cat."}',
            ":1: image_id 'x' is no image of the a",
        ),
        ('{"image_id": 9, "caption": 3}', ':1: "caption" is 3'),
        ("", "holds no records"),
    ],
)
def test_bad_captions_are_one_sentence_with_file_and_line(cli, tmp_path, said, message):
    (tmp_path / "said.jsonl").write_text(said)
    result = cli("score", "--task", "chair", "--predictions", tmp_path / "said.jsonl")
    assert (result.code, result.out) == (2, "")
    assert f"said.jsonl{message}" in result.err or message in result.err
    assert result.err.count("\n") == 1


def test_questions_from_annotations(cli, tmp_path):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    kinds = [{"id": i, "name": name} for i, name in enumerate(("cat", "owl", "elk", "ant", "bee"))]
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(4)]
    boxes = [
        {"id": 9 * i + k, "image_id": i, "category_id": (i + k) % 5}
        for i in range(4)
        for k in range(2)
    ]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": kinds}))
    words = ("pope-questions", "--annotations", path, "--output", tmp_path / "made")
    result = cli(*words, "--pictures", "3", "--per-image", "2", "--seed", "1")
    assert (result.code, result.out) == (0, "")
    assert "12 questions about 3 pictures" in result.err
    for split in ("random", "popular", "adversarial"):
        lines = (tmp_path / "made" / "pope" / f"{split}.jsonl").read_text().splitlines()
        assert [json.loads(line)["label"] for line in lines] == ["yes", "no"] * 6
    assert cli(*words).code == 2
    assert "no picture to ask about" in cli(*words).err  # none has three objects


def test_score_of_part_of_amber(cli, tmp_path):
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"id": 1005, "response": "Yes"}\n{"id": 1006, "response": "Perhaps"}\n')
    data = Path(__file__).parents[1] / "data" / "amber"
    words = ("score", "--task", "amber", "--predictions", answers, "--annotations", data)
    assert "predictions are missing" in cli(*words).err
    told = cli(*words, "--allow-missing").out.splitlines()
    lines = dict(line.split()[:2] for line in told)
    assert (lines["n"], lines["unparsed"], lines["missing"]) == ("2", "1", "40")
    assert lines["state.recall"] == "0.0000"


def test_compare(cli, monkeypatch):
    class Comparison:
        def table(self):
            return "differences"

        def summary(self):
            return "in short"

        def to_dict(self):
            return {"difference": 0.1}

    calls = []

    def compare_runs(specs):
        calls.append(specs)
        return Comparison()

    def compare_seeds(specs):
        calls.append(("seeds", specs))
        return Comparison()

    replace(
        monkeypatch,
        "halludecode.evals.results.compare",
        compare_runs=compare_runs,
        compare_seeds=compare_seeds,
    )
    short = cli("compare", "runs/a:vcd", "runs/b")
    assert short.out == "in short\n" and "--full" in short.err
    assert cli("compare", "runs/a:vcd", "runs/b", "--full").out == "differences\n"
    assert json.loads(cli("compare", "runs/a", "--json").out) == {"difference": 0.1}
    assert cli("compare", "runs/a", "runs/b", "runs/c", "--seeds").out == "differences\n"
    assert calls == [
        ["runs/a:vcd", "runs/b"],
        ["runs/a:vcd", "runs/b"],
        ["runs/a"],
        ("seeds", ["runs/a", "runs/b", "runs/c"]),
    ]


def test_report_to_standard_output_or_a_file(cli, monkeypatch, tmp_path):
    calls = []

    def render(runs, format, output):
        calls.append((runs, format, output))
        return "| table |"

    replace(monkeypatch, "halludecode.evals.report.render", render=render)
    assert cli("report", "runs/a").out == "| table |\n"
    result = cli("report", "runs/a", "runs/b", "--format", "html", "--output", tmp_path / "r.html")
    assert result.out == ""
    assert "wrote" in result.err
    assert calls == [
        ([Path("runs/a")], "md", None),
        ([Path("runs/a"), Path("runs/b")], "html", tmp_path / "r.html"),
    ]
