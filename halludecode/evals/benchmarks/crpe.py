"""CRPE: what is there and how it is related, each question under four orders (arXiv:2402.19474)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from halludecode.core.errors import InvalidData
from halludecode.core.paper import Paper
from halludecode.core.params import param
from halludecode.evals.benchmarks.base import Benchmark, Metric
from halludecode.evals.benchmarks.choice import (
    FIRST_OPTION,
    ORDER_BIAS,
    choice_counts,
    choice_rates,
)
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.data.columns import Columns, read_id, said
from halludecode.evals.data.entries import Pictures, first_folder, folder_pictures
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Score, Sums, ratio

if TYPE_CHECKING:
    from halludecode.evals.presets import Preset

PAPER = Paper(
    "2402.19474",
    "The All-Seeing Project V2: Towards General Relation Comprehension of the Open World",
    "Wang, Weiyun and others",
    "ECCV",
    2024,
)
PARTS = {"relation": ("subject", "predicate", "object"), "exist": ("exist",)}
ORDERS = 4  # times that every question is asked, its options rotated


@benchmark("crpe", paper=PAPER)
class CRPE(Benchmark):
    """Questions with four options, asked four times with the options rotated: all must be right.

    ``overall`` is the mean over subject, predicate and object, as the authors print it. Officially
    an answer is one letter and nothing else, any longer one is wrong; ``rule=letter`` takes the
    letter an answer begins with, such as "A." or "(A) dog". Guessing gets 25 % of answers and 0.4 %
    of questions, one letter for all gets none. The four stand next to one another in the file, and
    only there is it told that they belong together. Apache-2.0, but 4.7 and 5.2 MB, so not shipped:
    OpenGVLab/CRPE is read at b6a90b5a4ca8721621c121714dadb3de34f1d27e (its first upload of
    crpe_exist.jsonl was 7.9 MB), COCO's pictures come from --images; nv-njb/CRPE has the relations
    with pictures. The files could not be had where this was written: nothing of them is counted.
    """

    part: str = param("relation", "Relations, or existence.", choices=tuple(PARTS))
    rule: str = param(
        "official", "One letter alone, or the one in front.", choices=("official", "letter")
    )

    title = "CRPE"
    text_kind = "choice"
    whole = True
    wording = "own"
    tells_unparsed = True
    needs = "crpe_relation.jsonl or crpe_exist.jsonl with its pictures, or nv-njb/CRPE of the hub"
    hub = "OpenGVLab/CRPE@b6a90b5a4ca8721621c121714dadb3de34f1d27e"
    hub_files = ("crpe_*.jsonl", "*.jpg", "*.png")
    columns = (
        Columns(
            {
                "question_id": ("question_id",),
                "image": ("image",),
                "text": ("text",),
                "correct_option": ("correct_option",),
                "category": ("category",),
            }
        ),
    )
    examples = tuple(
        {
            "question_id": 4 * n + k,
            "image": f"{n}.jpg",
            "text": f"What is {n}?\nA. a\nB. b\nC. c\nD. d",
        }
        | {"correct_option": "ABCD"[k], "category": ("subject", "object")[n]}
        for n in (0, 1)
        for k in range(ORDERS)
    )
    metrics = (
        Metric("overall", "overall %", chance=0.390625),
        *(Metric(name, f"{name} %") for names in PARTS.values() for name in names),
        Metric("accuracy", "answers %", chance=25.0),
        ORDER_BIAS,
    )
    more_metrics = (FIRST_OPTION,)

    def _places(self) -> tuple[str, ...]:
        name = f"crpe_{self.part}.jsonl"
        return tuple(f"{folder}{name}" for folder in ("", "crpe/", "CRPE/"))

    def pictures(self, path: Path, folder: Path, images: Path | None) -> Pictures:
        """Names are paths below the folder of all data, as in the release's scripts."""
        return folder_pictures(images or first_folder(path.parent, "images"))

    def owns(self, record: Record) -> bool:
        """Whether a row is of the part that is asked."""
        asked = said(record.fields.get("category"))
        known = {name for names in PARTS.values() for name in names}
        if record.fields.get("category") is None:
            return True  # refused where the row is read
        if asked not in known:
            raise InvalidData(
                f"{record.where}: category {asked!r} is none of {', '.join(sorted(known))}."
            )
        return asked in PARTS[self.part]

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """The question in one order of its options."""
        cells = record.fields
        label = said(cells["correct_option"]).strip()
        if label not in tuple("ABCD"):
            raise InvalidData(f"{record.where}: correct_option {label!r} is none of A to D.")
        asked = (read_id(cells["question_id"]), said(cells["text"]), cells["image"], label)
        return Sample(*asked, facts={"category": said(cells["category"])}, where=record.where)

    def finish(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Samples with the question that they are an order of: every four of a category."""
        met = Counter[str]()
        named = []
        for sample in samples:
            category = sample.facts["category"]
            named.append(replace(sample, group=f"{category} {met[category] // ORDERS}"))
            met[category] += 1
        return named

    def group_of(self, line: Mapping[str, Any]) -> tuple[str, int]:
        """A question is four answers."""
        return line["group"], ORDERS

    @classmethod
    def cluster(cls, line: Mapping[str, Any]) -> str:
        """The picture, which several questions may be about."""
        return str(line["image"])

    @classmethod
    def pair(cls, line: Mapping[str, Any]) -> str | None:
        """The four orders of a question."""
        return line["group"]

    @classmethod
    def choices(cls, line: Mapping[str, Any]) -> tuple[str, ...]:
        """Four letters."""
        return tuple("ABCD")

    def prompt(self, preset: Preset, sample: Sample) -> str:
        """The data's own text holds the options and what to answer."""
        return sample.question

    def judge(self, sample: Sample, answer: str) -> dict[str, Any]:
        """The letter that is the answer, or that it begins with."""
        pattern = r"([A-D])" if self.rule == "official" else r"\s*\(?([A-D])(?![\w'])[\s\S]*"
        found = re.fullmatch(pattern, answer)
        letter = found.group(1) if found else "other"
        return {"parsed": letter, "score": int(letter == sample.label)}

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Score:
        """Questions right in all orders, by category, and single answers."""
        rows = [(self.cluster(x), choice_counts(x["parsed"], x["label"])) for x in lines]
        for group in self.grouped(lines).values():
            name, right = group[0]["category"], all(line["score"] for line in group)
            rows.append((self.cluster(group[0]), {name: 1.0, f"{name}.right": float(right)}))
        return self.tally(lines, rows, _formula, {})


def _formula(s: Sums) -> dict[str, np.ndarray]:
    known = (name for names in PARTS.values() for name in names)
    found = {name: ratio(s[f"{name}.right"], s[name]) for name in known if name in s}
    return {"overall": np.mean(list(found.values()), axis=0), **found, **choice_rates(s)}
