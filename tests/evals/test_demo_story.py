"""The demo's story: which picture is told of, and what is said of every strategy."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from halludecode.evals import demo_story
from halludecode.evals.results.build import arrange

VCD = "vcd(alpha=1.0,beta=0.1,noise_step=500)"


def caption(image: str, strategy: str, invented: list[str], text: str) -> dict:
    parsed = {"hallucinated": invented, "generated": ["dog", *invented]}
    own = {"id": image, "task": "chair", "split": None, "objects": ["dog"], "parsed": parsed}
    return {**own, "image": image, "data": "set", "strategy": strategy, "answer": text}


def question(image: str, strategy: str, name: str, answer: str) -> dict:
    own = {"id": f"{image} {name}", "task": "pope", "split": "random", "label": "no"}
    own |= {"prompt": f"Is there a {name} in the image?", "score": int(answer == "no")}
    return {**own, "image": image, "data": "set", "strategy": strategy, "answer": answer}


LINES = [
    caption("a", "greedy", ["cat"], "a dog and a cat."),
    caption("a", VCD, [], "a dog."),
    question("a", "greedy", "cat", "no"),
    question("a", VCD, "cat", "no"),
    caption("b", "greedy", ["car"], "a dog and a car."),
    caption("b", VCD, ["car", "bus"], "a dog, a car and a bus."),
    question("b", "greedy", "car", "yes"),
    question("b", VCD, "car", "no"),
    caption("c", "greedy", ["bus"], "a dog and a bus."),
    caption("c", VCD, [], "a dog."),
]
ENTRY = {"task": "chair", "data": "set", "split": None, "n": 3, "warnings": {}}
RESULTS = {
    "runs": [
        {**ENTRY, "strategy": "greedy", "seconds": 2},
        {**ENTRY, "strategy": VCD, "seconds": 3},
    ],
    "differences": [],
}


def test_the_picture_is_one_that_strategies_answer_differently():
    found = demo_story.scene(arrange(LINES, {}))
    assert (found.image, found.invented, found.objects) == ("b", "car", ("dog",))
    assert found.answers == {"greedy": "yes", VCD: "no"}
    console = Console(width=200, record=True, file=io.StringIO())
    for part in demo_story.opening(found, Path("b.png"), {VCD: "vcd"}):
        console.print(part)
    told = console.export_text()
    assert "b.png shows dog, and no car." in told
    assert "Is there a car in the image?" in told and "a dog, a car and a bus." in told


@pytest.mark.parametrize("left", [[], LINES[-2:]], ids=["nothing", "not asked about"])
def test_without_an_invented_object_that_is_asked_about_there_is_none(left):
    assert demo_story.scene(arrange(left, {})) is None


def test_a_strategy_is_told_by_what_it_changed():
    told = demo_story.deed(VCD, arrange(LINES, {}), RESULTS)
    assert told.startswith("Contrast the true image with a noised one")
    assert "changed 4 of 5 answers: 1 of yes and no mended, 0 spoilt" in told
    assert "greedy's 3 invented objects 2 are gone, 1 new ones came" in told
    assert "Helps here: nowhere clearly. Time here: 1.5 of greedy's." in told


def test_helps_means_that_it_stands_under_its_control():
    gap = {"task": "chair", "data": "set", "split": None, "strategy": VCD, "controls": {}}
    down = {"value": -0.031, "low": -0.05, "high": -0.01}
    results = {**RESULTS, "differences": [{**gap, "metrics": {"chair_i": down}}]}
    groups = arrange(LINES, {})
    assert "Helps here: yes: CHAIR_i on set -3.1." in demo_story.deed(VCD, groups, results)
    up = {"value": 0.031, "low": 0.01, "high": 0.05}
    results = {**RESULTS, "differences": [{**gap, "metrics": {"chair_i": up}}]}
    told = demo_story.deed(VCD, groups, results)
    assert "Helps here: nowhere clearly; CHAIR_i on set +3.1 (worse)." in told


def test_one_that_changes_nothing_says_so():
    lines = [{**line, "strategy": s} for line in LINES[::2] for s in ("greedy", "var(tau=None)")]
    idle = {"var edited nothing inside the model in this answer: nothing met ...": 3}
    runs = [{**ENTRY, "strategy": "var(tau=None)", "warnings": idle}, *RESULTS["runs"]]
    told = demo_story.deed("var(tau=None)", arrange(lines, {}), {**RESULTS, "runs": runs})
    assert "It edited something in 0 of 3 answers. It changed none of 5 answers." in told


def test_kinds_stand_together():
    names = ("greedy", VCD, "var(tau=None)", "m3id(lam=0.02)")
    lines = [{**line, "strategy": s} for line in LINES[::2] for s in names]
    table = demo_story.deeds(arrange(lines, {}), RESULTS, {VCD: "vcd"})
    kinds, who, _ = (list(column.cells) for column in table.columns)
    assert kinds == ["attention", "contrast", "contrast"]
    assert who == ["var(tau=None)", "vcd", "m3id(lam=0.02)"]


@pytest.mark.parametrize("lost", [0, 4, 5, 6], ids=str)
def test_answers_that_failed_are_left_out(lost):
    groups = arrange([line for i, line in enumerate(LINES) if i != lost], {})
    found = demo_story.scene(groups)
    assert found.image == ("b" if lost == 0 else "a")  # of b something is missing
    told = demo_story.deed(VCD, groups, RESULTS)
    assert "of 4 answers" in told
    assert "none of 0 answers" in demo_story.deed(VCD, arrange(LINES[1::2], {}), RESULTS)
