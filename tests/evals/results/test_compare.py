import copy
import dataclasses
import io
import statistics

import pytest
from rich.console import Console

from halludecode.core.errors import InvalidData
from halludecode.evals.results.compare import compare, compare_runs, compare_seeds
from halludecode.evals.runner import batching as batches
from halludecode.evals.runner.run import run_eval
from tests.support import eval_world as world


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three runs over one folder: greedy+vcd+pai, vcd alone, and vcd of another model."""
    root = tmp_path_factory.mktemp("compare")
    source = world.folder(root / "set", pictures=5)
    sets = {
        "all": (world.FakeEngine(), ["greedy", "vcd", "pai"]),
        "alone": (world.FakeEngine(), ["vcd"]),
        "other": (world.FakeEngine(model_id="other", digest="99"), ["greedy", "vcd"]),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(batches.BATCH, "hf", 4)
        reports = {
            name: run_eval(
                engine,
                tasks=["pope", "chair", "mme"],
                strategies=strategies,
                data=[source],
                prompt_preset="opera",
                progress=False,
                output=root / name,
            )
            for name, (engine, strategies) in sets.items()
        }
    return root, source, reports


def test_one_run_compares_every_strategy_with_greedy(made):
    root, _, reports = made
    found = compare_runs([str(root / "all")])
    kept = copy.deepcopy(list(found.differences))
    for entry in kept:  # the curve over word budgets is too slow for every eval
        if length := entry["controls"].get("length"):
            assert [point["words"] for point in length.pop("budgets")] == [20, 40, 60, 80]
    assert kept == reports["all"].results["differences"]


def test_one_strategy_of_one_run(made):
    root, _, _ = made
    for name in ("vcd", "vcd(alpha=1.0)"):
        found = compare_runs([f"{root / 'all'}:{name}"])
        assert {d["strategy"] for d in found.differences} == {"vcd(alpha=1.0)"}
        assert {d["baseline"] for d in found.differences} == {"greedy"}


def test_two_sides_give_first_minus_second(made):
    root, _, reports = made
    a, b = f"{root / 'all'}:vcd", f"{root / 'all'}:pai"
    there, back = compare_runs([a, b]).differences, compare_runs([b, a]).differences
    value = {
        (e["task"], e["split"], e["strategy"]): e["metrics"] for e in reports["all"].results["runs"]
    }
    for one, other in zip(there, back, strict=True):
        for name, d in one["metrics"].items():
            mine = value[one["task"], one["split"], "vcd(alpha=1.0)"][name]["value"]
            theirs = value[one["task"], one["split"], "pai(alpha=1.0)"][name]["value"]
            assert d["value"] == pytest.approx(mine - theirs)
            assert other["metrics"][name]["value"] == pytest.approx(-d["value"])


def test_equal_answers_in_two_folders_differ_by_nothing(made):
    root, _, reports = made
    found = compare_runs([f"{root / 'all'}:vcd", str(root / "alone")])
    for entry in found.differences:
        assert all(d["value"] == d["low"] == d["high"] == 0 for d in entry["metrics"].values())
        assert all(d["p"] == 1 for d in entry["metrics"].values())
    assert found.apart == ()
    assert compare(reports["alone"], reports["alone"]).differences
    folder = reports["alone"].path
    assert compare(folder, str(folder)) == compare(reports["alone"], reports["alone"])
    with pytest.raises(InvalidData, match="no such run folder"):
        compare(folder, "nowhere")


def test_what_else_differs_is_named(made):
    root, _, _ = made
    found = compare_runs([str(root / "alone"), f"{root / 'other'}:vcd"])
    assert found.apart == ("model", "model_digest")
    assert found.to_dict()["apart"] == ["model", "model_digest"]
    assert "also differ in model" in text(found.table())


def test_only_shared_samples_count(made, tmp_path):
    root, source, _ = made
    run_eval(
        world.FakeEngine(),
        tasks=["chair"],
        strategies=["vcd"],
        data=[source],
        prompt_preset="opera",
        limit=3,
        progress=False,
        output=tmp_path / "few",
    )
    (entry,) = compare_runs([str(tmp_path / "few"), f"{root / 'all'}:greedy"]).differences
    assert (entry["task"], entry["n"]) == ("chair", 3)


def test_different_data_are_refused(made, tmp_path):
    root, _, _ = made
    changed = world.folder(tmp_path / "set", pictures=5)
    world.picture(changed / "images" / "pic_1.png", 77)
    run_eval(
        world.FakeEngine(),
        tasks=["pope"],
        strategies=["vcd"],
        data=[changed],
        prompt_preset="opera",
        progress=False,
        output=tmp_path / "run",
    )
    with pytest.raises(InvalidData, match="different data: pope on set, sample 3 differs"):
        compare_runs([str(tmp_path / "run"), f"{root / 'all'}:vcd"])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{root}/all:vdc", "no strategy 'vdc'; it has greedy, vcd, pai"),
        ("{root}/alone", "no greedy answers"),
        ("{root}/gone", "no such run folder"),
        ("{root}/set", r"run\.json: cannot be read"),
    ],
)
def test_wrong_specs_are_named(made, spec, said):
    root, _, _ = made
    with pytest.raises(InvalidData, match=said):
        compare_runs([spec.format(root=root)])


def test_ambiguous_run_asks_which_strategy(made):
    root, _, _ = made
    with pytest.raises(InvalidData, match=r"holds 2 strategies; say which: .*one of vcd, pai"):
        compare_runs([str(root / "all"), str(root / "alone")])


def test_table_fits_and_marks_what_leaves_out_zero(made):
    root, _, _ = made
    found = compare_runs([str(root / "all")])
    shown = text(found.table())
    assert max(map(len, shown.splitlines())) <= 120
    assert "vcd minus greedy: POPE, set, random, n = 10" in shown
    clear = sum(
        d["low"] > 0 or d["high"] < 0
        for entry in found.differences
        for d in entry["metrics"].values()
    )
    bare = dataclasses.replace(
        found, differences=tuple({**entry, "controls": {}} for entry in found.differences)
    )
    assert text(bare.table()).count("* [") == clear


def test_both_sides_and_the_test_stand_beside_a_difference(made):
    root, _, reports = made
    value = {
        (e["task"], e["split"], e["strategy"]): e["metrics"] for e in reports["all"].results["runs"]
    }
    for entry in compare_runs([str(root / "all")]).differences:
        for name, d in entry["metrics"].items():
            for side in ("strategy", "baseline"):
                alone = value[entry["task"], entry["split"], entry[side]][name]
                assert d[side] == pytest.approx(alone)
            only_ours, only_theirs = d.get("discordant", (0, 0))
            if d["test"] == "mcnemar":
                assert name in ("accuracy", "chair_s") or name.endswith((".acc", ".acc_plus"))
                assert only_ours + only_theirs <= entry["n"]
            else:
                assert "discordant" not in d


def test_shared_questions_of_the_mean_are_no_mcnemar_pairs(made):
    root, _, _ = made
    tests = {
        (entry["split"], entry["metrics"]["accuracy"]["test"])
        for entry in compare_runs([str(root / "all")]).differences
        if entry["task"] == "pope"
    }
    assert tests == {("random", "mcnemar"), ("adversarial", "mcnemar"), ("mean", "bootstrap")}


# Seeds


class SeededEngine(world.FakeEngine):
    """Answers that also hang on the seed of the drawing."""

    def generate(self, requests, strategy="greedy", sampling=None, *, score_words=()):
        name = f"{strategy}{sampling.seed}"
        return [self._one(request, name, bool(score_words)) for request in requests]


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    root = tmp_path_factory.mktemp("seeds")
    source = world.folder(root / "set", pictures=5)
    reports = [
        run_eval(
            SeededEngine(),
            tasks=["pope"],
            strategies=["greedy", "vcd"],
            data=[source],
            prompt_preset="opera",
            temperature=1.0,
            seed=seed,
            progress=False,
            output=root / f"seed{seed}",
        )
        for seed in (1, 2, 3)
    ]
    return root, reports


def test_seeds_give_mean_deviation_and_paired_differences(seeded):
    root, reports = seeded
    found = compare_seeds([str(root / f"seed{seed}") for seed in (1, 2, 3)])
    assert found.seeds == (1, 2, 3)
    assert {(s["strategy"], s["split"]) for s in found.spreads} == {
        (name, split)
        for name in ("greedy", "vcd(alpha=1.0)")
        for split in ("random", "adversarial", "mean")
    }
    (vcd,) = (s for s in found.spreads if s["strategy"] != "greedy" and s["split"] == "random")
    values = {"greedy": [], "vcd(alpha=1.0)": []}
    for report in reports:
        for entry in report.results["runs"]:
            if entry["split"] == "random":
                values[entry["strategy"]].append(entry["metrics"]["accuracy"]["value"])
    mine, plain = values["vcd(alpha=1.0)"], values["greedy"]
    spread, gap = vcd["metrics"]["accuracy"], vcd["differences"]["accuracy"]
    assert spread["mean"] == pytest.approx(statistics.fmean(mine))
    assert spread["sd"] == pytest.approx(statistics.stdev(mine))
    apart = [a - b for a, b in zip(mine, plain, strict=True)]
    assert gap["mean"] == pytest.approx(statistics.fmean(apart))
    assert gap["sd"] == pytest.approx(statistics.stdev(apart))
    assert gap["low"] <= gap["mean"] <= gap["high"]
    assert spread["low"] < spread["mean"] < spread["high"]
    named = compare_seeds([f"{root / f'seed{seed}'}:vcd" for seed in (1, 2, 3)])
    assert list(named.spreads) == [s for s in found.spreads if s["strategy"] != "greedy"]


def test_seed_tables_fit(seeded):
    root, _ = seeded
    shown = text(compare_seeds([str(root / f"seed{seed}") for seed in (1, 2, 3)]).table())
    assert max(map(len, shown.splitlines())) <= 120
    assert "vcd: POPE, set, random, n = 10" in shown
    assert "Seeds 1, 2, 3." in shown


def test_seeds_must_differ_and_nothing_else(seeded, made):
    root, _ = seeded
    one, two = str(root / "seed1"), str(root / "seed2")
    with pytest.raises(InvalidData, match="at least 3 runs with different seeds"):
        compare_seeds([one, two])
    with pytest.raises(InvalidData, match="Seeds 1, 2, 1: give"):
        compare_seeds([one, two, one])
    with pytest.raises(InvalidData, match=r"differ in prompts, sampling, chair; over seeds"):
        compare_seeds([one, two, str(made[0] / "all")])


def text(table):
    file = io.StringIO()
    Console(width=120, file=file).print(table)
    return file.getvalue()


def test_three_sides_stand_in_one_table_and_are_corrected_together(made):
    root, _, _ = made
    specs = [f"{root / 'all'}:{name}" for name in ("vcd", "pai", "greedy")]
    three = compare_runs(specs)
    pairs = [compare_runs([specs[i], specs[j]]).differences for i, j in ((0, 1), (0, 2), (1, 2))]
    plain = [gap for part in pairs for gap in part]
    assert [(d["strategy"], d["baseline"]) for d in three.differences] == [
        (d["strategy"], d["baseline"]) for d in plain
    ]
    for joined, alone in zip(three.differences, plain, strict=True):
        for name, gap in joined["metrics"].items():
            assert gap["value"] == alone["metrics"][name]["value"]
            assert gap["p_holm"] >= gap["p"]
    printed = io.StringIO()
    Console(file=printed, width=160).print(three.table())
    title, head = (line for line in printed.getvalue().splitlines()[:3] if line.strip())
    assert title.strip().endswith("vcd, pai, greedy")
    assert [head.count(f"minus {name}") for name in ("vcd", "pai", "greedy")] == [0, 1, 1]
    with pytest.raises(InvalidData, match="one to three runs, not 4"):
        compare_runs([*specs, specs[0]])
