"""Effects of known size, planted in a few made-up answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import testbed_power
from halludecode.testbed import assets
from halludecode.testbed.categories import PARTNERS

ANCHORS = sorted(name for name in PARTNERS if PARTNERS.get(PARTNERS[name]) == name)
RNG = np.random.default_rng(0)


def question(name, picture, label, margin):
    line = {"task": "pope", "data": "d", "split": "adversarial", "strategy": "greedy"}
    line |= {"id": f"{picture}{name}", "image": picture, "label": label, "margin": 0.0}
    line["prompt"] = f"Is there a {name} in the image? Please answer yes or no."
    return testbed_power.moved(line, margin)


@pytest.fixture(scope="module")
def pool():
    """Pictures of one anchor without its partner, which is seen in two of three."""
    found = {}
    for number in range(60):
        anchor = ANCHORS[number % len(ANCHORS)]
        partner, picture = PARTNERS[anchor], f"{number}.png"
        seen = number % 3 > 0
        text = f"the image shows a {anchor}. there is also a {partner if seen else anchor}."
        caption = {"task": "chair", "data": "d", "split": None, "strategy": "greedy"}
        caption |= {"id": number, "image": picture, "objects": [anchor], "answer": text}
        found[picture] = [
            caption,
            question(anchor, picture, "yes", 0.2 + number % 7),
            question(partner, picture, "no", 0.4 if seen else -0.4),
            question("toilet" if anchor != "sink" else "bed", picture, "no", -3.0 + number % 5),
        ]
    return found


def test_lowering_moves_absent_partners_alone(pool):
    change = testbed_power.lowered(1.0)
    for caption, *questions in pool.values():
        moved = [change(RNG, q, frozenset(caption["objects"])) for q in questions]
        by = [new["margin"] - old["margin"] for new, old in zip(moved, questions, strict=True)]
        assert by == pytest.approx([0, -1, 0])
        assert moved[1]["answer"] == "no" and moved[1]["score"] == 1


def test_captions_change_as_told():
    line = {"answer": "the image shows a red mouse. there are two keyboards. a hot dog is near."}
    present = frozenset({"mouse", "hot dog"})  # no keyboard
    assert testbed_power.unnamed(1.0, True)(RNG, line, present)["answer"] == (
        "the image shows a red mouse. there are two thing. a hot dog is near."
    )
    assert testbed_power.unnamed(1.0, False)(RNG, line, present)["answer"] == (
        "the image shows a red thing. there are two thing. a thing is near."
    )
    assert testbed_power.sentences(0)(RNG, line, present)["answer"] == (
        "the image shows a red mouse. there are two keyboards."
    )
    assert testbed_power.sentences(2)(RNG, line, present)["answer"].count("hot dog") == 2


def test_what_helps_is_found_and_a_mere_shift_is_not(pool):
    helping, shifting = (
        testbed_power.Planted(told, true, "pope", change)
        for told, true, change in (
            ("helps", True, testbed_power.lowered(1.0)),
            ("shifts", False, testbed_power.shifted(0.5)),
        )
    )
    table = testbed_power.page({"made up": pool}, 3, (120,), (helping, shifting))
    rows = [line for line in table.splitlines() if line.startswith(("| helps", "| shifts"))]
    assert "| +22.3 | yes | 100%, 100%" in rows[0]
    assert "| no | 0%, 0%" in rows[1]


def test_the_shipped_card_tells_what_the_page_measured():
    page = Path(testbed_power.__file__).with_suffix(".md")
    told = testbed_power.told_in_card(page.read_text("utf-8"))
    assert told in assets.card()
    assert len([line for line in told.splitlines() if line.startswith("|")]) == 2 + len(
        testbed_power.PLANTED
    )


def test_only_the_marked_part_of_a_card_is_written(pool, tmp_path):
    helps = testbed_power.Planted("helps", True, "pope", testbed_power.lowered(1.0))
    page = testbed_power.page({"one": pool, "other": pool}, 2, (120,), (helps,))
    card = tmp_path / "card.md"
    card.write_text("a\n<!-- power:begin -->\nold\n<!-- power:end -->\nz\n", encoding="utf-8")
    testbed_power.write_card(card, page)
    testbed_power.write_card(card, page)
    first, *_, last = lines = card.read_text("utf-8").splitlines()
    assert (first, last) == ("a", "z") and "old" not in lines
    assert "| helps | yes | +22.3 | 100% | +22.3 | 100% |" in lines
