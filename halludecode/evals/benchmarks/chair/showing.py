"""How reports and exports show captions: what they name, where, and by which words it is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from halludecode.evals.benchmarks.chair.word_list import reader_of
from halludecode.evals.benchmarks.shown import LmmsEvalTask, Mention


class ShownCaptions:
    """The part of CHAIR that reports and exports need."""

    name: ClassVar[str]
    lmms_eval: ClassVar[LmmsEvalTask]

    @classmethod
    def mentions(
        cls, text: str, line: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> Sequence[Mention] | None:
        """Objects of the categories, held against those annotated."""
        if line.get("objects") is None:
            return None
        lines = tuple(settings["synonyms"]) if settings.get("synonyms") else None
        words = settings.get("family", "wordnet"), settings.get("path", "auto")
        reader = reader_of(lines, *words)
        return [
            Mention(found.start, found.end, found.object, found.object not in line["objects"])
            for found in reader.read(text).mentions
        ]

    @classmethod
    def recipe_rows(cls, run: Mapping[str, Any]) -> list[tuple[str, str]]:
        """How objects are found in captions."""
        settings = run.get(cls.name)
        told = {name: value for name, value in (settings or {}).items() if name != "synonyms"}
        if own := (settings or {}).get("synonyms"):
            told["words"] = f"of {len(own)} categories of one's own"
        words = ", ".join(f"{name} {value}" for name, value in told.items())
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
