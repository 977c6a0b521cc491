"""What results need of a benchmark, for every one there is and for one that is not installed."""

import pytest

from halludecode.evals.benchmarks.base import Benchmark
from halludecode.evals.benchmarks.registry import BENCHMARKS, NotInstalled, benchmark_named
from halludecode.evals.results.build import Answers
from halludecode.evals.results.paired import _Pair
from halludecode.evals.results.sections import MOST_UNDECLARED, Section, cell


def entry(**values):
    return {
        "metrics": {n: {"value": v, "low": v - 0.1, "high": v + 0.1} for n, v in values.items()}
    }


@pytest.mark.parametrize("name", BENCHMARKS.names())
def test_what_a_benchmark_names_is_declared(name):
    benchmark = BENCHMARKS.get(name)
    declared = {m.name for m in (*benchmark.metrics, *benchmark.more_metrics)}
    drawn = {metric for plot in benchmark.plots for pair in plot.pairs for metric in pair}
    assert benchmark.metrics
    assert drawn <= declared
    assert {*benchmark.length_curves, *benchmark.word_budgets} <= declared
    for metric in benchmark.metrics:
        assert benchmark.metric(metric.name) is metric


@pytest.mark.parametrize("name", BENCHMARKS.names())
def test_the_length_control_finds_what_it_needs(name):
    benchmark = BENCHMARKS.get(name)
    cuts = benchmark.shortened.__func__ is not Benchmark.shortened.__func__
    rates = benchmark.length_rates.__func__ is not Benchmark.length_rates.__func__
    assert cuts == rates == bool(benchmark.controlled_by("length"))


def test_undeclared_metrics_are_fractions_unless_the_benchmark_says_otherwise():
    assert BENCHMARKS.get("pope").metric("precision").scale == 100
    assert BENCHMARKS.get("pope").metric("unparsed").scale == 1
    mme = BENCHMARKS.get("mme")
    assert mme.metric("count.acc_plus").scale == 100
    assert mme.metric("count.score").scale == mme.metric("perception").scale == 1


def test_a_metric_gives_way_to_the_one_over_all():
    part = Section("amber", "d", {("greedy", None): entry(**{"attribute.f1": 0.5})}, {})
    assert [column.name for column in part.columns] == ["attribute.f1"]
    whole = Section("amber", "d", {("greedy", None): entry(f1=0.4, **{"attribute.f1": 0.5})}, {})
    assert [column.name for column in whole.columns] == ["f1"]


def test_metrics_of_no_installed_benchmark_are_shown_as_they_are():
    assert issubclass(benchmark_named("nobodys"), NotInstalled)
    assert benchmark_named("nobodys").name == "nobodys"
    values = {f"metric {i}": 0.123456 for i in range(9)}
    part = Section("nobodys", "d", {("greedy", None): entry(**values)}, {})
    assert [column.title for column in part.columns] == list(values)[:MOST_UNDECLARED]
    assert cell(part, "greedy", None, part.columns[0]) == "0.123 [0.023, 0.223]"


@pytest.mark.parametrize(("labels", "controlled"), [(("yes", "no"), True), (("yes", "A"), False)])
def test_answers_other_than_yes_and_no_have_no_yes_ratio(labels, controlled):
    def line(i, label):
        sample = {"id": i, "task": "pope", "image": str(i), "label": label}
        return {**sample, "parsed": label, "margin": 1.0 if label == "yes" else -1.0}

    lines = {None: {i: line(i, label) for i, label in enumerate(labels)}}
    group = Answers("pope", "d", {}, {"greedy": lines, "vcd": lines})
    assert bool(_Pair(group, "vcd", group, "greedy").yes_ratios({}, False, 0)) == controlled
