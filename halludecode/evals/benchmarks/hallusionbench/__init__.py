"""HallusionBench: the same question about an original and an edited figure (arXiv:2310.14566)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.core.paper import Paper
from halludecode.evals.benchmarks.answer_file import Given, texts_of
from halludecode.evals.benchmarks.base import Benchmark, Metric
from halludecode.evals.benchmarks.hallusionbench import scoring as hallusion
from halludecode.evals.benchmarks.hallusionbench.files import ID, HallusionQuestion
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.data.answers import naming
from halludecode.evals.data.columns import Columns, said
from halludecode.evals.data.entries import Pictures, first_folder, folder_pictures
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Id, Score

PAPER = Paper(
    "2310.14566",
    "HallusionBench: An Advanced Diagnostic Suite for Entangled Language Hallucination and Visual "
    "Illusion in Large Vision-Language Models",
    "Guan, Tianrui and others",
    "CVPR",
    2024,
)


@benchmark("hallusionbench", paper=PAPER)
class HallusionBench(Benchmark):
    """Sets of questions and figures; a pair or a figure counts only when all of it is right.

    Questions without a figure are asked without one.
    """

    truth_in = "HallusionBench.json"
    title = "HallusionBench"
    needs = "hallusionbench/HallusionBench.json, or --annotations that file"
    whole = True  # sets
    answer_types = (str, int)  # the official script's codes 0, 1, 2
    columns = (
        Columns(
            needs={name: (name,) for name in ("category", "subcategory", "set_id", "figure_id")}
            | {name: (name,) for name in ("question_id", "question", "gt_answer")},
            takes={name: (name,) for name in ("visual_input", "filename", "image")},
            signs=(frozenset({"set_id", "figure_id", "gt_answer"}),),
            names=("filename",),
            apart=True,
        ),
        Columns(  # VLMEvalKit's
            needs={
                "index": ("index",),
                "category": ("category",),
                "subcategory": ("l2-category",),
                "question": ("question",),
                "gt_answer": ("answer",),
                "image": ("image",),
            },
            takes={"filename": ("image_path",)},
            signs=(frozenset({"index", "l2-category"}),),
            names=("filename",),
            apart=True,
        ),
    )
    examples = tuple(
        {
            "category": "VD",
            "subcategory": "map",
            "set_id": str(n),
            "figure_id": str(edited),
            "question_id": "0",
            "visual_input": str(1 + edited),
            "question": f"Is it {n}?",
            "gt_answer": str(1 - edited),
            "filename": f"{n}_{edited}.png",
            "image": f"{n}_{edited}.png",
        }
        for n in (0, 1)
        for edited in (0, 1)
    )
    metrics = tuple(Metric(name, f"{name} %") for name in ("aAcc", "qAcc", "fAcc", "hard"))
    tells_unparsed = True
    vlmevalkit = "HallusionBench"

    def find(self, folder: Path) -> Mapping[str | None, Path]:
        """``HallusionBench.json`` in its folder or at the top."""
        files = (folder / place / "HallusionBench.json" for place in ("hallusionbench", ""))
        found = next((file for file in files if file.is_file()), None)
        return {} if found is None else {None: found}

    def reads(self, path: Path, first: Mapping[str, Any]) -> bool:
        """Whether a file has its keys."""
        return {"gt_answer", "set_id"} <= first.keys()

    def load(
        self, path: Path, *, limit: int | None = None, images: Path | None = None
    ) -> list[Sample]:
        """All questions of ``HallusionBench.json``."""
        return [_sample(question) for question in hallusion.load_questions(path)]

    def pictures(self, path: Path, folder: Path, images: Path | None) -> Pictures:
        """Figures in hallusion_bench/ or images/ beside the file, or beside it themselves."""
        return folder_pictures(images or first_folder(path.parent, "hallusion_bench", "images"))

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """A row of its set on the hub, or of VLMEvalKit's table."""
        cells = {k: v if v is None else said(v) for k, v in record.fields.items() if k != "image"}
        cells.setdefault("visual_input", None)
        if "index" in cells:  # VLMEvalKit's: its last three parts are set, figure and question
            parts = str(cells["index"]).rsplit("_", 3)
            if len(parts) != 4:
                raise InvalidData(
                    f"{record.where}: index {cells['index']!r} does not end in three numbers."
                )
            # The kit writes the category before the subcategory: VD_chart.
            own = str(cells["subcategory"]).removeprefix(f"{cells['category']}_")
            cells |= {"subcategory": own} | dict(
                zip(("set_id", "figure_id", "question_id"), parts[1:], strict=True)
            )
        answer = str(cells["gt_answer"])
        cells["gt_answer"] = {"yes": "1", "no": "0"}.get(answer.strip().lower(), answer)
        question = hallusion.make_question(Record(record.where, cells))
        return _sample(replace(question, image=record.fields.get("image") or None))

    def finish(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Samples with the size of their set, which counts only if it is answered whole."""
        sizes = Counter(sample.group for sample in samples)
        return [replace(s, facts={**s.facts, "set_size": sizes[s.group]}) for s in samples]

    def marks(self, sample: Sample) -> dict[str, Any]:
        """Nothing beside the facts."""
        return {}

    def group_of(self, line: Mapping[str, Any]) -> tuple[str, int]:
        """The set."""
        name = "_".join(str(line[key]) for key in ("category", "subcategory", "set_id"))
        return name, line["set_size"]

    @classmethod
    def pair(cls, line: Mapping[str, Any]) -> str | None:
        """One question about the figures of its set."""
        named = ("category", "subcategory", "set_id", "question_id")
        return "_".join(str(line[key]) for key in named)

    @classmethod
    def choices(cls, line: Mapping[str, Any]) -> tuple[str, ...]:
        """All its questions are answered yes or no."""
        return ("yes", "no")

    def judge(self, sample: Sample, answer: str) -> dict[str, Any]:
        """Not knowing is right where there is no figure."""
        found = hallusion.judge(_question(sample), answer)
        return {"parsed": found["parsed"], "score": found["correct"]}

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Score:
        """Answers, pairs, figures; see `hallusion.score`."""
        return hallusion.score_lines(lines)

    def answer_id(self, fields: Mapping[str, Any], column: str) -> Id | None:
        """The five parts of an id in the official results and in VLMEvalKit's index, or an id."""
        if column == "question_id" and fields.keys() >= set(ID):
            return "_".join(said(fields[part]) for part in ID)
        if column == "index" and {"category", "l2-category"} <= fields.keys():
            category, parts = said(fields["category"]), said(fields["index"]).rsplit("_", 3)[1:]
            subcategory = said(fields["l2-category"]).removeprefix(f"{category}_")
            return "_".join([category, subcategory, *parts])
        return super().answer_id(fields, column)

    def score_given(
        self,
        asked: Mapping[str | None, Sequence[Sample]],
        given: Mapping[str | None, Given],
        parser: str,
        rule: str,
        **options: Any,
    ) -> Score:
        """By the official counting or a kit's; see `hallusion.score`."""
        ((split, samples),) = asked.items()
        answers, _ = texts_of(self, samples, given[split].answers, rule)
        questions = [_question(sample) for sample in samples]
        with naming(given[split].path):
            missing = bool(options.get("allow_missing"))
            return hallusion.score(questions, answers, parser, allow_missing=missing)


def _question(sample: Sample) -> HallusionQuestion:
    named = {name: sample.facts[name] for name in (*ID, "visual_input")}
    return HallusionQuestion(**named, text=sample.question, label=str(sample.label))


def _sample(question: HallusionQuestion) -> Sample:
    image = None if question.blind else question.image
    facts = {name: getattr(question, name) for name in (*ID, "visual_input")}
    told = {"facts": facts, "where": question.where, "group": hallusion.set_of(question)}
    return Sample(question.id, question.text, image, question.label, **told)
