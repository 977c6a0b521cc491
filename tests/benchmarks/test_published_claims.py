"""The page on published claims: a few rows from the released answers, and the data behind all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import published_answers as published
import published_claims as page

from halludecode.evals.results.broken_text import UNTOLD
from halludecode.evals.results.verdict import NONE, STANDS

ROWS = {
    ("chair", "OPERA, LLaVA-1.5", "greedy"),
    ("chair", "PAINT, alpha 0.7, LLaVA-1.5", "other"),
    ("chair", "SHIELD, LLaVA-1.5", "greedy"),
    ("pope", "VCD, LLaVA-1.5-7B, adversarial (cs263)", "sampling"),
}


@pytest.fixture(scope="module")
def claims():
    return published.claims(ROWS)


def test_rows_are_those_of_the_first_reading(claims):
    assert [published.departures(claim) for claim in claims] == [[]] * len(ROWS)


def test_what_is_left_of_them(claims):
    opera, shield, paint, vcd = claims
    assert opera.verdict == NONE
    assert shield.verdict == "only a matter of naming fewer objects"
    assert paint.verdict == UNTOLD["repetition"]
    assert page.word(paint) == "text repeats itself"
    assert vcd.verdict == STANDS
    assert page.word(vcd) == "not significant (uncorrected: stands)"
    assert [round(100 * side["value"], 1) for side in (opera.main["baseline"],)] == [44.8]
    assert [c.p_holm >= c.main["p"] for c in claims] == [True] * len(claims)


def test_tables_are_sorted_and_have_a_cell_for_every_column(claims):
    captions = [claim for claim in claims if claim.task == "chair"]
    head, _, *rows = page.table(page.CAPTIONS, captions).split("\n")
    assert [row.count(" | ") for row in rows] == [head.count(" | ")] * 3
    assert [row.rsplit(" | ", 1)[1] for row in rows] == [
        "only fewer objects |",
        "text repeats itself |",
        "not significant |",
    ]


def test_a_departure_without_a_reason_is_told(claims):
    first = {**claims[0].told, "first": {"s": 5.0}}
    off = published.Claim("chair", first, claims[0].gap)
    assert page.unexplained([off])
    assert not page.unexplained([published.Claim("chair", {**first, "differs": "why"}, off.gap)])


def test_every_file_has_a_source_and_every_claim_its_files():
    rows = published.sources()
    there = {str(path.relative_to(published.HERE)) for path in published.HERE.rglob("*.gz")}
    assert {row["file"] for row in rows} == there
    assert all(row["licence"] and row["repository"] and row["commit"] for row in rows)
    notice = (published.HERE / "NOTICE").read_text(encoding="utf-8")
    assert {row["repository"] for row in rows if row["repository"] not in notice} == set()
    told = published.listed()
    files = [told[task] for task in published.MAIN]
    for entry in (entry for entries in files for entry in entries):
        for side in ("strategy", "baseline", "greedy"):
            for stem in published._files(entry.get(side, ())):
                assert f"{stem}.jsonl.gz" in there


def test_the_page_holds_every_claim():
    text = (published.HERE.parent / "published_claims.md").read_text(encoding="utf-8")
    told = published.listed()
    missing = [e["name"] for entries in told.values() for e in entries if e["name"] not in text]
    assert missing == []
    assert "UNEXPLAINED" not in text
