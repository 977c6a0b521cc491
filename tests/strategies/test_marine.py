"""The second row is told what the detector found; both are mixed as the released processor does."""

from __future__ import annotations

import pytest
import torch

import halludecode as hd
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.prompt import Picture
from halludecode.core.spec import get
from halludecode.core.step import Step
from halludecode.views import detection
from tests.support import detectors, families


def test_one_row_is_told_and_nothing_found_needs_none(family_engine):
    engine = family_engine("llava")
    path, picture = detectors.save_detr(), families.pictures()[0]
    (things,) = detection.find([Picture.of(picture)], model=path, threshold=0.3)
    request = hd.Request("What is this?", [picture])
    rows = engine.rows(request, f"marine(detector={path},threshold=0.3)")
    assert set(rows) == {"main", "told"}
    assert things[0].label in rows["told"].prompt.split("picture: ")[1].split(".")[0]
    assert "What is this?" in rows["told"].prompt and "found" not in rows["main"].prompt
    assert set(engine.rows(request, f"marine(detector={path},threshold=1)")) == {"main"}


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.7, 1.5])
def test_rows_are_mixed_as_log_probabilities(gamma):
    main, told = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0))
    step = Step({"main": main, "told": told}, torch.ones(3, 1, dtype=torch.long))
    mixed = get("marine", gamma=gamma).combine(step).log_softmax(-1)
    for i in range(3):
        own, other = main[i].log_softmax(-1), told[i].log_softmax(-1)
        naive = [gamma * (o - p) + p for p, o in zip(own.tolist(), other.tolist(), strict=True)]
        torch.testing.assert_close(mixed[i], torch.tensor(naive).log_softmax(-1))


def test_listing_and_planning_load_no_detector(monkeypatch):
    monkeypatch.setattr(detection, "_loaded", None)
    plan = compile_plan("marine", typical_model_info())
    assert (plan.rows, str(plan.cost)) == (("main", "told"), "2 rows")
    assert plan.needs == {"rows", "rewords"}
