"""MME: two yes/no questions a picture, one right with yes and one with no (arXiv:2306.13394)."""

from __future__ import annotations

from halludecode.core.paper import Paper
from halludecode.evals.benchmarks.base import Benchmark, LmmsEvalTask, Metric
from halludecode.evals.benchmarks.registry import benchmark

PAPER = Paper(
    "2306.13394",
    "MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models",
    "Fu, Chaoyou and others",
    "arXiv preprint",
    2023,
)


@benchmark("mme", paper=PAPER)
class MME(Benchmark):
    """Pairs of questions in subtasks of perception and cognition."""

    title = "MME"
    needs = "mme/<subtask>/*.txt in the folder, or a hub data set with MME's columns"
    metrics = (
        Metric("total", "MME total", scale=1.0, headline=True),
        Metric("hallucination_subset", "halluc. subset", scale=1.0, headline=True),
    )
    lmms_eval = LmmsEvalTask(
        "mme",
        metrics={
            "perception": ("mme_perception_score", 1.0, True),
            "cognition": ("mme_cognition_score", 1.0, True),
        },
    )
    vlmevalkit = "MME"
