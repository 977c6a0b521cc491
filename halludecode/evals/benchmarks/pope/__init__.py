"""POPE: yes/no questions about the presence of objects (Li et al., EMNLP 2023, 2305.10355)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from halludecode.core.errors import InvalidData
from halludecode.core.paper import Paper
from halludecode.core.params import param
from halludecode.evals.benchmarks.answer_file import Given
from halludecode.evals.benchmarks.base import Answers, LmmsEvalTask
from halludecode.evals.benchmarks.pope.answer_files import (
    question_files,
    score_splits,
    split_files,
    split_in,
)
from halludecode.evals.benchmarks.pope.scoring import SETTINGS, load_questions
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.benchmarks.yes_no import YesNoBenchmark
from halludecode.evals.data.answer_records import stem_of
from halludecode.evals.data.columns import Columns, said
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Score

PAPER = Paper(
    "2305.10355",
    "Evaluating Object Hallucination in Large Vision-Language Models",
    "Li, Yifan and Du, Yifan and Zhou, Kun and Wang, Jinpeng and Zhao, Wayne Xin and Wen, Ji-Rong",
    "EMNLP",
    2023,
)


@benchmark("pope", paper=PAPER)
class POPE(YesNoBenchmark):
    """Questions about objects that are, and are not, in the picture; three ways to choose them."""

    truth_in = "its question file"
    title = "POPE"
    splits = categories = SETTINGS
    examples = tuple({**row, "category": "random"} for row in YesNoBenchmark.examples)
    standard = 1
    preset_tokens = True
    aliases: ClassVar[Mapping[str, str]] = {"pope_splits": "split"}
    scorer_options = ("relabel", "allow_missing")
    answers_what = "question of the annotations"
    offsets = ("adversarial", "random", "popular")  # as LLaVA's llava_pope_test.jsonl has them
    needs = "pope/{random,popular,adversarial}.jsonl in the folder, or --annotations F.jsonl"
    lmms_eval = LmmsEvalTask(
        "pope",
        {"random": "pope_random", "popular": "pope_pop", "adversarial": "pope_adv"},
        {
            "accuracy": ("pope_accuracy", 1.0, True),
            "precision": ("pope_precision", 1.0, True),
            "recall": ("pope_recall", 1.0, True),
            "f1": ("pope_f1_score", 1.0, True),
            "yes_ratio": ("pope_yes_ratio", 1.0, True),
        },
        pooled=True,
    )
    vlmevalkit = "POPE"

    split: tuple[str, ...] = param((), "only these of its splits, such as random; () takes all")

    def find(self, folder: Path) -> Mapping[str | None, Path]:
        """The files of ``pope/`` by the split in their name."""
        found = split_files(folder / "pope")
        return {split: found[str(split)] for split in self.taken(list(found), f"{folder / 'pope'}")}

    def taken(self, found: Sequence[str | None], where: str) -> list[str | None]:
        """Those of ``split``, which must all be there."""
        missing = [name for name in self.split if name not in found]
        if found and missing:
            known = ", ".join(map(str, found))
            raise InvalidData(f"{where}: no {missing[0]} split; found {known}.")
        return [s for s in super().taken(found, where) if not self.split or s in self.split]

    def split_of(self, path: Path) -> str | None:
        """The split a file is named after, else its name."""
        return split_in(path.stem)

    def load(
        self, path: Path, *, limit: int | None = None, images: Path | None = None
    ) -> list[Sample]:
        """The questions of a POPE file."""
        return [
            Sample(q.question_id, q.text, q.image, q.label, where=q.where)
            for q in load_questions(path)
        ]

    def samples(self, record: Record) -> tuple[Sample, ...]:
        """A row's question in every split that it names; without any in that of the data set."""
        named = self._named(record)
        return tuple(replace(self.question(record), split=split) for split in named)

    def owns(self, record: Record) -> bool:
        """A row may name several splits, or none."""
        return bool(self._named(record))

    def _named(self, record: Record) -> list[str]:
        category = record.fields.get("category")
        if category is None:
            return [split_in(record.split)]
        return [s for s in map(str.strip, said(category).split(",")) if s in self.splits]

    def enough(
        self, groups: Mapping[str | None, Sequence[str]], limit: int, table: Columns
    ) -> bool:
        """Further splits may follow, unless the data set has only its own name for one."""
        own = groups.keys() & {*self.splits}
        wanted = self.split or (self.splits if own else groups)
        return bool(groups) and all(len(groups.get(split, ())) > limit for split in wanted)

    def recipe(self) -> dict[str, Any]:
        """Nothing: splits are scored apart."""
        return {}

    def truths(
        self, annotations: Path, files: Sequence[Answers], **options: Any
    ) -> dict[str | None, list[Sample]]:
        """A question file, a folder of them, or LLaVA's; see `question_files`."""
        found = question_files(annotations, {stem_of(path) for path, _ in files})
        return {split: self.load(path) for split, path in found.items()}

    def score_given(
        self,
        asked: Mapping[str | None, Sequence[Sample]],
        given: Mapping[str | None, Given],
        parser: str,
        rule: str,
        **options: Any,
    ) -> Score:
        """Every split, and their mean where there are several; see `score_splits`."""
        return score_splits(self, asked, given, parser, rule, **options)
