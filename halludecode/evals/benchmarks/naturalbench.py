"""NaturalBench: two questions about two pictures, whose answers alternate (arXiv:2410.14669)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from halludecode.core.errors import InvalidData
from halludecode.core.paper import Paper
from halludecode.evals.benchmarks.base import Benchmark, LmmsEvalTask, Metric
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.data.columns import Columns, said
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Score, Sums, ratio

if TYPE_CHECKING:
    from halludecode.evals.presets import Preset

PAPER = Paper(
    "2410.14669",
    "NaturalBench: Evaluating Vision-Language Models on Natural Adversarial Samples",
    "Li, Baiqi and Lin, Zhiqiu and Peng, Wenxuan and others",
    "NeurIPS Datasets and Benchmarks Track",
    2024,
)
WORDS = {"yes_no": ("yes", "no"), "multiple_choice": ("A", "B")}
SUFFIX = {  # the release puts no space before it
    "yes_no": "Please answer Yes or No.",
    "multiple_choice": "Please output the letter corresponding to the correct option.",
}
CHANCE = {"G_Acc": 6.25, "Q_Acc": 25.0, "I_Acc": 25.0, "Acc": 50.0}
LETTERS = "naturalbench/letters"  # answers with letters, beside those with yes or no
_BOTH = [(q, i) for q in (0, 1) for i in (0, 1)]
_COLUMNS = ["Index", "Question_Type", "Question_0", "Question_1", "Image_0", "Image_1"]
_COLUMNS += [f"Image_{i}_Question_{q}" for q, i in _BOTH]  # the answers


@benchmark("naturalbench", paper=PAPER)
class NaturalBench(Benchmark):
    """Pairs of questions and pictures; a question counts only if it is right about both pictures.

    An answer is read as the release does: by whichever of its two words stands first.
    """

    title = "NaturalBench"
    text_kind = "choice"
    whole = True
    wording = "own"
    max_new_tokens: ClassVar[Mapping[str, int]] = {"naturalbench": 16, LETTERS: 16}
    needs = "naturalbench.jsonl in the folder, or BaiqiL/NaturalBench of the hub"
    hub = "BaiqiL/NaturalBench@b6a84a18ba24544169681d4b15543dd103d4d3bb"
    columns = (
        Columns({n.lower(): (n.lower(), n) for n in _COLUMNS}, pictures=("image_0", "image_1")),
    )
    examples = tuple(
        {"index": n, "question_type": kind}
        | {f"{name}_{k}": f"{n}_{k}.png" for name in ("image", "question") for k in (0, 1)}
        | {f"image_{i}_question_{q}": words[(q + i) % 2] for q, i in _BOTH}
        for n, (kind, words) in enumerate(WORDS.items())
    )
    metrics = tuple(Metric(n, f"{n} %", chance=chance) for n, chance in CHANCE.items())
    tells_unparsed = True
    lmms_eval = LmmsEvalTask(
        "naturalbench",
        metrics={n: (f"naturalbench_{n.upper()}", 1.0, True) for n in ("G_Acc", "Q_Acc", "I_Acc")}
        | {"Acc": ("naturalbench_ACC", 1.0, True)},
    )
    vlmevalkit = "NaturalBenchDataset"

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """The four questions of a row."""
        cells, kind = record.fields, said(record.fields["question_type"])
        for q, i in _BOTH:
            label = said(cells[f"image_{i}_question_{q}"]).strip()
            words = {word.lower(): word for word in WORDS.get(kind, ())}
            if label.lower() not in words:
                raise InvalidData(f"{record.where}: {label!r} is no answer to a {kind} question.")
            yield Sample(
                f"{said(cells['index'])}_q{q}_i{i}",
                said(cells[f"question_{q}"]),
                cells[f"image_{i}"],
                words[label.lower()],
                facts={"type": kind, "question": q, "picture": i},
                where=record.where,
                group=said(cells["index"]),
            )

    def kind(self, sample: Sample) -> str:
        """Letters are other words than yes and no."""
        return self.name if sample.facts["type"] == "yes_no" else LETTERS

    def words(self, kind: str) -> tuple[str, ...]:
        """Those of the type."""
        return WORDS["multiple_choice" if kind == LETTERS else "yes_no"]

    @classmethod
    def pair(cls, line: Mapping[str, Any]) -> str | None:
        """One question about both pictures."""
        return f"{line['group']} {line['question']}"

    @classmethod
    def choices(cls, line: Mapping[str, Any]) -> tuple[str, ...]:
        """Those of its type."""
        return WORDS[line["type"]]

    def prompt(self, preset: Preset, sample: Sample) -> str:
        """As published."""
        return sample.question + SUFFIX[sample.facts["type"]]

    def judge(self, sample: Sample, answer: str) -> dict[str, Any]:
        """The word that stands first."""
        found = {w: re.search(rf"\b{w}\b", answer, re.I) for w in WORDS[sample.facts["type"]]}
        places = {word: match.start() for word, match in found.items() if match}
        parsed = min(places, key=places.__getitem__, default="other")
        return {"parsed": parsed, "score": int(parsed == sample.label)}

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Score:
        """Shares of answers, of questions and pictures right twice, and of whole groups."""
        rows, whole = [], {}
        for name, group in self.grouped(lines).items():
            right = {(x["question"], x["picture"]): x["score"] for x in group}
            questions = sum(right[q, 0] * right[q, 1] for q in (0, 1))
            pictures = sum(right[0, i] * right[1, i] for i in (0, 1))
            whole[name] = int(all(right.values()))
            counts = (1, sum(right.values()), questions, pictures, whole[name])
            named = zip(("groups", "Acc", "Q_Acc", "I_Acc", "G_Acc"), counts, strict=True)
            rows.append((name, {column: float(count) for column, count in named}))
        return self.tally(lines, rows, _formula, {"G_Acc": whole})


def _formula(s: Sums) -> dict[str, np.ndarray]:
    most = {"G_Acc": 1, "Q_Acc": 2, "I_Acc": 2, "Acc": 4}
    return {name: ratio(s[name], count * s["groups"]) for name, count in most.items()}
