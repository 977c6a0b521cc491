"""BEAF: what an answer does when the object is taken out of the picture (arXiv:2407.13442)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from halludecode.core.errors import InvalidData
from halludecode.core.paper import Paper
from halludecode.evals.benchmarks.base import YES_RATIO, Metric
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.benchmarks.yes_no import YesNoBenchmark, count, rates
from halludecode.evals.data.columns import Columns, read_id, said, yes_or_no
from halludecode.evals.data.entries import Pictures, first_folder, folder_pictures
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Score, Sums, ratio

PAPER = Paper(
    "2407.13442",
    "BEAF: Observing BEfore-AFter Changes to Evaluate Hallucination in Vision-language Models",
    "Ye-Bin, Moon and Hyeon-Woo, Nam and Choi, Wonseok and Oh, Tae-Hyun",
    "ECCV",
    2024,
)
EDITED = re.compile(r"(.+)_\d\d")  # the name of an edit: its original's and a number


def read_word(answer: str) -> str:
    """``yes`` where it stands anywhere, else ``no`` where that does, in any case."""
    text = answer.lower()
    return "yes" if "yes" in text else "no" if "no" in text else "other"


@benchmark("beaf", paper=PAPER)
class BEAF(YesNoBenchmark):
    """The same questions about an original and about edits that each lack one object.

    Of objects that were taken out: true understanding (seen before, denied after), ignorance
    (denied before, claimed after), stubbornness with yes and with no (the same answer twice); they
    sum to 100 %. Of questions that the edit does not touch: indecision, an answer that changed.
    ``F1_TUID`` is the harmonic mean of TU and 100 - ID. One answer for all gets TU 0 and ID 0.

    The release reads an answer with neither word as the one before it; here it is ``other`` and
    wrong. Its script wants 26,118 answers and 1,727 removals, as in the file of questions beside
    it, where its README counts 26,064. Its answers of GPT-4o are these 26,118 (6,865 "Yes.",
    19,253 "No."), but the questions were too large to be had here, so its numbers are not repeated.
    The release has no licence: download beaf_qna.json of postech-ami/BEAF and its pictures.
    """

    title = "BEAF"
    whole = True  # an original with its edits
    preset_tokens = True
    rule = staticmethod(read_word)
    files = ("beaf.jsonl", "beaf/beaf_qna.json", "BEAF/beaf_qna.json", "beaf_qna.json")
    needs = "beaf_qna.json with the pictures in images/ beside it"
    columns = (
        Columns(
            {n: (n,) for n in ("id", "image", "question", "orig_img", "removed_q")}
            | {"answer": ("gt",)},
        ),
    )
    examples = tuple(
        {"id": 4 * n + 2 * edited + k, "image": f"{n}{'_00.png' if edited else '.jpg'}"}
        | {"question": f"Is there a {thing} in the image?", "orig_img": not edited}
        | {"removed_q": thing == "cup", "answer": "no" if edited and thing == "cup" else "yes"}
        for n in (0, 1)
        for edited in (0, 1)
        for k, thing in enumerate(("cup", "dog"))
    )
    metrics = (
        Metric("TU", "TU %", chance=25.0),
        Metric("IG", "IG %", lower_is_better=True, chance=25.0),
        Metric("SBp", "SB+ %", lower_is_better=True, chance=25.0),
        Metric("SBn", "SB- %", lower_is_better=True, chance=25.0),
        Metric("ID", "ID %", lower_is_better=True, chance=50.0),
        Metric("F1_TUID", "F1(TU,ID) %"),
        Metric("accuracy", "accuracy %", control="yes_ratio", headline=True, chance=50.0),
    )
    more_metrics = (Metric("f1", "F1 %", headline=True), YES_RATIO)

    def pictures(self, path: Path, folder: Path, images: Path | None) -> Pictures:
        """In images/ beside the questions."""
        return folder_pictures(images or first_folder(path.parent, "images"))

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """One question about an original or an edit."""
        cells = record.fields
        facts = {"edited": not _flag(record, "orig_img"), "removed": _flag(record, "removed_q")}
        image = PurePosixPath(said(cells["image"]))
        name = EDITED.fullmatch(image.stem) if facts["edited"] else None
        if facts["edited"] and name is None:
            raise InvalidData(
                f"{record.where}: {image.name!r} is called an edit, whose name ends in two digits."
            )
        facts["question"] = said(cells["question"])  # what an edit is compared by
        return Sample(
            read_id(cells["id"]),
            facts["question"],
            cells["image"],
            yes_or_no(cells["answer"], record.where),
            facts=facts,
            where=record.where,
            group=name.group(1) if name else image.stem,
        )

    @classmethod
    def pair(cls, line: Mapping[str, Any]) -> str | None:
        """A question about an original and its edits."""
        return f"{line['group']} {line['question']}"

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Score:
        """POPE's counts, and what became of every answer in the edits."""
        rows = [(x["group"], count(x["parsed"], x["label"], x["answer"])) for x in lines]
        for name, group in self.grouped(lines).items():
            before = {x["question"]: x for x in group if not x["edited"]}
            for line in group:
                if line["edited"]:
                    rows.append((name, _change(before, line)))
        return self.tally(lines, rows, _formula, {})


def _flag(record: Record, name: str) -> bool:
    value = record.fields[name]
    if not isinstance(value, bool):
        raise InvalidData(f"{record.where}: {name} is {value!r}; it must be true or false.")
    return value


def _change(before: Mapping[str, Mapping[str, Any]], line: Mapping[str, Any]) -> dict[str, float]:
    """What one answer about an edit adds: to removals, or to questions that were not touched."""
    if line["question"] not in before:
        raise InvalidData(
            f"id {line['id']!r}: its question is not asked about the original of {line['image']}."
        )
    first = before[line["question"]]
    if not line["removed"]:
        return {"kept": 1.0, "changed": float(first["score"] != line["score"])}
    if (first["label"], line["label"]) != ("yes", "no"):
        return {}  # taken out of another edit
    kinds = {(1, 1): "TU", (0, 0): "IG", (1, 0): "SBp", (0, 1): "SBn"}
    return {"removals": 1.0, kinds[first["score"], line["score"]]: 1.0}


def _formula(s: Sums) -> dict[str, np.ndarray]:
    nothing = np.zeros_like(np.asarray(s["n"]))
    found = {
        n: ratio(s.get(n, nothing), s.get("removals", nothing)) for n in ("TU", "IG", "SBp", "SBn")
    }
    found["ID"] = ratio(s.get("changed", nothing), s.get("kept", nothing))
    steady = 1 - found["ID"]
    found["F1_TUID"] = ratio(2 * found["TU"] * steady, found["TU"] + steady)
    return {**found, **rates(s)}
