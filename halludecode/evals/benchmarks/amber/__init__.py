"""AMBER: descriptions and yes/no questions about what is and is not there (arXiv:2311.07397)."""

from __future__ import annotations

from halludecode.core.paper import Paper
from halludecode.evals.benchmarks.base import Benchmark, Metric, MetricPlot
from halludecode.evals.benchmarks.registry import benchmark

PAPER = Paper(
    "2311.07397",
    "AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation",
    "Wang, Junyang and others",
    "arXiv preprint",
    2023,
)


@benchmark("amber", paper=PAPER)
class AMBER(Benchmark):
    """Descriptions against lists of what is and is not there, and questions by dimension."""

    title = "AMBER"
    needs = "amber/annotations.json with query/*.json, or --annotations ANNOTATIONS.json"
    metrics = (
        Metric(
            "chair",
            "CHAIR %",
            lower_is_better=True,
            beside=(("hal", "Hal"), ("cog", "Cog")),
            short="chair",
        ),
        Metric("cover", "cover %"),
        Metric("f1", "F1 %", beside=(("accuracy", "accuracy"),)),
        Metric("amber", "AMBER %"),
        Metric("existence.f1", "existence F1 %", unless="f1"),
        Metric("attribute.f1", "attribute F1 %", unless="f1"),
        Metric("relation.f1", "relation F1 %", unless="f1"),
    )
    more_metrics = (Metric("accuracy", "accuracy %", control="yes_ratio"),)
    plots = (
        MetricPlot(
            "CHAIR against cover",
            (("cover", "chair"),),
            "Saying less invents less: a strategy is better when it moves down without moving "
            "left.",
        ),
    )
    tells_unparsed = True
    vlmevalkit = "AMBER"
