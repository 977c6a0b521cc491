import re

import pytest

from halludecode.evals.report import figures
from halludecode.evals.results.build import Answers
from halludecode.evals.results.sections import Section
from tests.support import drawing

NAMES = {"greedy": "greedy", "vcd(alpha=1.0)": "vcd"}


def interval(middle, half=0.02):
    return {"value": middle, "low": middle - half, "high": middle + half}


def pope(accuracy, yes, precision=0.8, recall=0.8):
    values = {"accuracy": accuracy, "yes_ratio": yes, "precision": precision, "recall": recall}
    return {"n": 100, "failed": 0, "metrics": {k: interval(v) for k, v in values.items()}}


def section(gap=None, splits=("random", "adversarial", "mean")):
    entries = {("greedy", s): pope(0.8, 0.5) for s in splits}
    entries |= {("vcd(alpha=1.0)", s): pope(0.85, 0.4) for s in splits}
    gaps = {("vcd(alpha=1.0)", s): gap for s in splits} if gap else {}
    return Section("pope", "d", entries, gaps)


def gap(low, high, matched=None):
    found = {"metrics": {"accuracy": {"value": (low + high) / 2, "low": low, "high": high}}}
    if matched is not None:
        plain = {"value": 0.05, "low": low, "high": high}
        control = {"yes_ratio": 0.5, "accuracy": interval(matched), "plain": plain}
        found["controls"] = {"yes_ratio": control}
    return found


def said(figure):
    return [text for svg in figure.drawings for text, _ in drawing.texts(svg)]


def test_pope_gets_bars_and_one_plot_per_split():
    bars, points = figures.figures(section(gap(0.01, 0.09)), NAMES)
    assert len(bars.drawings) == 1
    assert {"random", "adversarial", "mean", "85.0 ▲"} <= set(said(bars))
    assert "start at 50" in bars.note
    assert len(points.drawings) == 3
    for svg in points.drawings:
        drawing.assert_inside(svg)
        assert {"greedy", "vcd"} <= {text for text, _ in drawing.texts(svg)}
        assert "truly yes" in [text for text, _ in drawing.texts(svg)]


def test_bars_follow_the_interval_of_the_paired_difference():
    for low, high, mark in ((0.01, 0.09, "85.0 ▲"), (-0.09, -0.01, "85.0 ▼"), (-1, 1, "85.0")):
        assert mark in said(figures.figures(section(gap(low, high)), NAMES)[0])


def test_share_of_true_yes_comes_from_the_metrics():
    # precision x yes-ratio / recall = share of questions whose answer is yes
    part = Section("pope", "d", {("greedy", None): pope(0.8, 0.4, 0.9, 0.6)}, {})
    at, _ = figures._truth(part, None)
    assert at == pytest.approx(60)
    degenerate = Section("pope", "d", {("greedy", None): pope(0.5, 0.0, 0.0, 0.0)}, {})
    assert figures._truth(degenerate, None) is None


def test_accuracy_at_the_baselines_yes_ratio_is_drawn_where_it_is_known():
    with_control = figures.figures(section(gap(0.01, 0.09, matched=0.79)), NAMES)[1]
    assert all(svg.count("l7 7m-7 0l7-7") == 1 for svg in with_control.drawings)
    without = figures.figures(section(gap(0.01, 0.09)), NAMES)[1]
    assert not any("l7 7m-7 0l7-7" in svg for svg in without.drawings)


def caption(i, text, truth):
    return {"id": i, "task": "chair", "answer": text, "objects": truth}


@pytest.fixture()
def chair():
    texts = {
        "greedy": "A dog sits on a rug. There is also a cat near the old door.",
        "vcd(alpha=1.0)": "A dog sits on a rug.",
    }
    lines = {s: {None: {i: caption(i, t, ["dog"]) for i in (1, 2)}} for s, t in texts.items()}
    families = {"family": "wordnet", "gt_family": "wordnet", "path": "tables"}
    answers = Answers("chair", "d", families, lines)
    entries = {
        (s, None): {
            "n": 2,
            "failed": 0,
            "metrics": {m: interval(v) for m, v in answers.scores(s)[None].metrics.items()},
        }
        for s in texts
    }
    return Section("chair", "d", entries, {}), answers


def test_captions_get_recall_length_and_curves(chair):
    part, answers = chair
    found = {figure.title: figure for figure in figures.figures(part, NAMES, answers)}
    assert len(found["CHAIR against recall and length"].drawings) == 2
    curves = found["CHAIR against the length of the captions"].drawings
    assert len(curves) == 2
    drawing.assert_inside(curves[0])
    assert {"greedy", "vcd"} <= {text for text, _ in drawing.texts(curves[0])}


def test_curve_is_chair_of_the_cut_captions(chair):
    part, answers = chair
    (svg, _) = figures._curves(answers, part, NAMES).drawings
    path = next(d for d in re.findall(r'd="M([^"]+)" fill="none" stroke-linejoin', svg))
    heights = [float(p.split()[1]) for p in path.split("L")]
    # greedy: no cat before the cut at 10 words, one object of two invented behind it
    assert max(heights) == heights[0] > heights[-1] == min(heights)


def test_runs_without_captions_answered_get_no_curve():
    part = Section("chair", "d", {}, {})
    answers = Answers("chair", "d", {}, {})
    assert figures.figures(part, {}, answers) == []
