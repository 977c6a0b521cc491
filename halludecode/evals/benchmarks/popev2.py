"""POPEv2: POPE's question about a picture and about its edit, without the object (2508.04567)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from halludecode.core.paper import Paper
from halludecode.evals.benchmarks.base import Metric
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.benchmarks.yes_no import YesNoBenchmark, count, rates
from halludecode.evals.data.columns import Columns, said, yes_or_no
from halludecode.evals.data.entries import Pictures, folder_pictures
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Score, Sums, ratio

PAPER = Paper(
    "2508.04567",
    "Analyzing and Mitigating Object Hallucination: A Training Bias Perspective",
    "Li, Yifan and Zhou, Kun and Zhao, Wayne Xin and Fang, Lei and Wen, Ji-Rong",
    "AAAI",
    2026,
)
_SAME = {name: (name,) for name in ("image_id", "target_object")}


@benchmark("popev2", paper=PAPER)
class POPEv2(YesNoBenchmark):
    """Yes/no questions, each about an original and an edited picture that lacks what is asked for.

    ``follows_edit`` is the share of objects seen in the original that are denied in the edit.
    """

    title = "POPEv2"
    whole = True  # pairs
    preset_tokens = True
    files = ("popev2/annotations.json", "POPEv2/dataset/annotations.json")
    needs = (
        "popev2/annotations.json with its images/ and coco/train2017/ beside, or Monosail/POPEv2"
    )
    columns = (
        Columns({"image": ("image_name",), "question": ("query",), "answer": ("label",)} | _SAME),
        Columns(  # the hub's, with both pictures in a row
            {n: (n,) for n in ("normal_label", "counterfactual_label", "question")}
            | {"normal": ("normal_image",), "counterfactual": ("counterfactual_image",)}
            | _SAME,
            pictures=("normal", "counterfactual"),
        ),
    )
    examples = tuple(
        {"image_id": n, "target_object": thing, "question": f"Is there a {thing}?"}
        | {"image": f"{'edited' if answer == 'No' else 'seen'}_{n}.png", "answer": answer}
        for n, thing in enumerate(("cup", "dog"))
        for answer in ("No", "Yes")
    )
    metrics = (
        Metric("pair_accuracy", "both right %", chance=25.0),
        *YesNoBenchmark.metrics,
        Metric("original_accuracy", "original %"),
        Metric("edited_accuracy", "edited %"),
        Metric("follows_edit", "follows edit %"),
    )

    def pictures(self, path: Path, folder: Path, images: Path | None) -> Pictures:
        """Beside the annotations, whose names of pictures begin with their folder."""
        return folder_pictures(images or path.parent)

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """A question about one picture of a pair, or about both."""
        cells = record.fields
        if "answer" in cells:
            edited = yes_or_no(cells["answer"], record.where) == "no"  # objects are only removed
            return _sample(record, edited, cells["image"].lstrip("/"), cells["answer"])
        sides = ((False, "normal"), (True, "counterfactual"))
        return [_sample(record, e, cells[side], cells[f"{side}_label"]) for e, side in sides]

    @classmethod
    def pair(cls, line: Mapping[str, Any]) -> str | None:
        """The question about the original and about the edit."""
        return line["group"]

    def group_of(self, line: Mapping[str, Any]) -> tuple[str, int]:
        """A pair is two, also where the data hold one of them."""
        return line["group"], 2

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Score:
        """POPE's counts over all questions, and those of pairs."""
        rows = [(self.cluster(x), count(x["parsed"], x["label"], x["answer"])) for x in lines]
        both = {}
        for name, pair in self.grouped(lines).items():
            right = {x["edited"]: x["score"] for x in pair}
            both[name] = right[False] * right[True]
            counts = {"pairs": 1.0, "original": right[False], "edited": right[True]}
            rows.append((name, {**counts, "both": both[name]}))
        return self.tally(lines, rows, _formula, {"pair_accuracy": both})


def _sample(record: Record, edited: bool, image: str, label: Any) -> Sample:
    pair = f"{said(record.fields['image_id'])} {record.fields['target_object']}"
    told = {"facts": {"edited": edited}, "where": record.where, "group": pair}
    name = f"{pair} {'edited' if edited else 'original'}"
    asked = (said(record.fields["question"]), image, yes_or_no(label, record.where))
    return Sample(name, *asked, **told)


def _formula(s: Sums) -> dict[str, np.ndarray]:
    return rates(s) | {
        "pair_accuracy": ratio(s["both"], s["pairs"]),
        "original_accuracy": ratio(s["original"], s["pairs"]),
        "edited_accuracy": ratio(s["edited"], s["pairs"]),
        "follows_edit": ratio(s["both"], s["original"]),
    }
