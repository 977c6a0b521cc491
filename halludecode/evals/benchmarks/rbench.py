"""R-Bench: whether things in a picture are related as the question says (arXiv:2406.16449)."""

from __future__ import annotations

from dataclasses import replace

from halludecode.core.paper import Paper
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.benchmarks.yes_no import QUESTIONS, YesNoBenchmark

PAPER = Paper(
    "2406.16449",
    "Evaluating and Analyzing Relationship Hallucinations in Large Vision-Language Models",
    "Wu, Mingrui and Ji, Jiayi and Huang, Oucheng and Li, Jiale and others",
    "ICML",
    2024,
)


@benchmark("rbench", paper=PAPER)
class RBench(YesNoBenchmark):
    """Yes/no questions about relations in pictures of Open Images, its image level.

    Read and counted as POPE, whose script it is; its rates have 0.00001 added below the line and
    are rounded, ours not. Its questions are not paired, so a shift towards yes can win here: read
    it with the control at greedy's yes-ratio. The script averages over five subsets of ids, and by
    its README they are for reference alone: all questions are scored here. Instance level (boxes
    and masks drawn into the picture) is left out. Code Apache-2.0, its data without a licence of
    their own behind a link that cannot be followed here, so not shipped and not counted: download
    image-level_filterd.json and the pictures as mrwu-mac/R-Bench says.
    """

    title = "R-Bench"
    preset_tokens = True
    files = ("rbench.jsonl", "rbench/image-level_filterd.json", "image-level_filterd.json")
    needs = "rbench/image-level_filterd.json with images/ in the folder"
    columns = (
        replace(
            QUESTIONS,
            needs={**QUESTIONS.needs, "question": ("text", "question"), "answer": ("label",)},
        ),
    )
