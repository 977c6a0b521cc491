from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halludecode.evals.report import charts, scatter
from halludecode.evals.report.charts import Curve, Panel, Value
from halludecode.evals.report.scatter import Point
from tests.support import drawing

NAMES = st.text(st.sampled_from("abcxyz+(),=.0159_<&"), min_size=1, max_size=60)
NUMBERS = st.floats(-500, 2800, allow_nan=False)


def value(middle, half=1.0):
    return Value(middle, middle - half, middle + half)


@given(NUMBERS, NUMBERS, st.integers(2, 9))
def test_ticks_cover_the_range_with_few_even_steps(a, b, count):
    low, high = min(a, b), max(a, b)
    marks = charts.ticks(low, high, count)
    assert 2 <= len(marks) <= count + 2
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert marks[0] <= low + slack and marks[-1] >= high - slack
    steps = [after - before for before, after in pairwise(marks)]
    assert min(steps) > 0
    assert max(steps) - min(steps) < 1e-6


@given(NAMES, st.floats(40, 200))
def test_wrap_keeps_every_letter_and_the_width(name, most):
    lines = charts.wrap(name, most)
    assert "".join(lines) == name
    assert all(charts.text_width(line) <= most for line in lines)


def test_wrap_breaks_where_a_spec_may_break():
    assert charts.wrap("var(p=0.6)+vcd(alpha=0.5)", 110) == ["var(p=0.6)+", "vcd(alpha=0.5)"]


@given(
    st.lists(st.tuples(NAMES, st.floats(0, 100)), min_size=1, max_size=12),
    st.integers(1, 6),
)
def test_bars_clip_no_text_whatever_the_names(rows, count):
    bars = [value(v) for _, v in rows]
    verdicts = ["baseline", *["better"] * (len(rows) - 1)]
    panels = [Panel(f"split {i}", "accuracy %", bars, verdicts) for i in range(count)]
    svg = charts.bars([name for name, _ in rows], panels, "what <it> is")
    drawing.assert_inside(svg)
    said = "".join(text for text, _ in drawing.texts(svg))
    for name, v in rows:
        assert name.replace(" ", "") in said.replace(" ", "")
        assert f"{v:.1f}" in said


def test_bars_of_one_axis_start_together_and_not_above_an_interval():
    def panels(low):
        return [
            Panel("a", "", [value(80)], ["baseline"], "accuracy", 50.0),
            Panel("b", "", [value(low)], ["baseline"], "accuracy", 50.0),
            Panel("c", "", [value(5)], ["baseline"], "chair_i"),
        ]

    assert charts.start(panels(60), "accuracy") == 50
    assert charts.start(panels(50.5), "accuracy") == 0
    assert charts.start(panels(60), "chair_i") == 0


def test_a_missing_value_is_said_and_better_is_not_told_by_colour_alone():
    panel = Panel("a", "", [value(80), None, value(90)], ["baseline", "open", "better"])
    said = [text for text, _ in drawing.texts(charts.bars(["g", "h", "i"], [panel], "x"))]
    assert "none" in said
    assert "90.0 ▲" in said
    assert charts.bars([], [], "x") == ""


POINTS = st.builds(
    Point,
    name=NAMES,
    x=st.builds(value, st.floats(0, 100), st.floats(0, 5)),
    y=st.builds(value, st.floats(0, 100), st.floats(0, 5)),
    verdict=st.sampled_from(["baseline", "better", "worse", "changed", "open"]),
    moved=st.none() | st.tuples(st.floats(0, 100), st.floats(0, 100)),
)
# Few places: points that coincide, or nearly do, with other names and verdicts
CROWDED = st.builds(
    Point,
    name=st.sampled_from(["0", "00", "0" * 18, "a+b(c=0.5)" * 5]),
    x=st.builds(value, st.sampled_from([1.0, 1.01, 1.2])),
    y=st.builds(value, st.sampled_from([1.0, 1.01, 1.2])),
    verdict=st.sampled_from(["baseline", "better", "worse", "changed", "open"]),
)


@given(st.lists(POINTS, min_size=1, max_size=12) | st.lists(CROWDED, min_size=1, max_size=30))
def test_points_are_all_labelled_inside_the_drawing_and_apart(shown):
    svg = scatter.points(shown, "x", "y", "what it is", (50.0, "truly yes"))
    drawing.assert_inside(svg)
    named = []
    for title, words in drawing.labels(svg):
        names = [part.split(": ")[0] for part in title.split("; ")]
        label = "".join(text for text, _ in words)
        assert label.replace(" ", "") in (",".join(names), f"{names[0]}={','.join(names[1:])}")
        named += names
    assert sorted(named) == sorted(point.name for point in shown)
    assert_apart([box for _, words in drawing.labels(svg) for _, box in words])


def assert_apart(boxes):
    assert not any(drawing.overlap(a, b) > 0.2 for a, b in combinations(boxes, 2))


def test_labels_without_room_beside_their_points_move_into_a_column():
    verdicts = ("open", "better", "worse", "changed")
    crowd = [
        Point("a" * 40 + str(i), value(1 + i % 3 / 10), value(1 + i // 8 / 10), verdicts[i % 4])
        for i in range(32)
    ]
    svg = scatter.points(crowd, "x", "y", "z")
    lefts = {words[0][1][0] for _, words in drawing.labels(svg)}
    assert len(lefts) == 1
    few = scatter.points(crowd[:3], "x", "y", "z")
    assert len({words[0][1][0] for _, words in drawing.labels(few)}) == 3


def test_points_that_coincide_share_a_label_unless_they_mean_different_things():
    def at(name, x, verdict="open"):
        return Point(name, value(x), value(x), verdict)

    shown = [at("vcd", 3), at("m3id", 1), at("greedy", 1, "baseline"), at("pai", 3, "better")]
    said = [text for text, _ in drawing.texts(scatter.points(shown, "x", "y", "z"))]
    assert "greedy" in said and "= m3id" in said
    assert "vcd" in said and "pai" in said


def test_a_controlled_point_is_drawn_and_kept_clear_of_labels():
    shown = [
        Point("greedy", value(50), value(80), "baseline"),
        Point("vcd", value(40), value(84), "better", (50.0, 79.0)),
    ]
    svg = scatter.points(shown, "x", "y", "z")
    assert "stroke-dasharray" in svg
    assert svg.count("l7 7m-7 0l7-7") == 1
    assert "-7 0l7-7" not in scatter.points(shown[:1], "x", "y", "z")


def test_many_points_get_the_whole_width():
    shown = [Point(f"s{i}", value(i % 5), value(i // 5)) for i in range(21)]
    svg = scatter.points(shown, "x", "y", "z")
    assert drawing.size(svg)[0] == charts.WIDTH
    drawing.assert_inside(svg)


@given(
    st.lists(st.tuples(NAMES, st.floats(0, 60)), min_size=1, max_size=12)
    | st.lists(st.tuples(st.sampled_from(["0", "00", "0" * 18]), st.just(1.0)), min_size=1)
)
def test_curves_name_every_line_inside_the_drawing_and_apart(lines):
    shown = [Curve(name, [(20.0, 1.0), (40.0, end)], not i) for i, (name, end) in enumerate(lines)]
    svg = charts.curves(shown, "words", "CHAIR_i %", "what it is")
    drawing.assert_inside(svg)
    texts = drawing.texts(svg)
    labels = texts[[text for text, _ in texts].index("CHAIR_i %") + 1 :]  # behind axes and titles
    together = {}
    for curve in shown:
        together.setdefault(tuple(curve.points), []).append(curve.name)
    said = "".join(text for text, _ in labels).replace(" ", "")
    assert said == "".join(",".join(names) for names in together.values())
    assert_apart([box for _, box in labels])


def test_equal_curves_share_a_line():
    line = [(1.0, 2.0), (2.0, 3.0)]
    svg = charts.curves([Curve("a", line), Curve("greedy", line, True)], "x", "y", "z")
    assert "greedy, a" in [text for text, _ in drawing.texts(svg)]
    assert charts.curves([], "x", "y", "z") == ""


@pytest.mark.parametrize("bad", ["<script>", '"><img src=x>', "a&b"])
def test_names_are_escaped(bad):
    drawn = [
        charts.bars([bad], [Panel(bad, bad, [value(1)], ["open"])], bad),
        scatter.points([Point(bad, value(1), value(1))], bad, bad, bad, (1.0, bad)),
        charts.curves([Curve(bad, [(1.0, 1.0)])], bad, bad, bad),
    ]
    for svg in drawn:
        assert bad not in svg.replace("&amp;", "") or "&" in bad
        drawing.texts(svg)  # well formed
