"""R-Bench: the counts of its script, up to what that adds below the line; its release."""

from __future__ import annotations

import json

import pytest

from halludecode.evals.benchmarks.rbench import RBench
from halludecode.evals.load import load_units
from tests.support import eval_world as world
from tests.support.answered import OFFICIAL, lines_of, samples_of


def test_scores_equal_the_official_scripts():
    given = OFFICIAL["rbench"]["rows"]
    rows = [
        {"question_id": i, "image": f"{i}.jpg", "question": "Is he riding it?", "answer": label}
        for i, label, _ in given
    ]
    answers = {i: answer for i, _, answer in given}
    lines = lines_of(RBench(), samples_of(RBench(), rows), lambda s: answers[s.id])
    metrics = RBench().score(lines).metrics
    for name, value in OFFICIAL["rbench"]["scores"].items():
        assert metrics[name] == pytest.approx(value, abs=1e-5)  # its rates have 1e-5 below the line


def test_the_release_is_found(tmp_path):
    rows = [{"question_id": 7, "image": "a.jpg", "text": "Is he on it?", "label": "no"}]
    (tmp_path / "rbench").mkdir()
    (tmp_path / "rbench" / "image-level_filterd.json").write_text(json.dumps(rows))
    world.picture(tmp_path / "images" / "a.jpg", 1)
    (unit,) = load_units([tmp_path], world.select("rbench"))
    assert [(s.id, s.question, s.label) for s in unit.samples] == [(7, "Is he on it?", "no")]
