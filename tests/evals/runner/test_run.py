import functools
import io
import json
from collections import Counter
from dataclasses import replace

import pytest
from rich.console import Console

from halludecode import testbed
from halludecode.core.errors import InvalidData, InvalidParameter, OutOfMemory, UnknownStrategy
from halludecode.evals.runner import batching as batches
from halludecode.evals.runner.dry_run import dry_run
from halludecode.evals.runner.run import evaluate, prepare, run_eval
from tests.support import eval_world as world

TASKS = ("pope", "chair", "mme")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setitem(batches.BATCH, "hf", 4)


@pytest.fixture
def source(tmp_path):
    return world.folder(tmp_path / "set")


def run(output, source, engine=None, **more):
    options = {"tasks": TASKS, "strategies": ["greedy", "vcd"], "prompt_preset": "opera"}
    options |= {"progress": False, "data": [source], "output": output, **more}
    return run_eval(engine or world.FakeEngine(), **options)


def shown(table):
    file = io.StringIO()
    Console(width=120, file=file).print(table)
    return file.getvalue()


def entries(report):
    return {(e["task"], e["split"], e["strategy"]): e for e in report.results["runs"]}


# What a run writes


def test_results_follow_the_schema(tmp_path, source):
    report = run(tmp_path / "run", source)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results == report.results
    assert results["schema"] == 1
    found = entries(report)
    assert {key[:2] for key in found} == {
        ("pope", "random"),
        ("pope", "adversarial"),
        ("pope", "mean"),
        ("chair", None),
        ("mme", None),
    }
    keys = {"task", "data", "split", "strategy", "engine", "model", "n", "failed", "metrics"}
    for entry in results["runs"]:
        assert keys | {"seconds", "tokens_per_second"} <= entry.keys()
        assert (entry["data"], entry["engine"], entry["model"]) == ("set", "hf", "fake")
        for interval in entry["metrics"].values():
            assert interval["low"] <= interval["value"] <= interval["high"]
    pope = found["pope", "random", "greedy"]["metrics"]
    assert list(pope) == [
        "accuracy",
        "precision",
        "recall",
        "f1",
        "yes_ratio",
        "unparsed",
        "unread",
    ]
    chair = found["chair", None, "greedy"]["metrics"]
    assert set(chair) == {"chair_s", "chair_i", "recall", "length"}
    mme = found["mme", None, "greedy"]["metrics"]
    assert {"existence.acc", "color.acc_plus", "color.score", "perception", "total"} <= set(mme)


def test_metrics_equal_a_count_by_hand(tmp_path, source):
    report = run(tmp_path / "run", source)
    written = world.lines(tmp_path / "run" / "samples.jsonl")
    for strategy in ("greedy", "vcd(alpha=1.0)"):
        mine = [x for x in written if x["split"] == "random" and x["strategy"] == strategy]
        right = sum(x["answer"].lower() == x["label"] for x in mine) / len(mine)
        assert entries(report)["pope", "random", strategy]["metrics"]["accuracy"]["value"] == right
        said = [x for x in written if x["task"] == "chair" and x["strategy"] == strategy]
        wrong = sum(len(x["parsed"]["hallucinated"]) for x in said)
        shown = sum(len(x["parsed"]["generated"]) for x in said)
        value = entries(report)["chair", None, strategy]["metrics"]["chair_i"]["value"]
        assert value == pytest.approx(wrong / shown)


def test_sample_lines_have_the_documented_keys(tmp_path, source):
    run(tmp_path / "run", source)
    documented = {"id", "task", "data", "split", "strategy", "prompt", "image", "answer"}
    documented |= {"parsed", "score", "margin", "tokens", "ms"}
    for line in world.lines(tmp_path / "run" / "samples.jsonl"):
        assert documented <= line.keys()
        assert ("objects" in line) == (line["task"] == "chair")
        assert ("label" in line) == (line["task"] != "chair")
        assert (line["margin"] is None) == (line["task"] == "chair")
        if line["task"] == "chair":
            wrong = [o for o in line["parsed"]["generated"] if o not in line["objects"]]
            assert line["parsed"]["hallucinated"] == wrong
        else:
            assert line["score"] == (line["parsed"] == line["label"])


def test_margin_is_the_engines_first_step_score(tmp_path, source):
    engine = world.FakeEngine()
    run(tmp_path / "run", source, engine, tasks=["pope"], strategies=["greedy"])
    line = world.lines(tmp_path / "run" / "samples.jsonl")[0]
    from PIL import Image

    from halludecode.engines.api import Request

    with Image.open(source / "images" / line["image"]) as opened:
        request = Request(line["prompt"], (opened.convert("RGB"),))
    output = engine.generate([request], "greedy", score_words=("yes", "no"))[0]
    assert line["margin"] == output.scores["yes"] - output.scores["no"]


def test_recipe_names_model_data_prompts_and_versions(tmp_path, source):
    run(tmp_path / "run", source, limit=3)
    recipe = json.loads((tmp_path / "run" / "run.json").read_text())
    assert recipe["model_digest"] == "0123"
    assert recipe["seed"] == 0
    assert recipe["strategies"]["vcd(alpha=1.0)"]["spec"] == "vcd"
    assert recipe["prompts"]["pope"] == {"preset": "opera", "template": "{question}"}
    assert recipe["sampling"]["chair"] == {"max_new_tokens": 512, "temperature": 0.0}
    assert len(recipe["data"]["pope/set/random"]["digest"]) == 64
    assert recipe["data"]["chair/set"]["samples"] == 3
    assert recipe["limit"] == {"pope": 3, "chair": 3, "mme": 3}
    assert {"halludecode", "python", "torch"} <= recipe["versions"].keys()
    assert recipe["hardware"]["device"] == "cpu"
    assert recipe["chair"]["path"] in ("nltk", "tables")


class ThinkingEngine(world.FakeEngine):
    """Thinks aloud before an answer; every fourth thought is never finished."""

    def _one(self, request, strategy, scored):
        output = super()._one(request, strategy, scored)
        text = output.choices[0].text
        whole = f"<think> No, hidden. </think> {text}"
        thought = "<think> No, or yes" if len(self.asked) % 4 == 0 else whole
        return replace(output, choices=(replace(output.choices[0], text=thought),))


def test_final_answers_are_read_recorded_and_belong_to_one_run(tmp_path, source):
    asked = {"tasks": ("pope",), "strategies": ["greedy"]}
    made = {}
    for rule in ("as_written", "final"):
        report = run(tmp_path / rule, source, ThinkingEngine(), answers=rule, **asked)
        assert report.run["answers"] == rule
        assert json.loads((tmp_path / rule / "run.json").read_text())["answers"] == rule
        made[rule] = entries(report)["pope", "random", "greedy"]
    plain = entries(run(tmp_path / "plain", source, **asked))["pope", "random", "greedy"]
    both = (world.lines(tmp_path / name / "samples.jsonl") for name in ("final", "plain"))
    lines, others = ([x for x in found if x["split"] == "random"] for found in both)
    cut = [line for line in lines if line["as_written"] == "<think> No, or yes"]
    assert 0 < len(cut) < len(lines) == plain["n"]
    assert {(line["answer"], line["parsed"]) for line in cut} == {("", "other")}
    final, written = made["final"]["metrics"], made["as_written"]["metrics"]
    assert (final["unparsed"]["value"], plain["metrics"]["unparsed"]["value"]) == (len(cut), 0)
    said = {(x["id"], x["answer"]) for x in others}
    assert {(x["id"], x["answer"]) for x in lines if x not in cut} <= said
    assert written["yes_ratio"]["value"] == 0  # the thought's own "No" is read
    assert final["yes_ratio"]["value"] > 0
    with pytest.raises(InvalidData, match="answers"):
        run(tmp_path / "final", source, ThinkingEngine(), **asked)
    with pytest.raises(InvalidData, match="answers 'last' is unknown"):
        run(tmp_path / "last", source, ThinkingEngine(), answers="last", **asked)
    assert not (tmp_path / "last").exists()


def test_differences_to_greedy_are_paired_and_corrected(tmp_path, source):
    report = run(tmp_path / "run", source, strategies=["greedy", "vcd", "pai"])
    gaps = report.results["differences"]
    assert {g["strategy"] for g in gaps} == {"vcd(alpha=1.0)", "pai(alpha=1.0)"}
    found = entries(report)
    for gap in gaps:
        mine, base = (
            found[gap["task"], gap["split"], s]["metrics"] for s in (gap["strategy"], "greedy")
        )
        for metric, d in gap["metrics"].items():
            assert d["value"] == pytest.approx(mine[metric]["value"] - base[metric]["value"])
            assert d["p"] <= d["p_holm"] <= min(1, 2 * d["p"]) + 1e-12
    alone = run(tmp_path / "other", source, strategies=["vcd"])
    assert alone.results["differences"] == []


def test_table_fits_120_columns_and_names_every_strategy(tmp_path, source):
    report = run(tmp_path / "run", source, strategies=["greedy", "vcd", "a_very_long_name(k=1.23)"])
    text = shown(report.table())
    assert max(map(len, text.splitlines())) <= 120
    for word in ("POPE on set", "CHAIR on set", "MME on set", "greedy", "vcd", "adversarial"):
        assert word in text
    value = entries(report)["chair", None, "vcd(alpha=1.0)"]["metrics"]["chair_i"]
    assert f"{value['value'] * 100:.1f} [{value['low'] * 100:.1f}," in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text  # nothing was cut off


# How requests are made


def test_equal_requests_are_asked_once_and_shared(tmp_path, source):
    engine = world.FakeEngine()
    run(tmp_path / "run", source, engine, tasks=["pope"], strategies=["greedy"])
    assert max(Counter(engine.asked).values()) == 1
    assert len(engine.asked) == 12  # 4 pictures: one positive shared by both splits, two negatives
    written = world.lines(tmp_path / "run" / "samples.jsonl")
    assert len(written) == 16
    both = {(x["split"], x["id"]): x["answer"] for x in written}
    assert both["random", 1] == both["adversarial", 1]


def test_sampled_decoding_shares_nothing(tmp_path, source):
    engine = world.FakeEngine()
    run(tmp_path / "run", source, engine, tasks=["pope"], strategies=["greedy"], temperature=1.0)
    assert len(engine.asked) == 16


def test_questions_of_several_benchmarks_about_a_picture_are_asked_together(tmp_path, source):
    engine = world.FakeEngine()
    how = {"strategies": ["greedy"], "prompt_preset": "testbed"}  # four tokens for either
    run(tmp_path / "both", source, engine, **how)
    pixels = [digest for _, prompt, digest in engine.asked if "Please describe" not in prompt]
    again = [
        n for n, digest in enumerate(pixels) if digest in pixels[:n] and pixels[n - 1] != digest
    ]
    assert len(set(pixels)) == 4 and again == []
    apart = {}
    for task in TASKS:
        run(tmp_path / task, source, tasks=[task], **how)
        apart |= {_key(x): _answer(x) for x in world.lines(tmp_path / task / "samples.jsonl")}
    both = world.lines(tmp_path / "both" / "samples.jsonl")
    assert {_key(x): _answer(x) for x in both} == apart


def _key(line):
    return line["task"], line["split"], line["id"]


def _answer(line):
    return line["answer"], line["score"], line["margin"]


@pytest.mark.parametrize("tokens, temperature", [(4, 1.0), (99, 0.0)])
def test_sampled_answers_and_those_of_another_length_are_asked_apart(source, tokens, temperature):
    given = {"strategies": ["greedy"], "data": [source], "temperature": temperature}
    setup = prepare(world.FakeEngine(), tasks=["pope", "mme"], controls=False, **given)
    longer = replace(setup.sampling["mme"], max_new_tokens=tokens)
    setup = replace(setup, sampling={"pope": replace(longer, max_new_tokens=4), "mme": longer})
    asked = [{u.task for ask in batch for u, _ in ask.takers} for _, _, batch in setup.jobs()]
    assert {len(tasks) for tasks in asked} == {1} and set().union(*asked) == {"pope", "mme"}


def test_a_testbed_source_has_as_many_pictures_as_the_limit_asks_for(monkeypatch):
    made = []

    def dataset(name, count):
        made.append(count)
        raise InvalidData("enough")

    monkeypatch.setattr(testbed, "dataset", dataset)
    for more in ({}, {"limit": 3}, {"limit": 700}, {"limit": 700, "testbed_images": 20}):
        with pytest.raises(InvalidData, match="enough"):
            prepare(world.FakeEngine(model_id="testbed"), tasks="pope", strategies=["a"], **more)
    assert made == [500, 500, 700, 20]


def test_batches_are_whole_pictures(tmp_path, source):
    from halludecode.evals.load import load_units

    units = load_units([source], world.select("pope"))
    made = batches.plan_batches(units, size=4)
    places = [(n, ask.picture.digest) for n, batch in enumerate(made) for ask in batch]
    assert len({digest for _, digest in places}) == len(set(places))
    assert [len(batch) for batch in made] == [6, 6]


def test_prompts_carry_the_preset(tmp_path, source):
    engine = world.FakeEngine()
    run(tmp_path / "run", source, engine, tasks=["pope"], prompt_preset="vcd")
    assert all(
        p.endswith("? Please answer this question with one word.") for _, p, _ in engine.asked
    )


def test_batch_size_reaches_the_engine(tmp_path, source):
    engine = world.FakeEngine()
    run(tmp_path / "run", source, engine, batch_size=2)
    assert engine.batch_size == 2


# Failures


def test_failing_samples_are_listed_and_the_rest_is_scored(tmp_path, source):
    (source / "images" / "pic_2.png").write_bytes(b"no picture")
    report = run(tmp_path / "run", source)
    failures = world.lines(tmp_path / "run" / "errors.jsonl")
    assert {x["image"] for x in failures} == {"pic_2.png"}
    assert all("pic_2.png" in x["error"] for x in failures)
    assert report.failed == len(failures) == 2 * (2 + 2 + 1)
    found = entries(report)
    assert (
        found["pope", "random", "greedy"]["n"],
        found["pope", "random", "greedy"]["failed"],
    ) == (
        6,
        2,
    )
    assert found["chair", None, "greedy"]["n"] == 3
    assert found["mme", None, "greedy"]["failed"] == 0


def test_a_request_the_engine_refuses_does_not_take_its_batch_along(tmp_path, source):
    engine = world.FakeEngine(refuse="cup")
    report = run(tmp_path / "run", source, engine, tasks=["pope"], strategies=["greedy"])
    failures = world.lines(tmp_path / "run" / "errors.jsonl")
    assert failures
    assert all("cup" in x["prompt"] for x in failures)
    answered = world.lines(tmp_path / "run" / "samples.jsonl")
    assert not any("cup" in x["prompt"] for x in answered)
    assert len(answered) + len(failures) == 16
    assert report.failed == len(failures)


def test_mme_scores_whole_pairs_only(tmp_path, source):
    engine = world.FakeEngine(refuse="color one")
    report = run(tmp_path / "run", source, engine, tasks=["mme"], strategies=["greedy"])
    entry = entries(report)["mme", None, "greedy"]
    assert (entry["n"], entry["failed"]) == (6, 3)
    assert "color.acc" not in entry["metrics"]


def test_a_task_without_any_answer_is_reported_and_not_scored(tmp_path, source):
    engine = world.FakeEngine(refuse="image")
    report = run(tmp_path / "run", source, engine, tasks=["pope", "mme"], strategies=["greedy"])
    entry = entries(report)["pope", "random", "greedy"]
    assert (entry["n"], entry["failed"], entry["metrics"]) == (0, 8, {})
    assert entries(report)["mme", None, "greedy"]["n"] == 12
    assert "greedy, pope on set (random): 8 failed, see errors.jsonl" in shown(report.table())


def test_mended_picture_is_answered_on_resume(tmp_path, source):
    good = (source / "images" / "pic_2.png").read_bytes()
    whole = run(tmp_path / "whole", source)
    (source / "images" / "pic_2.png").write_bytes(b"no picture")
    run(tmp_path / "run", source)
    (source / "images" / "pic_2.png").write_bytes(good)
    mended = run(tmp_path / "run", source)
    assert mended.failed == 0
    assert world.timeless(mended.results) == world.timeless(whole.results)


class Full(world.FakeEngine):
    """Memory for at most ``room`` requests at once, and none for prompts that hold ``big``."""

    room, big = 10**6, "no prompt"

    def generate(self, requests, *args, **kwargs):
        import torch

        if len(requests) > self.room or any(self.big in r.prompt for r in requests):
            self.calls.append(len(requests))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.\nMore.")
        return super().generate(requests, *args, **kwargs)


def test_a_batch_without_memory_is_tried_in_halves(tmp_path, source):
    engine = Full()
    engine.room = 2
    report = run(tmp_path / "run", source, engine)
    whole = run(tmp_path / "whole", source)
    assert report.failed == 0
    assert max(engine.calls) > 2
    assert world.timeless(report.results) == world.timeless(whole.results)


def test_a_sample_without_memory_is_listed_and_asked_again_on_resume(tmp_path, source):
    engine = Full()
    engine.big = "cup"
    report = run(tmp_path / "run", source, engine)
    failures = world.lines(tmp_path / "run" / "errors.jsonl")
    assert report.failed == len(failures) > 0
    assert {(x["kind"], "cup" in x["prompt"]) for x in failures} == {("OutOfMemory", True)}
    said = failures[0]["error"]
    assert said.startswith("CUDA out of memory. Tried to allocate 20 MiB, with one request alone")
    assert "\n" not in said
    entry = entries(report)["pope", "random", "greedy"]
    assert entry["n"] + entry["failed"] == 8
    assert entry["metrics"]
    again = run(tmp_path / "run", source)
    assert again.failed == 0
    whole = run(tmp_path / "whole", source)
    assert world.timeless(again.results) == world.timeless(whole.results)


def test_an_engines_own_memory_error_is_treated_alike(tmp_path, source):
    class Own(world.FakeEngine):
        def generate(self, requests, *args, **kwargs):
            if any("cup" in r.prompt for r in requests):
                raise OutOfMemory("Out of memory on cuda: no room. Try batch_size=8 (now 16).")
            return super().generate(requests, *args, **kwargs)

    run(tmp_path / "run", source, Own(), tasks=["pope"])
    failures = world.lines(tmp_path / "run" / "errors.jsonl")
    assert failures
    assert all("batch_size" not in x["error"] for x in failures)  # which does not help one request


def test_a_run_without_memory_for_anything_ends_with_its_sentence(tmp_path, source):
    engine = Full()
    engine.room = 0
    with pytest.raises(OutOfMemory, match="with one request alone; use a smaller picture, model"):
        run(tmp_path / "run", source, engine)
    listed = world.lines(tmp_path / "run" / "errors.jsonl")
    assert 0 < len(listed) < 2 * (16 + 4 + 12)  # not every sample is tried


def test_other_errors_of_an_engine_are_not_taken_for_a_samples(tmp_path, source):
    class Broken(world.FakeEngine):
        def generate(self, *args, **kwargs):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(tmp_path / "run", source, Broken())


# Resuming


def test_resume_asks_only_what_is_missing(tmp_path, source):
    first = world.FakeEngine()
    run(tmp_path / "run", source, first, strategies=["greedy"])
    again = world.FakeEngine()
    run(tmp_path / "run", source, again, strategies=["greedy"])
    assert again.calls == []
    more = world.FakeEngine()
    run(tmp_path / "run", source, more, strategies=["greedy", "vcd"])
    assert {strategy for strategy, _, _ in more.asked} == {"vcd(alpha=1.0)"}


@pytest.mark.parametrize("after", [0, 1, 3, 7])
def test_interrupted_run_keeps_what_is_done_and_ends_equal(tmp_path, source, after):
    whole = run(tmp_path / "whole", source)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", source, world.FakeEngine(stop_after=after))
    kept = world.lines(tmp_path / "run" / "samples.jsonl")
    assert bool(kept) == (after > 0)
    resumed = run(tmp_path / "run", source)
    assert world.timeless(resumed.results) == world.timeless(whole.results)
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == (
        tmp_path / "whole" / "samples.jsonl"
    ).read_bytes()


def test_run_torn_at_any_byte_ends_equal(tmp_path, source):
    options = {"tasks": ["pope", "chair"], "strategies": ["greedy"]}
    whole = run(tmp_path / "run", source, **options)
    path = tmp_path / "run" / "samples.jsonl"
    raw = path.read_bytes()
    for cut in range(0, len(raw), len(raw) // 23):
        path.write_bytes(raw[:cut])
        again = run(tmp_path / "run", source, **options)
        assert world.timeless(again.results) == world.timeless(whole.results)
        ids = [(x["task"], x["split"], x["id"]) for x in world.lines(path)]
        assert len(ids) == len(set(ids)) == 20


def test_unfinished_batch_is_repeated_whole(tmp_path, source):
    options = {"tasks": ["pope"], "strategies": ["greedy"]}
    run(tmp_path / "run", source, **options)
    path = tmp_path / "run" / "samples.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    engine = world.FakeEngine()
    run(tmp_path / "run", source, engine, **options)
    assert engine.calls == [6]  # the last batch as it was, not the one missing request


def test_larger_limit_keeps_earlier_answers(tmp_path, source):
    run(tmp_path / "run", source, limit=2)
    engine = world.FakeEngine()
    grown = run(tmp_path / "run", source, engine)
    whole = run(tmp_path / "whole", source)
    assert world.timeless(grown.results)["runs"] == world.timeless(whole.results)["runs"]
    assert len(engine.asked) < 2 * (12 + 4 + 12)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"engine": world.FakeEngine(model_id="other")}, "model 'fake', not 'other'"),
        ({"engine": world.FakeEngine(digest="9999")}, "model_digest '0123', not '9999'"),
        ({"seed": 7}, "seed 0, not 7"),
        ({"prompt_preset": "llava-1.5"}, r"prompts\.pope\.preset 'opera', not 'llava-1.5'"),
        ({"max_new_tokens": 3}, r"sampling\.pope\.max_new_tokens 10, not 3"),
    ],
)
def test_folder_of_another_run_is_refused(tmp_path, source, change, said):
    run(tmp_path / "run", source)
    with pytest.raises(InvalidData, match=said) as caught:
        run(tmp_path / "run", source, **change)
    assert "--fresh" in str(caught.value)
    run(tmp_path / "run", source, **change, fresh=True)


def test_changed_data_are_refused_before_anything_is_written(tmp_path, source):
    run(tmp_path / "run", source, strategies=["greedy"])
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    world.picture(source / "images" / "pic_0.png", 99)
    for strategies in (["greedy"], ["vcd"]):  # vcd has no answers yet, but would stand beside
        with pytest.raises(InvalidData, match=r"sample 1 of pope on set was answered for other da"):
            run(tmp_path / "run", source, strategies=strategies)
    assert {p: p.read_bytes() for p in before} == before


# Arguments


def test_bad_arguments_are_named_before_the_model_is_loaded(tmp_path, source):
    def load(model):
        raise AssertionError("the model was loaded")

    loader = functools.partial(load, "some/model")
    for change, error, said in (
        ({"tasks": ["pop"]}, InvalidParameter, "Unknown task 'pop'. Did you mean 'pope'"),
        ({"tasks": []}, InvalidParameter, "name each task once"),
        ({"strategies": []}, InvalidParameter, "at least one"),
        ({"tasks": 3}, InvalidParameter, "3 names none; write 'pope,chair"),
        ({"tasks": ["pope", None]}, InvalidParameter, "None names none"),
        ({"tasks": {"chair": {1: 2}}}, InvalidParameter, "chair has no parameter '1'"),
        ({"limit": 0}, InvalidParameter, "limit must be a whole number, at least 1"),
        ({"limit": "3"}, InvalidParameter, "limit='3': limit must be a whole number"),
        ({"batch_size": 2.5}, InvalidParameter, "batch_size must be a whole number"),
        ({"max_new_tokens": 0}, InvalidParameter, "max_new_tokens must be a whole number"),
        ({"seed": "x"}, InvalidParameter, "seed must be a whole number"),
        ({"data": [tmp_path / "gone"]}, InvalidData, "no such folder"),
        ({"data": []}, InvalidParameter, "No data"),
        ({"prompt_preset": "x"}, InvalidParameter, "No prompt preset 'x'"),
    ):
        with pytest.raises(error, match=said):
            run(tmp_path / "run", source, loader, **change)
    assert not (tmp_path / "run").exists()


def test_one_source_needs_no_list(tmp_path, source):
    for data in (source, str(source)):
        report = run(tmp_path / type(data).__name__, source, tasks=["pope"], data=data)
        assert {entry["data"] for entry in report.results["runs"]} == {"set"}


def test_unknown_strategy_writes_nothing(tmp_path, source):
    with pytest.raises(UnknownStrategy):
        run(tmp_path / "run", source, strategies=["greedy", "vdc"])
    assert not (tmp_path / "run").exists()


def test_a_loader_is_called_once(tmp_path, source):
    calls = []
    run(tmp_path / "run", source, lambda: calls.append(1) or world.FakeEngine())
    assert calls == [1]


def test_a_strategy_that_is_no_string_is_named_by_its_canonical_form(tmp_path, source):
    class Thing:
        def __str__(self):
            return "<object at 0x1234>"

    class Reads(world.FakeEngine):
        def plan(self, spec):
            return super().plan("thing" if isinstance(spec, Thing) else spec)

    report = run(tmp_path / "run", source, Reads(), tasks=["pope"], strategies=[Thing()])
    assert report.run["strategies"]["thing(alpha=1.0)"]["spec"] == "thing(alpha=1.0)"


def test_equal_strategies_are_run_once(tmp_path, source):
    engine = world.FakeEngine()
    run(tmp_path / "run", source, engine, strategies=["greedy", "greedy"])
    assert max(Counter(engine.asked).values()) == 1


def test_progress_goes_to_standard_error(tmp_path, source, capsys):
    run(tmp_path / "run", source, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "vcd" in captured.err


def test_evaluate_takes_one_strategy_and_a_temporary_folder(source):
    report = evaluate(
        world.FakeEngine(), ["pope"], "vcd", limit=2, data=[source], prompt_preset="opera"
    )
    assert (report.path / "results.json").is_file()
    assert {e["strategy"] for e in report.results["runs"]} == {"vcd(alpha=1.0)"}


def test_the_embedded_model_runs_on_as_many_threads_as_are_faster(monkeypatch):
    import torch

    # A worker of vLLM's CPU wheel that ran in this process has put a function that only warns here.
    monkeypatch.setattr(torch, "set_num_threads", torch._C.set_num_threads)
    before = torch.get_num_threads()
    try:
        for chosen in (1, 2):
            monkeypatch.setattr(batches, "_faster", lambda few, many, chosen=chosen: chosen)
            torch.set_num_threads(2)
            with batches.threads_for("testbed"):
                assert torch.get_num_threads() == chosen
            with batches.threads_for("other"):
                assert torch.get_num_threads() == 2
            assert torch.get_num_threads() == 2
        monkeypatch.undo()
        assert batches._faster(1, 1) == 1
        assert batches._faster(1, 2) in (1, 2)
    finally:
        torch.set_num_threads(before)


def test_dry_run_predicts_without_writing(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    told = dry_run(
        world.FakeEngine(),
        tasks=["pope", "chair"],
        strategies=["greedy", "vcd"],
        data=[source],
        prompt_preset="opera",
    )
    assert sorted(tmp_path.rglob("*")) == before
    assert told["vcd"]["requests"] == 16
    assert told["vcd"]["samples"] == 20
    assert told["vcd"]["rows"] == ["main"]
    assert told["total_seconds"] >= 0
    assert "16 requests for 20 samples" in str(told["vcd"])


def test_a_picture_deleted_meanwhile_costs_the_report_alone(tmp_path, source, monkeypatch):
    from halludecode.evals.runner import run as runner

    original = runner.answer_all

    def then_deleted(*args):
        original(*args)
        for path in source.rglob("*"):
            if path.suffix in (".png", ".jpg"):
                path.unlink()

    monkeypatch.setattr(runner, "answer_all", then_deleted)
    report = run(tmp_path / "run", source)
    assert report.gone and not report.failed
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == report.results


# Seeds


def test_seeds_are_a_run_each_with_the_spread_over_them(tmp_path, source):
    from halludecode.evals.report.seed_plots import draw_seeds
    from halludecode.evals.runner.seeds import run_seeds

    options = {"tasks": ["pope"], "strategies": ["greedy", "vcd"], "data": [source]}
    options |= {"prompt_preset": "opera", "progress": False, "temperature": 1, "controls": False}
    engine = world.FakeEngine()
    found, reports = run_seeds(engine, seeds=[0, 1, 5], output=tmp_path / "s", **options)
    assert found.seeds == (0, 1, 5)
    for seed, report in zip(found.seeds, reports, strict=True):
        assert (
            json.loads((tmp_path / "s" / f"seed-{seed}" / "run.json").read_text())["seed"] == seed
        )
        assert report.path == tmp_path / "s" / f"seed-{seed}"
    assert json.loads((tmp_path / "s" / "seeds.json").read_text()) == found.to_dict()
    calls = len(engine.calls)
    run_seeds(engine, seeds=[0, 1, 5], output=tmp_path / "s", **options)
    assert len(engine.calls) == calls
    drawn = draw_seeds(tmp_path, found.spreads, [r.results for r in reports], found.labels)
    assert [path.name for path in drawn] == [f"seeds-pope-set.{s}" for s in ("png", "pdf", "svg")]
    assert all(path.stat().st_size > 1000 for path in drawn)
    for seeds, more, says in (
        ([0, 1], {}, "give 3 or more"),
        ([0, 1, 1], {}, "give 3 or more different"),
        ([0, 1, 2], {"temperature": 0}, "every seed gives the same"),
    ):
        with pytest.raises(InvalidParameter, match=says):
            run_seeds(engine, seeds=seeds, output=tmp_path / "t", **{**options, **more})
