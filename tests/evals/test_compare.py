import io

import pytest
from rich.console import Console

from halludecode.core.errors import InvalidData
from halludecode.evals import batches
from halludecode.evals.compare import compare, compare_runs
from halludecode.evals.run import run_eval
from tests.evals import world


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
    assert list(found.differences) == reports["all"].results["differences"]


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
    assert shown.count("* [") == clear


def text(table):
    file = io.StringIO()
    Console(width=120, file=file).print(table)
    return file.getvalue()
