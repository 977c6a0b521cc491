"""What a benchmark does with answers made elsewhere; each has a default that fits most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.answer_file import Given, check_missing, score_answers
from halludecode.evals.data.answer_matching import read_plain_id
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Id, Score

Answers = tuple[Path, Sequence[Record]]  # a file of answers and its records


class Answered:
    """The part of a `Benchmark` that files of answers need."""

    # What `score_given` takes beside the parser.
    scorer_options: ClassVar[tuple[str, ...]] = ("allow_missing",)
    offsets: ClassVar[tuple[str, ...]] = ()  # splits in the order of LLaVA's offset ids
    answer_types: ClassVar[tuple[type, ...]] = (str,)  # what an answer may be in JSON
    answers_what: ClassVar[str] = "question"  # what the id of an answer is of
    # What answers hold no truth without; "" where they need nothing.
    truth_in: ClassVar[str] = "its questions"
    truth_else: ClassVar[str] = ""  # what else ``--annotations`` may be replaced by

    @property
    def without_annotations(self: Any) -> str:
        """Why answers cannot be scored without annotations; "" where they can."""
        if not self.truth_in:
            return ""
        title, other = self.title or self.name, self.truth_else
        return f"{title} needs {self.truth_in} to score answers; give --annotations{other}."

    def annotated(
        self, annotations: Path | None, files: Sequence[Answers], **options: Any
    ) -> dict[str | None, list[Sample]]:
        """What the answers of files may be to, by split.

        Args:
            annotations: The question file, or a data folder as `find` takes it.
            files: The files of answers, read but not matched.
            **options: Those of ``scorer_options`` that were given.

        Raises:
            InvalidData: There are no annotations, or they cannot be used.
        """
        if annotations is None and self.truth_in:
            raise InvalidData(self.without_annotations)
        return self.truths(cast("Path", annotations), files, **options)

    def truths(
        self, annotations: Path, files: Sequence[Answers], **options: Any
    ) -> dict[str | None, list[Sample]]:
        """What `annotated` returns; by default all samples of the question files.

        Args:
            annotations: As for `annotated`; where ``truth_in`` is "", perhaps None.
            files: As for `annotated`.
            **options: As for `annotated`.
        """
        found = {self.split_of(annotations): annotations}
        if annotations.is_dir():
            found = dict(self.find(annotations))
            if not found:
                raise InvalidData(
                    f"No questions for {self.name} in {annotations}; it needs {self.what_it_needs}."
                )
        return {
            split: list(self.finish(self.bound_to(path).load(path)))
            for split, path in found.items()
        }

    def answerable(self: Any, samples: Sequence[Sample], answers: Mapping[Id, str]) -> list[Sample]:
        """The samples that are answered, ready to be judged.

        Args:
            samples: What `annotated` found of a split.
            answers: The answers to it.
        """
        return [sample for sample in samples if sample.id in answers]

    def answer_id(self: Any, fields: Mapping[str, Any], column: str) -> Id | None:
        """The sample that a column of an answer's record names; None where it holds no id.

        Args:
            fields: The record.
            column: One of its columns.
        """
        return read_plain_id(fields, column)

    def read_results(self: Any, path: Path) -> tuple[list[Sample], dict[Id, str]] | None:
        """Questions and answers of a file or folder in the benchmark's own layout of results.

        Returns:
            None where it is none: it is then read as records.
        """
        return None

    def split_named(self: Any, path: Path) -> str | None:
        """The split that a file of answers is named after; None where its name tells none."""
        named = [split for split in self.splits if split in path.name]
        theirs = self.lmms_eval.splits.items() if self.lmms_eval else ()
        named = named or [split for split, task in theirs if task in path.name]
        return named[0] if len(named) == 1 else None

    def check_given(self: Any, own: Given) -> None:
        """Refuses answers that are not to exactly what the benchmark's parameters ask for."""

    def score_given(
        self: Any,
        asked: Mapping[str | None, Sequence[Sample]],
        given: Mapping[str | None, Given],
        parser: str,
        rule: str,
        **options: Any,
    ) -> Score:
        """Scores answers made elsewhere: by default as `eval` judges and scores them.

        Args:
            asked: What `annotated` found.
            given: The answers of every split.
            parser: Name of the rule that reads answers.
            rule: ``as_written`` or ``final``.
            **options: Those of ``scorer_options`` that were given.

        Raises:
            InvalidData: Answers are missing, or the rule is unknown.
        """
        scores: dict[str, Score] = {}
        for split, samples in asked.items():
            own = given.get(split)
            if own is None and not options.get("allow_missing"):
                raise InvalidData(f"nothing answers the {split} questions; answer every item.")
            if own is not None:
                score = score_answers(self, own, samples, parser, rule)
                missing = check_missing(samples, own, bool(options.get("allow_missing")))
                scores[str(split)] = replace(score, notes=score.notes | missing)
        return next(iter(scores.values())) if len(scores) == 1 else self.mean(scores)

    def ways(self: Any, **options: Any) -> list[str]:
        """Sentences on what its answers are read by here, for the terminal.

        Args:
            **options: Of answers made elsewhere: ``annotations`` and those of ``scorer_options``.
        """
        return []

    def remarks(self: Any, score: Score) -> list[str]:
        """Sentences on what the numbers of ``score`` hide."""
        return []

    def summary(self: Any, score: Score) -> dict[str, Any]:
        """What ``score --json`` tells beside the metrics."""
        return {"parser": score.rule, "unparsed": score.unparsed, "unread": score.unread}

    def written(self: Any, score: Score, **options: Any) -> dict[str, Any]:
        """Writes what ``score`` was asked to write, and tells of it."""
        return {}

    def annotation_files(self: Any, annotations: Path) -> Mapping[str, Path]:
        """Files of annotations by name, where ``annotations`` names several at once."""
        return {}
