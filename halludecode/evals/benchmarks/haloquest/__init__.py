"""HaloQuest: questions that invite a false answer, judged by a language model (2407.15680)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from halludecode.core.paper import Paper
from halludecode.evals.benchmarks.base import Answers, Metric
from halludecode.evals.benchmarks.judged import REFUSED, REFUSED_AND_UNREAD, UNREAD, JudgedBenchmark
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.data.columns import Columns, said
from halludecode.evals.data.entries import Pictures, folder_pictures
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Score, Sums, ratio

PAPER = Paper(
    "2407.15680",
    "HaloQuest: A Visual Hallucination Dataset for Advancing Multimodal Reasoning",
    "Wang, Zhecan and Bingham, Garrett and Yu, Adams Wei and Le, Quoc V. and others",
    "ECCV",
    2024,
)
SHIPPED = Path(__file__).parent / "data" / "haloquest-eval.csv.gz"
_VERDICT = re.compile(r"(?<![\w.])is_prediction_correct[\"']?\s*[=:]\s*(true|false)\b", re.I)


@benchmark("haloquest", paper=PAPER)
class HaloQuest(JudgedBenchmark):
    """Questions with a false premise, too little to see, or something hard to see.

    ``accuracy`` over all, by kind of question and by kind of picture, as the release's leaderboard
    has it; a refused or unread verdict is a wrong answer, counted beside. The release asks
    through langfun, which frames its words and reads ``is_prediction_correct=True``; that line is
    what is read here. The words (three places: question, answer of the model, human answers) are in
    HaloQuest_Colab.ipynb of google/haloquest (Apache-2.0); its judge was Gemini, and numbers of
    different judges do not compare. No answers were released, so no published number is repeated.

    Its table haloquest-eval.csv (CC-BY-4.0, commit 580aefd2769e305a3e105da03c40810c1f19d1fe) is
    shipped: answers are scored without any --annotations. The pictures are not, each has a licence
    of its own: download them by the table's urls to haloquest/images of a data folder, under the
    names in ``image_name``. Counted: 608 questions about 375 pictures, none asked twice; one file
    name stands for two pictures (376 urls). The training file (7,140; not for evaluation) has 13
    questions twice, one under two kinds, and 18 rows without the name of a picture.
    """

    title = "HaloQuest"
    max_new_tokens = 128
    files = ("haloquest.jsonl", "haloquest/haloquest-eval.csv", "haloquest-eval.csv")
    needs = "its pictures in haloquest/images of the folder; the questions are shipped"
    truth_in = ""
    columns = (
        Columns(
            {"image": ("image_name", "image"), "question": ("question",)}
            | {"answers": ("groundtruth responses",), "kind": ("hallucination type",)}
            | {"made": ("image type",)},
            {"id": ("", "id")},
        ),
    )
    examples = tuple(
        {"image": f"{n}.png", "question": f"What colour is the {thing}?", "made": made}
        | {"answers": f"There is no {thing}.; No {thing}", "kind": "false premises"}
        for n, (thing, made) in enumerate((("hat", "generated"), ("dog", "real")))
    )
    replies = ("is_prediction_correct=True", "is_prediction_correct=False")
    metrics = (Metric("accuracy", "correct %", headline=True),)
    more_metrics = REFUSED_AND_UNREAD

    def find(self, folder: Path) -> Mapping[str | None, Path]:
        """A table in the folder, or the shipped one where its pictures are there."""
        found = super().find(folder)
        return found or ({None: SHIPPED} if (folder / "haloquest" / "images").is_dir() else {})

    def pictures(self, path: Path, folder: Path, images: Path | None) -> Pictures:
        """In haloquest/images, or in images/."""
        own = folder / "haloquest" / "images"
        return folder_pictures(images or (own if own.is_dir() else folder / "images"))

    def truths(
        self, annotations: Path | None, files: Sequence[Answers], **options: Any
    ) -> dict[str | None, list[Sample]]:
        """The questions of a file, or those shipped."""
        return super().truths(annotations or SHIPPED, files, **options)

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """One question; the first column, which has no name, is its id."""
        cells = record.fields
        name = said(cells["image"])
        asked = said(cells["question"])
        facts = {"kind": said(cells["kind"]), "made": said(cells["made"])}
        own = said(cells["id"]) if cells.get("id") not in (None, "") else f"{name} {asked}"
        told = {"facts": facts, "where": record.where}
        return Sample(own, asked, name, said(cells["answers"]), **told)

    def asked(self, sample: Sample, answer: str) -> Sequence[str]:
        """Question, the model's answer, the humans'."""
        return sample.question, answer, str(sample.label)

    def verdict(self, raw: str) -> Any:
        """True or false where one is said."""
        found = {match.lower() for match in _VERDICT.findall(raw)}
        return found.pop() if len(found) == 1 else UNREAD

    def right(self, verdict: Any, sample: Sample) -> bool:
        """Correct."""
        return verdict == "true"

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Score:
        """Shares of correct answers."""
        rows = []
        for line in lines:
            counts = {"refused": float(line["parsed"] == REFUSED)}
            counts["unread"] = float(line["parsed"] == UNREAD)
            for name in ("all", line["kind"], line["made"]):
                counts |= {f"{name}.n": 1.0, f"{name}.right": float(line["score"])}
            rows.append((self.cluster(line), counts))
        return self.tally(lines, rows, _formula)


def _formula(s: Sums) -> dict[str, np.ndarray]:
    names = [name.removesuffix(".n") for name in s if name.endswith(".n")]
    shares = {name: ratio(s[f"{name}.right"], s[f"{name}.n"]) for name in names}
    found = {"accuracy": shares.pop("all")}
    found |= {f"accuracy.{name}": share for name, share in shares.items()}
    return found | {name: np.asarray(s[name], dtype=float) for name in ("refused", "unread")}
