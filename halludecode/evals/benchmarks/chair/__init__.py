"""CHAIR: objects that a caption names and its picture does not hold (arXiv:1809.02156)."""

from __future__ import annotations

from halludecode.core.paper import Paper
from halludecode.evals.benchmarks.base import Benchmark, LmmsEvalTask, Metric
from halludecode.evals.benchmarks.registry import benchmark

PAPER = Paper(
    "1809.02156",
    "Object Hallucination in Image Captioning",
    "Rohrbach, Anna and Hendricks, Lisa Anne and Burns, Kaylee and Darrell, Trevor and "
    "Saenko, Kate",
    "EMNLP",
    2018,
)


@benchmark("chair", paper=PAPER)
class CHAIR(Benchmark):
    """Captions, their object words counted against COCO's annotations."""

    title = "CHAIR"
    text_kind = "caption"
    needs = "annotations/instances*.json in the folder, or --annotations INSTANCES.json"
    metrics = (
        Metric("chair_i", "CHAIR_i %", lower_is_better=True, control="length", headline=True),
        Metric("chair_s", "CHAIR_s %", lower_is_better=True, control="length", headline=True),
        Metric("recall", "recall %", control="length", headline=True),
        Metric("length", "length", scale=1.0, lower_is_better=None),
    )
    lmms_eval = LmmsEvalTask(
        "coco_cap_chair",
        metrics={
            "chair_i": ("coco_cap_chair_i", 100.0, False),
            "chair_s": ("coco_cap_chair_s", 100.0, False),
            "recall": ("coco_cap_recall", 100.0, True),
        },
    )
