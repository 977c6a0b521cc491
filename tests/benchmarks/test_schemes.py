"""The page of trained schemes: its own numbers, on lines and sums written out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import schemes


def test_a_slope_is_that_of_the_line_of_least_squares():
    x, y = np.array([0.0, 0.5, 1.0, 4.0]), np.array([1.0, -2.0, 3.0, 0.5])
    assert schemes.slope(x, y) == pytest.approx(np.polyfit(x, y, 1)[0])
    assert schemes.slope(np.zeros(1), y[:1]) == 0.0  # one word has none


def test_things_below_are_told_from_things_above(monkeypatch, tmp_path):
    places = {("iid/a.png", "dog"): True, ("iid/a.png", "cup"): False}
    monkeypatch.setattr(schemes, "places", lambda count: places)

    def line(thing, parsed, **more):
        question = f"Is there a {thing} in the image? Please answer yes or no."
        plain = {"task": "pope", "split": "random", "label": "yes", "strategy": "greedy"}
        about = {"data": "testbed-iid", "image": "a.png", "prompt": question, "parsed": parsed}
        return plain | about | more

    told = [
        line("dog", "yes"),
        line("dog", "no"),
        line("cup", "no"),
        line("cup", "yes", strategy="cca(depth=1.0)"),
        line("cup", "yes", split="adversarial"),  # the same question again
        line("cat", "yes", label="no"),
    ]
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, told)), encoding="utf-8")
    assert schemes.halves(tmp_path, "greedy", 1) == {"iid/a.png": (1, 0, 2, 1)}
    assert schemes.canonical(tmp_path, "cca") == "cca(depth=1.0)"
    sums = {"0": np.array(1.0), "1": np.array(0.0), "2": np.array(2.0), "3": np.array(1.0)}
    assert schemes.gap(sums)["gap"] == 50.0


def test_differences_are_paired_by_picture_and_holm_is_over_the_table():
    first = {f"{i}": (i / 10 + 1.05, 1.0) for i in range(40)}
    second = {f"{i}": (i / 10 + 0.05, 1.0) for i in range(41)}  # one picture has no partner
    found = schemes.paired(first, second, schemes.mean)
    assert found["value"] == pytest.approx(1.0)
    assert found["low"] == pytest.approx(1.0) == found["high"]
    none = schemes.paired(first, first, schemes.mean)
    rows = [("clear", found, 1.0), ("none", none, 1.0)]
    head, _, one, other = schemes.table(rows, ("with", "control"))
    assert head.startswith("|  | with | control | difference")
    assert one.startswith("| clear | 3.0 | 2.0 | +1.0 | [+1.0, +1.0] | < 0.001 |")
    assert "| 1.000 | 1.000 |" in other
    assert schemes.clear(rows) == "Clear at 0.05 by Holm: clear (+1.0)."
    assert schemes.clear(rows[1:]) == "Nothing is clear at 0.05."
