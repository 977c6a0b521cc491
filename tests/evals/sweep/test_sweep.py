"""Sweeps on the embedded model: chosen here, reported there; answers are single runs'."""

import json

import pytest
import yaml

from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.core.spec import get
from halludecode.evals.data.run_files import read_lines
from halludecode.evals.runner.run import run_eval
from halludecode.evals.sweep import run as sweep
from halludecode.evals.sweep.table import sweep_tables

GRID = ["vcd(alpha={0.5,3})", "m3id"]
ASKED = {
    "tasks": "pope",
    "data": ["testbed-broken"],
    "limit": 3,
    "progress": False,
    "testbed_images": 20,
}


def run(testbed, output, strategies=GRID, **more):
    return sweep.run_sweep(testbed, strategies=strategies, output=output, **{**ASKED, **more})


@pytest.fixture(scope="module")
def swept(testbed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "s"
    return folder, run(testbed, folder)


def answers(folder):
    return {
        (line["strategy"], line["split"], line["id"]): (line["answer"], line["effect"])
        for line in read_lines(folder / "samples.jsonl")
    }


def test_every_answer_is_that_of_a_single_run(testbed, swept, tmp_path):
    folder, found = swept
    ours = answers(folder / "dev")
    options = {**ASKED, "data": ["testbed-dev-broken"], "output": tmp_path / "alone"}
    run_eval(testbed, strategies=["greedy", *(row["spec"] for row in found["settings"])], **options)
    assert answers(tmp_path / "alone") == ours and len(ours) > 60


def test_the_best_on_dev_is_reported_on_test(swept):
    folder, found = swept
    assert found == json.loads((folder / "sweep.json").read_text())
    assert found["tried"] == 3 and len(found["settings"]) == 3
    assert list(found["greedy"]) == ["testbed-dev-broken"] and list(found["test"]) == [
        "testbed-broken"
    ]
    values = [row["dev"]["testbed-dev-broken"] for row in found["settings"]]
    best = found["best"]["dev"]["testbed-dev-broken"]["value"]
    assert best == max(value["value"] for value in values)
    for value in values:
        gap = value["difference"]
        assert gap["p_bonferroni"] == min(1, 3 * gap["p"])
    strategies = {key[0] for key in answers(folder / "test")}
    assert strategies == {"greedy", found["best"]["strategy"]}
    test = found["test"]["testbed-broken"]
    assert test["difference"]["value"] == pytest.approx(
        test["best"]["value"] - test["greedy"]["value"]
    )


def test_the_files_of_a_sweep(swept):
    folder, found = swept
    if found["best"]["values"]:
        assert (folder / "alpha.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "alpha.pdf").read_bytes().startswith(b"%PDF")
        assert "<svg" in (folder / "alpha.svg").read_text()
    price = found["price"]
    assert price["settings"] == 3 and price["ratio"] == pytest.approx(
        price["seconds_of_all"] / price["seconds_of_one"], abs=0.05
    )
    (preset,) = (folder / "presets").iterdir()
    ((name, values),) = yaml.safe_load(preset.read_text()).items()
    assert name == "testbed-pope"
    given = {key: entry["value"] for key, entry in values.items()}
    assert get(preset.stem, **given).resolved() == given
    assert all("best of 3 by pope accuracy" in entry["source"] for entry in values.values())


def test_best_yaml_is_a_config_of_eval(swept):
    from halludecode.cli.config import merge

    folder, found = swept
    given = merge({}, folder / "best.yaml")
    assert given["strategy"] == ["greedy", found["best"]["strategy"]]
    assert (given["model"], given["tasks"], given["limit"]) == ("testbed", ["pope"], 3)
    assert given["data"] == ["testbed-broken"]


def test_the_table_tells_what_was_chosen_and_what_it_cost(swept):
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as captured:
        console.print(sweep_tables(swept[1]))
    text = captured.get()
    assert "<- chosen" in text and "Chosen of 3 settings" in text
    assert "On testbed-broken, where it was not chosen" in text
    assert "3 settings cost " in text


def test_a_later_call_asks_what_is_new_and_is_corrected_for_what_was(testbed, swept, monkeypatch):
    folder, first = swept
    lines = len(answers(folder / "dev"))
    again = run(testbed, folder)
    assert again == first and len(answers(folder / "dev")) == lines
    more = run(testbed, folder, strategies=["vcd(alpha={1,3})"])
    assert more["tried"] == 4 and len(more["settings"]) == 2
    assert more["price"] == first["price"]


def test_a_share_of_the_pictures_chooses_and_the_rest_reports(testbed, tmp_path):
    spec = ["vcd(alpha={1,2})"]
    more = {"tasks": "chair", "limit": 6, "max_new_tokens": 12, "metric": "chair_s"}
    found = run(testbed, tmp_path / "s", strategies=spec, dev=["0.5"], **more)
    chosen, reported = (
        {key[2] for key in answers(tmp_path / "s" / side)} for side in ("dev", "test")
    )
    assert chosen and reported and not chosen & reported
    assert len(chosen | reported) == 6
    assert found["metric"] == "chair_s" and found["lower_is_better"]
    values = [row["dev"]["testbed-broken"]["value"] for row in found["settings"]]
    assert found["best"]["dev"]["testbed-broken"]["value"] == min(values)
    assert "0.5 of the pictures" in (tmp_path / "s" / "best.yaml").read_text()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"dev": ["testbed-broken"]}, InvalidParameter, "chosen on other pictures"),
        ({"dev": ["1.5"]}, InvalidParameter, "above 0, below 1"),
        ({"data": ["testbed-dev-iid"]}, InvalidParameter, "Give --dev with other data"),
        ({"strategies": ["greedy"]}, InvalidParameter, "a strategy beside greedy"),
        ({"metric": "mme.total"}, InvalidParameter, "'mme' is not among the tasks pope"),
        ({"metric": "yes_ratio"}, InvalidParameter, "choose pope by one of accuracy"),
        ({"dev": ["0.001"]}, InvalidData, "no picture of pope"),
    ],
)
def test_what_cannot_be_swept_is_refused(testbed, tmp_path, options, error, says):
    with pytest.raises(error, match=says):
        run(testbed, tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


def test_pictures_on_both_sides_are_refused(testbed):
    units = sweep.prepare(testbed, tasks="pope", strategies=["greedy"], limit=2).units
    with pytest.raises(InvalidData, match=r"2 picture\(s\) are among --dev and --data"):
        sweep._check_apart(units, units)
