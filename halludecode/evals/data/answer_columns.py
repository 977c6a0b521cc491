"""Which column of a file of answers holds what: by what its cells say, never by where it stands.

Names only say what is worth looking at. What looks like the questions asked, or like the truth, is
no answer, whatever it is called; where two columns are left, the user is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.data.columns import said
from halludecode.evals.data.records import Record

OURS = {  # what `--columns` may map, and other names of the same
    "answer": "answer",
    "prediction": "answer",
    "caption": "answer",
    "id": "id",
    "question_id": "id",
    "image_id": "id",
    "question": "question",
    "image": "image",
    "split": "split",
    "category": "split",
}
TRUTHS = frozenset(
    [
        "label",
        "labels",
        "target",
        "targets",
        "gt",
        "gts",
        "gt_answer",
        "gt_ans",
        "gt_label",
        "gt_caption",
        "gt_captions",
        "truth",
        "ground_truth",
        "groundtruth",
        "reference",
        "references",
        "gold",
        "correct_answer",
        "true_label",
    ]
)
CLEAR = (  # a model's words under any of these
    *("prediction", "model_prediction", "pred", "preds", "pred_answer", "predicted_answer"),
    *("response", "model_response", "output", "outputs", "model_output", "model_answer"),
    *("ans", "reply", "completion", "generation", "generated_text", "generated_answer"),
    *("generated", "llm_answer", "predict", "predictions", "responses", "result"),
)
CAPTIONS = ("caption", "pred_caption", "generated_caption", "description")
# lmms-eval scores the first, which its filters made of the second.
KITS = ("filtered_resps", "resps")
VAGUE = ("answer", "text")  # in some files the question or the truth
ASKED = ("question", "prompt", "query", "input", "instruction", "doc.question", "doc.text")
SIGNS = ("prompt", "model_id", "answer_id", "strategy", "parsed", "model", "query")
PICTURES = ("image", "image_source", "image_path", "image_file", "category", "doc.image_source")
_MARKUP = re.compile(r"<[^<>\n]{1,40}>")


@dataclass(frozen=True)
class Roles:
    """Which column is what; None where there is none.

    Args:
        answer: The model's words.
        others: Columns that were left aside, with what they are.
    """

    answer: str
    others: Mapping[str, str] = field(default_factory=dict[str, str])


def given_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """``--columns`` under our names.

    Raises:
        InvalidData: A name is none of ours.
    """
    unknown = [name for name in columns if name not in OURS]
    if unknown:
        raise InvalidData(
            f"Column map: {unknown[0]!r} is none of {', '.join(dict.fromkeys(OURS.values()))}; map "
            "our names to the file's."
        )
    return {OURS[name]: theirs for name, theirs in columns.items()}


def names_of(records: Sequence[Record]) -> list[str]:
    """All columns of the records, in the order they are met."""
    return list(dict.fromkeys(name for record in records for name in record.fields))


# Questions --------------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 15)
def core(text: str) -> str:
    """A question without what a protocol puts round it, to be looked for in a prompt."""
    plain = " ".join(_MARKUP.sub(" ", text).lower().split()).replace(" imange", " image")
    end = plain.rfind("?")
    return plain[: end + 1] if end > 0 else plain.rstrip(".")


def asks(cell: Any, question: str) -> bool:
    """Whether a cell asks a question (its `core`), whatever is put round it."""
    return isinstance(cell, str) and bool(question) and question in _plain(cell)


def _plain(text: str) -> str:
    return " ".join(_MARKUP.sub(" ", text).lower().split()).replace(" imange", " image")


def question_columns(records: Sequence[Record], cores: Sequence[str]) -> list[str]:
    """Columns that hold the questions: by their cells, those of the usual names first.

    Args:
        records: The file.
        cores: `core` of what was asked; () where a benchmark asks the same of every picture.
    """
    found = []
    some = _spread(records)
    known = [c for c in dict.fromkeys(cores) if len(c) > 8]
    for name in names_of(some):
        cells = [r.fields[name] for r in some if isinstance(r.fields.get(name), str)]
        if (name in ASKED and cells and any(map(str.strip, cells))) or (
            len(cells) == len(some) and known and _are_questions(cells, known)
        ):
            found.append(name)
    return sorted(found, key=lambda name: ASKED.index(name) if name in ASKED else len(ASKED))


def _spread(records: Sequence[Record], most: int = 40) -> Sequence[Record]:
    """Up to so many records, from all parts of a file."""
    return records[:: max(1, len(records) // most)][: most + 1]


def _are_questions(cells: Sequence[str], known: Sequence[str]) -> bool:
    """Whether most cells are known questions, each with the same words round it, or with none."""
    rests: set[str] = set()
    hits = 0
    for cell in cells:
        plain = _plain(cell)
        inside = next((question for question in known if question in plain), None)
        if inside is not None:
            hits += 1
            rests.add(plain.replace(inside, "\0"))
    # An answer that repeats its question goes on differently: "... image? Yes", "... image? No".
    same = len(rests) <= max(1, len(cells) // 4)
    echo = any(re.search(r"\0\W*(yes|no)\b", rest) for rest in rests)
    return hits >= 0.5 * len(cells) and same and not echo


# Answers ----------------------------------------------------------------------------------------


def answer_column(
    records: Sequence[Record],
    questions: Iterable[str],
    truths: Sequence[Any],
    given: Mapping[str, str],
    captions: bool,
    source: str,
    stated: Sequence[str] = (),
) -> Roles:
    """The column of the model's words.

    Args:
        records: The file, or the part that was asked about.
        questions: Columns that hold the questions.
        truths: The true answer to each record, or None.
        given: ``--columns`` under our names.
        captions: Whether answers are descriptions.
        source: The file, for messages.
        stated: Columns that the benchmark itself says are answers.

    Raises:
        InvalidData: There is none, or several could be it; the sentence names them.
    """
    names = names_of(records)
    asked = list(questions)
    if "answer" in given:
        _require(given["answer"], names, source, "answer")
        return Roles(given["answer"])
    others = dict.fromkeys(asked, "the question")
    others |= {name: "the truth" for name in names if name.rpartition(".")[2] in TRUTHS}
    known = [*stated, *(CAPTIONS if captions else ()), *CLEAR, *KITS, *VAGUE]
    if not captions:
        known += CAPTIONS
    left = [name for name in dict.fromkeys(known) if name in names and name not in others]
    left = [name for name in left if not _nothing_but(records, name, asked, captions)]
    left = _one_kit(left)
    clear = [name for name in left if name not in VAGUE]
    if len(clear) == 1 and all(_is_true(records, name, truths) for name in left if name in VAGUE):
        others |= {name: "the truth" for name in left if name in VAGUE}
        left = clear
    if len(left) > 1 and not _all_equal(records, left):
        raise InvalidData(_which(source, left, records, truths))
    if not left:
        usual = ("caption", "text") if captions else ("answer", "prediction")
        raise InvalidData(_none(records[0], others, usual))
    chosen = left[0]
    if chosen == "answer" and _could_be_truth(records, names, asked, truths):
        raise InvalidData(
            f'{records[0].where}: "answer" is the truth in every record and there is no other '
            "answer; add the model's as another column, or say --columns answer=answer if it is "
            "the model's."
        )
    return Roles(chosen, others)


def _require(name: str, names: Sequence[str], source: str, ours: str) -> None:
    if name not in names:
        raise InvalidData(
            f"{source}: no column {name!r} for {ours}; found {', '.join(names)}. Map it with "
            f"--columns {ours}=THEIRS."
        )


def _nothing_but(
    records: Sequence[Record], name: str, asked: Sequence[str], captions: bool
) -> bool:
    """Whether a column is a prompt that is the same for all, beside one that is not."""
    cells = {str(record.fields.get(name)) for record in records}
    if name not in VAGUE or not captions or len(cells) > 1:
        return False
    return bool(
        re.match(r"(please )?(describe|generate|give|provide|write|what)\b", cells.pop().lower())
    )


def _one_kit(left: list[str]) -> list[str]:
    """Of lmms-eval's two columns the one it scores."""
    return [name for name in left if name != "resps" or "filtered_resps" not in left]


def _all_equal(records: Sequence[Record], names: Sequence[str]) -> bool:
    return all(len({str(r.fields.get(name)) for name in names}) == 1 for r in records)


def truth_of(value: Any) -> str:
    """A cell as a truth: yes and no also as 1 and 0."""
    text = said(value).strip().lower()
    return {"1": "yes", "0": "no", "true": "yes", "false": "no"}.get(text, text)


def _is_true(records: Sequence[Record], name: str, truths: Sequence[Any]) -> bool:
    """Whether a column is the truth in every record."""
    pairs = list(zip(records, truths, strict=True))
    return bool(pairs) and all(
        truth is not None and truth_of(r.fields.get(name, "")) == truth_of(truth)
        for r, truth in pairs
    )


def _could_be_truth(
    records: Sequence[Record], names: Sequence[str], asked: Sequence[str], truths: Sequence[Any]
) -> bool:
    """Whether ``answer`` may be the data's own column: a question record, right throughout."""
    record_like = bool(asked) and any(name in PICTURES for name in names)
    signed = any(name in SIGNS for name in names)
    return record_like and not signed and _is_true(records, "answer", truths)


def _which(
    source: str, left: Sequence[str], records: Sequence[Record], truths: Sequence[Any]
) -> str:
    true = [name for name in left if _is_true(records, name, truths)]
    told = f" ({true[0]} is the truth in every record)" if len(true) == 1 else ""
    first = next((name for name in left if name not in true), left[0])
    return (
        f"{records[0].where}: {' and '.join(map(repr, left))} could all be the answer{told}; say "
        f"which it is with --columns answer={first}."
    )


def _none(record: Record, others: Mapping[str, str], known: Sequence[str]) -> str:
    found = ", ".join(f'"{key}"' for key in record.fields) or "none"
    aside = ", ".join(f'"{name}" is {what}' for name, what in others.items())
    told = f" ({aside})" if aside else ""
    wanted = " or ".join(f'"{name}"' for name in (*known, "response"))
    return (
        f"{record.where}: key {wanted} is missing; the keys found are {found}{told}. Map it with "
        "--columns answer=THEIRS."
    )
