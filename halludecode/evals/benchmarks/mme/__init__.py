"""MME: two yes/no questions a picture, one right with yes and one with no (arXiv:2306.13394)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.core.paper import Paper
from halludecode.evals.benchmarks.answer_file import Given, check_missing, texts_of
from halludecode.evals.benchmarks.base import Answers, DetailTable, LmmsEvalTask, Metric
from halludecode.evals.benchmarks.mme.scoring import (
    COGNITION,
    SUBTASKS,
    MmeQuestion,
    has_subtasks,
    load_questions,
    load_results,
    root_of,
    score,
)
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.benchmarks.yes_no import YesNoBenchmark, parse_mme_answer
from halludecode.evals.data.answer_records import answer_files
from halludecode.evals.data.answers import naming
from halludecode.evals.data.columns import Columns
from halludecode.evals.data.entries import Pictures
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import EvalImage, Sample
from halludecode.evals.statistics.score import Id, Score

PAPER = Paper(
    "2306.13394",
    "MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models",
    "Fu, Chaoyou and others",
    "arXiv preprint",
    2023,
)


@benchmark("mme", paper=PAPER)
class MME(YesNoBenchmark):
    """Pairs of questions in subtasks of perception and cognition.

    Pictures are named ``subtask/picture``, questions ``subtask/picture#k`` from 1.
    """

    truth_in = "the folder of its questions"
    truth_else = ", or a results folder of <subtask>.txt"
    title = "MME"
    needs = "mme/<subtask>/*.txt in the folder, or a hub data set with MME's columns"
    examples = tuple(
        {**row, "question_id": f"count/{row['image']}", "category": "count"}
        for row in YesNoBenchmark.examples
    )
    standard = 3
    whole = True
    categories = SUBTASKS
    wording = "instructed"
    preset_tokens = True
    rule = staticmethod(parse_mme_answer)
    metrics = (
        Metric("total", "MME total", scale=1.0, headline=True, short="total"),
        Metric(
            "hallucination_subset",
            "halluc. subset",
            scale=1.0,
            headline=True,
            short="hallucination_subset",
        ),
    )
    more_metrics, plots = (), ()
    details = DetailTable("Score of every subtask (0 to 200)", suffix=".score")
    lmms_eval = LmmsEvalTask(
        "mme",
        metrics={
            "perception": ("mme_perception_score", 1.0, True),
            "cognition": ("mme_cognition_score", 1.0, True),
        },
    )
    vlmevalkit = "MME"

    def find(self, folder: Path) -> Mapping[str | None, Path]:
        """``mme/``, or the folder itself, if it has a text file a subtask."""
        for place in (folder / "mme", folder):
            if has_subtasks(root := root_of(place)) and any(root.glob("*/**/*.txt")):
                return {None: root}
        return {}

    def load(
        self, path: Path, *, limit: int | None = None, images: Path | None = None
    ) -> list[Sample]:
        """The questions of a folder of subtasks."""
        return [_sample(q, str(path)) for q in load_questions(path)]

    def pictures(self, path: Path, folder: Path, images: Path | None) -> Pictures:
        """Pictures lie beside the questions of their subtask, or in its ``images/``."""
        paths = {f"{q.subtask}/{q.image}": q.path for q in load_questions(path)}

        def find(name: str, where: str) -> EvalImage:
            picture = paths[name]
            if picture is None:
                raise InvalidData(f"{where}: picture {path / name} does not exist.")
            return EvalImage.from_file(picture, name)

        return find

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """A row of the hub's set, whose id names the picture; `finish` counts its questions."""
        sample = self.question(record)
        named = str(sample.id) if "/" in str(sample.id) else str(sample.image)
        name = f"{record.fields['category']}/{PurePosixPath(named).name}"
        return replace(sample, id=name, image=name)

    def finish(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Numbers the questions of a picture where the data do not."""
        asked: dict[str, int] = {}
        numbered = []
        for sample in samples:
            if sample.id == sample.image:
                k = asked[sample.image] = asked.get(sample.image, 0) + 1
                sample = replace(sample, id=f"{sample.id}#{k}")
            numbered.append(sample)
        return numbered

    def order(self, samples: Sequence[Sample], where: str) -> Sequence[Sample]:
        """The subtasks in turn: the first picture of each, then the second ..."""
        subtasks: dict[str, dict[str, list[Sample]]] = {}
        for sample in samples:
            by_picture = subtasks.setdefault(_subtask(str(sample.image)), {})
            by_picture.setdefault(str(sample.image), []).append(sample)
        turns = [list(by_picture.values()) for by_picture in subtasks.values()]
        longest = max(map(len, turns), default=0)
        return [s for i in range(longest) for turn in turns if i < len(turn) for s in turn[i]]

    def enough(
        self, groups: Mapping[str | None, Sequence[str]], limit: int, table: Columns
    ) -> bool:
        """The subtasks' first pictures are taken; one that has begun ends the one before."""
        parts: dict[str, int] = {}
        for name in groups.get(None, ()):
            parts[_subtask(name)] = parts.get(_subtask(name), 0) + 1
        counts = list(parts.values())
        return len(counts) > limit or (len(counts) == limit and counts[-1] > 1)

    def marks(self, sample: Sample) -> dict[str, Any]:
        """Nothing: the id tells."""
        return {}

    def group_of(self, line: Mapping[str, Any]) -> tuple[str, int]:
        """The pair of a picture's questions 1 and 2, 3 and 4 ..."""
        picture, _, k = str(line["id"]).rpartition("#")
        return f"{picture}#{(int(k) + 1) // 2}", 2

    @classmethod
    def pair(cls, line: Mapping[str, Any]) -> str | None:
        """A picture's two questions."""
        return cls.group_of(cls(), line)[0]

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Score:
        """Scores of subtasks and their sums."""
        asked = [MmeQuestion.from_id(x["id"], x["prompt"], x["label"]) for x in lines]
        return score(asked, {line["id"]: line["answer"] for line in lines})

    def truths(
        self, annotations: Path, files: Sequence[Answers], **options: Any
    ) -> dict[str | None, list[Sample]]:
        """A folder of subtasks; results in its own layout hold their questions themselves."""
        inner = annotations / "mme"
        return {None: self.load(inner if inner.is_dir() else annotations)}

    def read_results(self, path: Path) -> tuple[list[Sample], dict[Id, str]] | None:
        """The official results: ``<subtask>.txt`` with image, question, truth, answer."""
        if path.suffix == ".txt" and not path.is_dir():
            raise InvalidData(
                f"{path} is not a folder; MME is a folder with one entry per subtask."
            )
        if not path.is_dir() or answer_files(path):
            return None
        questions, answers = load_results(path)
        return [_sample(q, str(path)) for q in questions], answers

    def score_given(
        self,
        asked: Mapping[str | None, Sequence[Sample]],
        given: Mapping[str | None, Given],
        parser: str,
        rule: str,
        **options: Any,
    ) -> Score:
        """Subtasks and their sums; see `score`."""
        ((split, samples),) = asked.items()
        own, missing = given[split], dict[str, int]()
        if not own.complete:
            missing = check_missing(samples, own, bool(options.get("allow_missing")))
        lines = {s.id: {"id": s.id} for s in samples if s.id in own.answers}
        whole = self.complete(lines)
        answers, _ = texts_of(self, samples, own.answers, rule)
        questions = [
            MmeQuestion.from_id(str(s.id), s.question, str(s.label), s.where)
            for s in samples
            if s.id in (lines if own.complete else whole)
        ]
        with naming(own.path):
            scored = score(questions, {q.id: answers[q.id] for q in questions}, parser)
        left_out = len(lines) - len(questions)
        told = missing | ({"left_out": left_out} if left_out else {})
        return replace(scored, notes=scored.notes | told)

    @classmethod
    def scale_of(cls, name: str) -> float:
        """Sums of points are shown as they are, shares of questions and pictures as percentages."""
        return 100.0 if name.endswith((".acc", ".acc_plus")) else 1.0

    @classmethod
    def cluster(cls, line: Mapping[str, Any]) -> str:
        """``subtask/picture`` of the id ``subtask/picture#k``: names repeat between subtasks."""
        return str(line["id"]).rpartition("#")[0]

    @classmethod
    def stratum(cls, line: Mapping[str, Any]) -> str:
        """The subtask: its score is over its own pictures."""
        return str(line["id"]).partition("/")[0]

    @classmethod
    def lmms_eval_outcome(cls, line: Mapping[str, Any]) -> dict[str, Any]:
        """lmms-eval sums over the two questions of a picture, by group of subtasks."""
        subtask = cls.stratum(line)
        group = "cognition" if subtask in COGNITION else "perception"
        kept = {"question_id": cls.cluster(line), "category": subtask, "score": line["score"]}
        return {cls.lmms_eval.metrics[group][0]: kept}


def _sample(question: MmeQuestion, source: str) -> Sample:
    place = question.where or f"{source}: {question.id}"
    image = f"{question.subtask}/{question.image}"
    return Sample(question.id, question.text, image, question.label, where=place)


def _subtask(picture: str) -> str:
    return picture.partition("/")[0]
