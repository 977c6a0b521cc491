"""Which of the contract tests `make test` runs, and a record of what each strategy did where.

With the environment variable HALLUDECODE_RECORD the outcome per engine, family and strategy is
written to that file: a JSON list of ``{"engine", "family", "strategy", "outcome", "laws", "failed",
"reason"}``, where outcome is "pass", "fail" or "refused" and laws counts the tests that passed.
What the file already tells of others stays. A test that stands for many strategies tells of each by
a property "outcome": (engine, family, strategy, outcome, reason).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import specs

HERE = Path(__file__).parent
RECORD = "HALLUDECODE_RECORD"
# Laws no family can break by itself: on others than the first they are left to `make test-all`.
ANYWHERE = {
    "test_sampled_batch_equals_singles_and_seeds_repeat",
    "test_composition_does_not_depend_on_order",
    "test_one_forward_per_step_for_all_rows",
    "test_stream_is_generate",
    "test_two_threads_two_strategies_do_not_leak",
}
Place = tuple[str, str, str]  # engine, family, strategy
PLACES: dict[str, Place] = {}  # by test id
OUTCOMES: dict[Place, dict[str, Any]] = {}


def _place(item: pytest.Item) -> Place | None:
    params = getattr(item, "callspec", None) and item.callspec.params
    if item.path.parent != HERE or not params:
        return None
    family = params.get("engine") or params.get("family")
    name = params["case"].name if "case" in params else params.get("name")
    return ("hf", family, name) if family and name else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every strategy on the first family, six or three on others; refused only where refused."""
    kept, dropped = list[pytest.Item](), list[pytest.Item]()
    refused = set(specs.refusals())
    for item in items:
        place = _place(item)
        law = getattr(item, "originalname", "")
        if place and (place[1:] in refused) != ("refused" in law):
            dropped.append(item)
            continue
        kept.append(item)
        if place is None:
            continue
        PLACES[item.nodeid] = place
        other = place[1] != specs.FAMILIES[0] and "refused" not in law
        tried = specs.FEWER if place[1] in specs.ALIKE else specs.REPRESENTATIVES
        if other and (place[2] not in tried or law in ANYWHERE):
            item.add_marker(pytest.mark.full)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        for name, told in report.user_properties:
            if name == "outcome":
                *place, outcome, reason = told
                made = {"outcome": outcome, "laws": 1, "failed": [], "reason": reason}
                OUTCOMES[place[0], place[1], place[2]] = made
    place = PLACES.get(report.nodeid)
    if place is None or (report.when != "call" and report.passed):
        return
    made = OUTCOMES.setdefault(place, {"outcome": "pass", "laws": 0, "failed": [], "reason": ""})
    if report.failed:
        made["outcome"] = "fail"
        made["failed"].append(report.nodeid.split("::")[-1].split("[")[0])
    elif report.passed:
        made["laws"] += 1
        reason = dict(report.user_properties).get("refused")
        if reason:
            made |= {"outcome": "refused", "reason": reason}


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get(RECORD):
        path = Path(os.environ[RECORD])
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        path.write_text(json.dumps(rows(known), indent=1) + "\n", encoding="utf-8")


def rows(known: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """What was found, in the place of what was known of the same."""
    names = ("engine", "family", "strategy")
    kept = {tuple(row[name] for name in names): row for row in known}
    found = {p: dict(zip(names, p, strict=True)) | made for p, made in OUTCOMES.items()}
    return list((kept | found).values())
