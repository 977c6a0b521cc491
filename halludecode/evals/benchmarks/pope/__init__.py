"""POPE: yes/no questions about the presence of objects (Li et al., EMNLP 2023, 2305.10355)."""

from __future__ import annotations

from halludecode.core.paper import Paper
from halludecode.evals.benchmarks.base import (
    YES_RATIO,
    YES_RATIO_PLOT,
    Benchmark,
    LmmsEvalTask,
    Metric,
)
from halludecode.evals.benchmarks.registry import benchmark

PAPER = Paper(
    "2305.10355",
    "Evaluating Object Hallucination in Large Vision-Language Models",
    "Li, Yifan and Du, Yifan and Zhou, Kun and Wang, Jinpeng and Zhao, Wayne Xin and Wen, Ji-Rong",
    "EMNLP",
    2023,
)


@benchmark("pope", paper=PAPER)
class POPE(Benchmark):
    """Questions about objects that are, and are not, in the picture; three ways to choose them."""

    title = "POPE"
    splits = ("random", "popular", "adversarial")
    needs = "pope/{random,popular,adversarial}.jsonl in the folder, or --annotations F.jsonl"
    metrics = (
        Metric(
            "accuracy",
            "accuracy %",
            beside=(("f1", "F1"), ("yes_ratio", "yes")),
            control="yes_ratio",
            headline=True,
            guessing=50.0,
        ),
    )
    more_metrics = (Metric("f1", "F1 %", headline=True), YES_RATIO)
    plots = (YES_RATIO_PLOT,)
    lmms_eval = LmmsEvalTask(
        "pope",
        {"random": "pope_random", "popular": "pope_pop", "adversarial": "pope_adv"},
        {
            "accuracy": ("pope_accuracy", 1.0, True),
            "precision": ("pope_precision", 1.0, True),
            "recall": ("pope_recall", 1.0, True),
            "f1": ("pope_f1_score", 1.0, True),
            "yes_ratio": ("pope_yes_ratio", 1.0, True),
        },
        pooled=True,
    )
    vlmevalkit = "POPE"
