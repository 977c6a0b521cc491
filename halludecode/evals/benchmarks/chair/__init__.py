"""CHAIR: objects that a caption names and its picture does not hold (arXiv:1809.02156)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from halludecode.core.paper import Paper
from halludecode.evals.benchmarks.base import Benchmark, LmmsEvalTask, Mention, Metric, MetricPlot
from halludecode.evals.benchmarks.registry import benchmark

if TYPE_CHECKING:
    from halludecode.evals.benchmarks.chair.object_words import Reader
    from halludecode.evals.statistics.score import Id, Score

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
        Metric(
            "length",
            "length",
            scale=1.0,
            lower_is_better=None,
            axis="mean length of a caption, tokens",
        ),
    )
    plots = (
        MetricPlot(
            "CHAIR against recall and length",
            (("recall", "chair_i"), ("length", "chair_i")),
            "Saying less invents less: a strategy is better when it moves down without moving "
            "left.",
        ),
    )
    length_curves = ("chair_i", "recall")
    word_budgets = ("chair_s", "chair_i")
    lmms_eval = LmmsEvalTask(
        "coco_cap_chair",
        metrics={
            "chair_i": ("coco_cap_chair_i", 100.0, False),
            "chair_s": ("coco_cap_chair_s", 100.0, False),
            "recall": ("coco_cap_recall", 100.0, True),
        },
    )

    @classmethod
    def mentions(
        cls, text: str, line: Mapping[str, Any], settings: Mapping[str, str]
    ) -> Sequence[Mention] | None:
        """Objects of the 80 kinds, held against those annotated."""
        if line.get("objects") is None:
            return None
        reader = _reader(settings.get("family", "wordnet"), settings.get("path", "auto"))
        return [
            Mention(found.start, found.end, found.object, found.object not in line["objects"])
            for found in reader.read(text).mentions
        ]

    @classmethod
    def shortened(cls, score: Score, words: Mapping[Id, int]) -> Score:
        """What a caption names is read from the whole of it and kept up to the cut."""
        from halludecode.evals.benchmarks.chair.shortening import shortened

        return shortened(score, words)

    @classmethod
    def length_rates(cls, score: Score) -> Score:
        """Invented mentions per 100 words, precision and F1 over object types."""
        from halludecode.evals.benchmarks.chair.shortening import length_rates

        return length_rates(score)

    @classmethod
    def recipe(cls, run: Mapping[str, Any]) -> list[tuple[str, str]]:
        """How objects are found in captions."""
        settings = run.get("chair")
        words = ", ".join(f"{name} {value}" for name, value in (settings or {}).items())
        return [("CHAIR words", words)] if settings else []

    @classmethod
    def lmms_eval_outcome(cls, line: Mapping[str, Any]) -> dict[str, Any]:
        """lmms-eval counts objects over all captions."""
        kept = {
            "answer": line["objects"],
            "pred": line["parsed"]["generated"],
            "image_id": line["id"],
        }
        return {name: kept for name, _, _ in cls.lmms_eval.metrics.values()}


@cache
def _reader(family: str, path: str) -> Reader:
    from halludecode.evals.benchmarks.chair.object_words import reader

    return reader(family, path)
