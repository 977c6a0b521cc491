"""Two pictures, one of them named: every extra row edits both, or shows the user's own in order."""

from __future__ import annotations

import pytest

import halludecode as hd
from halludecode.core.registry import STRATEGIES
from tests.support import families, specs

QUESTION = "What is in image 2?"


@pytest.fixture
def engine(family_engine, tmp_path):
    return specs.supplied(family_engine("llava"), tmp_path)


def with_rows() -> list[str]:
    return [name for name in STRATEGIES.names() if STRATEGIES.get(name).declares("branches")]


@pytest.mark.parametrize("name", with_rows())
def test_rows_edit_both_pictures_or_show_the_users_own_in_order(engine, name):
    plan = engine.plan(specs.active(name))
    request = hd.Request(QUESTION, families.pictures()[:2])
    plain = engine.rows(request)["main"]
    rows = engine.rows(request, plan)
    own = [image.picture.key for image in plain.images]
    for local, branch in plan.parts[0].branches.items():
        row = rows[local]
        shown = [image.picture.key for image in row.images]
        if branch.images is not None or branch.pixels is not None:
            assert len(row.images) == 2
            pairs = zip(row.images, plain.images, strict=True)
            assert all(edited.key != image.key for edited, image in pairs), "both are edited"
        elif local != "main":
            assert shown == [key for key in own if key in shown], "none is doubled or exchanged"
        if branch.features is not None:
            assert all(image.features is not None for image in row.images)
            assert len(row.embeds) == sum(image.count for image in row.images)


def test_rscd_hides_the_named_picture_alone(engine):
    one, two = families.pictures()[:2]
    request = hd.Request(QUESTION, [one, two])
    rows = engine.rows(request, "rscd")
    shown, own = ([x.picture.key for x in rows[name].images] for name in ("shifted", "main"))
    assert shown == own[:1]
    made = engine.generate(request, "rscd(beta=0)", hd.Sampling(max_new_tokens=1, logprobs=3))[0]
    main = engine.generate(request, "greedy", hd.Sampling(max_new_tokens=1, logprobs=3))[0]
    assert made.logprobs[0].top != main.logprobs[0].top
