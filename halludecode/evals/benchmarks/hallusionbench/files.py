"""HallusionBench's files: questions and answers.

Of tianyi-lab/HallusionBench (BSD-3-Clause); they are read from a path, not shipped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from halludecode.core.errors import InvalidData
from halludecode.evals.data.records import Record, read_records
from halludecode.evals.statistics.score import Id

CATEGORIES = ("VD", "VS")  # visual dependent, visual supplement

ID = ("category", "subcategory", "set_id", "figure_id", "question_id")
_LABELS = {"0": "no", "1": "yes"}
_VISUAL = ("0", "1", "2", None)


@dataclass(frozen=True)
class HallusionQuestion:
    """One question.

    Args:
        category: ``VD`` (needs its figure) or ``VS`` (can be answered without).
        subcategory: Such as ``chart``, ``illusion`` or ``video``.
        visual_input: ``0`` no figure, ``1`` an original figure, ``2`` an edited one; None where the
            data do not tell.
        set_id: Set within the subcategory; its figures and questions belong together.
        figure_id: Figure within the set; ``0`` is the original, or none for ``VS``.
        question_id: Question within the set.
        text: The question.
        label: ``yes`` or ``no``.
        image: File name of the figure; None without one.
        where: Where it stands in its file, for messages.
    """

    category: str
    subcategory: str
    visual_input: str | None
    set_id: str
    figure_id: str
    question_id: str
    text: str
    label: str
    image: str | None = None
    where: str = field(default="", compare=False, repr=False)

    @property
    def id(self) -> str:
        """``category_subcategory_set_figure_question``, as the official script names it."""
        return "_".join(getattr(self, name) for name in ID)

    @property
    def blind(self) -> bool:
        """Whether it is asked without a figure, so that not knowing is right."""
        return self.category == "VS" and self.figure_id == "0"


# Reading -----------------------------------------------------------------------------------------


def load_questions(path: Path | str) -> list[HallusionQuestion]:
    """Reads ``HallusionBench.json``.

    Raises:
        InvalidData: Unreadable, a key is missing or has an impossible value, or a question occurs
            twice; the sentence names file and line.
    """
    questions: dict[str, HallusionQuestion] = {}
    for record in read_records(path):
        question = make_question(record)
        if question.id in questions:
            raise InvalidData(
                f"{record.where}: question {question.id} occurs a second time; list it once."
            )
        questions[question.id] = question
    return list(questions.values())


def make_question(record: Record) -> HallusionQuestion:
    """One question, under the keys of ``HallusionBench.json``.

    Raises:
        InvalidData: A key is missing or has an impossible value.
    """
    label, visual = _text(record, "gt_answer"), record.fields.get("visual_input", "")
    fields = {name: _text(record, name) for name in ID}
    for name, value, known in (
        ("gt_answer", label, tuple(_LABELS)),
        ("visual_input", None if visual is None else _text(record, "visual_input"), _VISUAL),
        ("category", fields["category"], CATEGORIES),
    ):
        if value not in known:
            names = ", ".join(filter(None, known))
            raise InvalidData(f"{record.where}: {name} is {value!r}; it must be one of {names}.")
    return HallusionQuestion(
        **fields,
        visual_input=None if visual is None else str(visual),
        text=record.get("question", kind=str, what="the question"),
        label=_LABELS[label],
        image=_filename(record),
        where=record.where,
    )


def _filename(record: Record) -> str | None:
    if record.fields.get("filename") is None:
        return None
    return str(record.get("filename", kind=str, what="a file name")) or None


def load_answers(path: Path | str) -> dict[Id, str]:
    """Reads answers: the official results, or ``{"id", "answer"}``.

    The official results are the questions with ``model_prediction`` added. ``id`` is
    `HallusionQuestion.id`, such as ``VD_illusion_0_1_2``.

    Raises:
        InvalidData: A key is missing or of the wrong type, or a question is answered twice.
    """
    answers: dict[Id, str] = {}
    lines: dict[str, int] = {}
    for record in read_records(path):
        if "id" in record.fields:
            name = record.get("id", kind=str, what=f"a string {'_'.join(ID)}")
        else:
            name = "_".join(_text(record, part) for part in ID)
        if name in lines:
            raise InvalidData(
                f"{record.where}: question {name} was already answered on line {lines[name]}; "
                "give one answer per question."
            )
        lines[name] = record.line
        answers[name] = str(
            record.get("answer", "model_prediction", kind=(str, int), what="the answer as a string")
        )
    return answers


def _text(record: Record, name: str) -> str:
    return str(record.get(name, kind=(str, int), what="a string or a whole number"))
