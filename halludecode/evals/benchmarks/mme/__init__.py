"""MME: two yes/no questions a picture, one right with yes and one with no (arXiv:2306.13394)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halludecode.core.paper import Paper
from halludecode.evals.benchmarks.base import Benchmark, DetailTable, LmmsEvalTask, Metric
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
        Metric("total", "MME total", scale=1.0, headline=True, short="total"),
        Metric(
            "hallucination_subset",
            "halluc. subset",
            scale=1.0,
            headline=True,
            short="hallucination_subset",
        ),
    )
    details = DetailTable("Score of every subtask (0 to 200)", suffix=".score")
    lmms_eval = LmmsEvalTask(
        "mme",
        metrics={
            "perception": ("mme_perception_score", 1.0, True),
            "cognition": ("mme_cognition_score", 1.0, True),
        },
    )
    vlmevalkit = "MME"

    @classmethod
    def scale_of(cls, name: str) -> float:
        """Sums of points are shown as they are, shares of questions and pictures as percentages."""
        return 100.0 if name.endswith((".acc", ".acc_plus")) else 1.0

    @classmethod
    def cluster(cls, line: Mapping[str, Any]) -> str:
        """``subtask/picture`` of the id ``subtask/picture#k``: names repeat between subtasks."""
        return str(line["id"]).rpartition("#")[0]

    @classmethod
    def stratum(cls, line: Mapping[str, Any]) -> str:
        """The subtask: its score is over its own pictures."""
        return str(line["id"]).partition("/")[0]

    @classmethod
    def lmms_eval_outcome(cls, line: Mapping[str, Any]) -> dict[str, Any]:
        """lmms-eval sums over the two questions of a picture, by group of subtasks."""
        from halludecode.evals.benchmarks.mme.scoring import COGNITION

        subtask = cls.stratum(line)
        group = "cognition" if subtask in COGNITION else "perception"
        kept = {"question_id": cls.cluster(line), "category": subtask, "score": line["score"]}
        return {cls.lmms_eval.metrics[group][0]: kept}
