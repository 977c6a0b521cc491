"""HallusionBench: the same question about an original and an edited figure (arXiv:2310.14566)."""

from __future__ import annotations

from halludecode.core.paper import Paper
from halludecode.evals.benchmarks.base import Benchmark, Metric
from halludecode.evals.benchmarks.registry import benchmark

PAPER = Paper(
    "2310.14566",
    "HallusionBench: An Advanced Diagnostic Suite for Entangled Language Hallucination and Visual "
    "Illusion in Large Vision-Language Models",
    "Guan, Tianrui and others",
    "CVPR",
    2024,
)


@benchmark("hallusionbench", paper=PAPER)
class HallusionBench(Benchmark):
    """Sets of questions and figures; a pair or a figure counts only when all of it is right."""

    title = "HallusionBench"
    needs = "hallusionbench/HallusionBench.json, or --annotations that file"
    metrics = tuple(Metric(name, f"{name} %") for name in ("aAcc", "qAcc", "fAcc", "hard"))
    tells_unparsed = True
    vlmevalkit = "HallusionBench"
