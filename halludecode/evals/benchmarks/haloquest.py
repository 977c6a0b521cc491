"""HaloQuest: questions that invite a false answer, judged by a language model (2407.15680)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from halludecode.core.paper import Paper
from halludecode.evals.benchmarks.base import Metric
from halludecode.evals.benchmarks.judged import REFUSED, REFUSED_AND_UNREAD, UNREAD, JudgedBenchmark
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.data.columns import Columns, said
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

    Data CC-BY-4.0: haloquest-eval.csv there, pictures by its urls, one by one under other licences,
    so neither is shipped. Counted: 608 questions about 375 pictures, none asked twice; one file
    name stands for two pictures (376 urls). The training file (7,140; not for evaluation) has 13
    questions twice, one under two kinds, and 18 rows without the name of a picture.
    """

    title = "HaloQuest"
    max_new_tokens = 128
    files = ("haloquest.jsonl", "haloquest/haloquest-eval.csv", "haloquest-eval.csv")
    needs = "haloquest/haloquest-eval.csv with images/ in the folder"
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
