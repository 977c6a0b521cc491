"""MIHBench: whether a thing is in all of several pictures, or equally often (2508.00726)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from halludecode.core.paper import Paper
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.benchmarks.yes_no import YesNoBenchmark, count, rates
from halludecode.evals.data.columns import Columns, said, yes_or_no
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Score, Sums, ratio

PAPER = Paper(
    "2508.00726",
    "MIHBench: Benchmarking and Mitigating Multi-Image Hallucinations in Multimodal Large "
    "Language Models",
    "Li, Jiale and Wu, Mingrui and Jin, Zixiang and Chen, Hao and others",
    "ACM Multimedia",
    2025,
)


@benchmark("mihbench", paper=PAPER)
class MIHBench(YesNoBenchmark):
    """Yes/no questions about two to four pictures at once, with accuracy by task.

    All pictures are shown before the question, in order. Questions are not paired, so read it with
    the control at greedy's yes-ratio. Of the release only the card of MM-Hallu/MIHBench (CC-BY-4.0,
    3,200 questions: count, and existence random, popular and adversarial; a fifth task is announced
    there) could be read, neither files nor a script: answers are read as POPE does, and nothing is
    compared or counted. Its commit could only be seen in short (fc779a7), which the hub does not
    take: give ``--data MM-Hallu/MIHBench@COMMIT`` with all 40 digits; the one that was read is in
    ``run.json``.
    Frames of a video are asked about the same way: as pictures, in order.
    """

    title = "MIHBench"
    preset_tokens = True
    needs = (
        "mihbench.jsonl with the names of images, question, label and task, or "
        "MM-Hallu/MIHBench:count of the hub"
    )
    columns = (
        Columns(
            {"image": ("images",), "question": ("question",), "answer": ("label",)}
            | {"task": ("task",)},
            several=True,
        ),
    )
    examples = tuple(
        {"image": [f"{n}.png", f"{n + 1}.png"], "question": "Is there a cup in all images?"}
        | {"answer": answer, "task": task}
        for n, (answer, task) in enumerate((("yes", "count"), ("no", "existence_random")))
    )

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """One question; `finish` gives it an id."""
        cells = record.fields
        first, *more = cells["image"]
        label = yes_or_no(cells["answer"], record.where)
        facts = {"part": said(cells["task"])}
        return Sample(
            "", said(cells["question"]), first, label, facts=facts, where=record.where,
            more=tuple(more), group=" + ".join((first, *more)),
        )  # fmt: skip

    def finish(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Numbers the questions of every task: the data have no ids."""
        met = Counter[str]()
        numbered = []
        for sample in samples:
            part = sample.facts["part"]
            met[part] += 1
            numbered.append(replace(sample, id=f"{part} {met[part]}"))
        return numbered

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Score:
        """POPE's counts of all, and accuracy by task."""
        rows = []
        for x in lines:
            part = {f"{x['part']}.n": 1.0, f"{x['part']}.right": float(x["score"])}
            rows.append((self.cluster(x), count(x["parsed"], x["label"], x["answer"]) | part))
        return self.tally(lines, rows, _formula, wilson=("accuracy",))


def _formula(s: Sums) -> dict[str, np.ndarray]:
    parts = [name.removesuffix(".right") for name in s if name.endswith(".right")]
    found = {f"accuracy.{part}": ratio(s[f"{part}.right"], s[f"{part}.n"]) for part in parts}
    return {**rates(s), **found}
