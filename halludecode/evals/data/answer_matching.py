"""Which answer is to which question: by id, by picture and words, or by words in the file's order.

What a record says it was asked is held against the question in all of them: ids of POPE's splits
are the same, and so is the order of their labels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.data.answer_columns import TRUTHS, asks, core, names_of, truth_of
from halludecode.evals.data.columns import read_id
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Id

IDS = ("id", "question_id", "questionid", "qid", "image_id", "index", "sample_id", "uid")
IDS += (
    "doc.question_id",
    "doc.id",
    "doc.image_id",
    "doc.index",
    "image",
    "file_name",
    "image_name",
)
IDS += ("image_file", "filename", "image_path", "image_source", "img", "img_id", "doc.image_source")
ReadId = Callable[[Mapping[str, Any], str], Id | None]  # (record, column) -> id; None is no id


@dataclass(frozen=True)
class Matched:
    """The question behind every record.

    Args:
        ids: Sample ids in the order of the records.
        how: What they were matched by, in words.
        remark: A question that differs from the one of its id, where only one does.
    """

    ids: tuple[Id, ...]
    how: str
    remark: str = ""


@dataclass(frozen=True)
class Apart:
    """Records whose own words are of other questions than those of their ids."""

    column: str
    count: int
    examples: tuple[str, ...]


class Matcher:
    """Finds the samples that records answer.

    Args:
        samples: What was asked, ids unique.
        read_id: The id that a record has in one of its columns.
        what: What an id is of, for messages.
    """

    def __init__(self, samples: Sequence[Sample], read_id: ReadId, what: str = "question") -> None:
        self.samples, self.read_id, self.what = samples, read_id, what
        self.by_id = {s.id: s for s in samples}
        self.keys: dict[Id, Id] = {_key(i): i for i in self.by_id}
        self.cores = {s.id: core(s.question) for s in samples}
        stems = {s.id: _stem(s.image) for s in samples if s.image}
        counts = Counter(stems.values())
        self.alone = {stem: i for i, stem in stems.items() if counts[stem] == 1}

    # Columns ------------------------------------------------------------------------------------

    def match(
        self, records: Sequence[Record], questions: Sequence[str], given: Mapping[str, str]
    ) -> Matched:
        """The sample behind every record.

        Args:
            records: The answers.
            questions: Columns that hold what was asked, the best first.
            given: ``--columns`` under our names.

        Raises:
            InvalidData: There is no way to tell; the sentence names what comes nearest.
        """
        names = names_of(records)
        apart: list[Apart] = []
        columns = [given["id"]] if "id" in given else self._id_columns(names)
        asked = [given["question"]] if "question" in given else list(questions)
        for column in columns:
            ids = self._ids(records, column)
            if ids is None or None in ids or len(set(ids)) < len(ids):
                continue
            found = [i for i in ids if i is not None]
            wrong = self._apart(records, found, asked, column)
            if (
                wrong is None or wrong.count == 1
            ):  # one may be worded otherwise, two are another set
                remark = "" if wrong is None else f"; {wrong.examples[0]}"
                return Matched(tuple(found), column, remark)
            apart.append(wrong)
        for attempt in (self._by_picture, self._by_words, self._by_order):
            ids = attempt(records, asked, names)
            if ids is not None:
                return Matched(tuple(ids), _HOW[attempt.__name__].format(*asked[:1]))
        raise InvalidData(self._why_not(records, columns, apart))

    def _id_columns(self, names: Sequence[str]) -> list[str]:
        usual = [name for name in IDS if name in names]
        others = [n for n in names if n not in usual and n.lower().endswith(("id", "_idx"))]
        return [
            *usual,
            *(name for name in others if name not in ("doc_id", "model_id", "answer_id")),
        ]

    def _ids(self, records: Sequence[Record], column: str) -> list[Id | None] | None:
        """The samples that a column names; None where it is no column of ids."""
        found: list[Id | None] = []
        for record in records:
            if column not in record.fields:
                return None
            found.append(self._id(record, column))
        return found

    def _id(self, record: Record, column: str) -> Id | None:
        name = self.read_id(record.fields, column)
        if name is not None and _key(name) in self.keys:
            return self.keys[_key(name)]
        cell = record.fields[column]
        return self.alone.get(_stem(cell)) if isinstance(cell, str) else None

    # What was asked -----------------------------------------------------------------------------

    def _apart(
        self, records: Sequence[Record], ids: Sequence[Id], asked: Sequence[str], column: str
    ) -> Apart | None:
        """Records that were asked something else than the samples of their ids."""
        for name in asked:
            cells = [record.fields.get(name) for record in records]
            wrong = [k for k, i in enumerate(ids) if not self._agrees(cells[k], i)]
            if not wrong:
                return None
            examples = tuple(
                f"{column} {ids[k]} was asked {_short(cells[k])} there and "
                f"{_short(self.by_id[ids[k]].question)} here"
                for k in wrong[:2]
            )
            return Apart(name, len(wrong), examples)
        return None

    def _agrees(self, cell: Any, i: Id) -> bool:
        question = self.cores[i]
        if not question or not isinstance(cell, str) or not cell.strip():
            return True
        return asks(cell, question) or self._same_words(cell, question)

    def _same_words(self, cell: str, question: str) -> bool:
        """Whether a prompt has the words that tell the question from others, in other company."""
        own = [word for word in _words(question) if self._rare(word)]
        return bool(own) and set(own) <= set(_words(cell))

    def _rare(self, word: str) -> bool:
        if not hasattr(self, "_counts"):
            self._counts = Counter(w for text in self.cores.values() for w in set(_words(text)))
        return self._counts[word] * 2 <= len(self.cores)

    def _by_picture(
        self, records: Sequence[Record], asked: Sequence[str], names: Sequence[str]
    ) -> list[Id] | None:
        places: dict[str, list[Id]] = {}
        for sample in self.samples:
            for key in _image_keys(sample.image):
                places.setdefault(key, []).append(sample.id)
        for column in (name for name in self._id_columns(names) if asked):
            found = []
            for record in records:
                near = next(
                    (places[k] for k in _image_keys(record.fields.get(column)) if k in places), []
                )
                cell = record.fields.get(asked[0])
                fits = [i for i in near if asks(cell, self.cores[i])]
                found += fits if len(fits) == 1 else []
            if len(found) == len(set(found)) == len(records):
                return found
        return None

    def _by_words(
        self, records: Sequence[Record], asked: Sequence[str], names: Sequence[str]
    ) -> list[Id] | None:
        by_core = {text: i for i, text in self.cores.items() if text}
        if len(by_core) < len(self.samples) or not asked:
            return None
        found = [by_core.get(core(str(record.fields.get(asked[0])))) for record in records]
        whole = [i for i in found if i is not None]
        return whole if len(set(whole)) == len(records) else None

    def _by_order(
        self, records: Sequence[Record], asked: Sequence[str], names: Sequence[str]
    ) -> list[Id] | None:
        if not asked or len(records) > len(self.samples):
            return None
        truths = [name for name in names if name.rpartition(".")[2] in TRUTHS]
        for record, sample in zip(records, self.samples, strict=False):
            if not any(asks(record.fields.get(name), self.cores[sample.id]) for name in asked):
                return None
            for name in truths:
                told = truth_of(record.fields.get(name, ""))
                if sample.label in ("yes", "no") and told in ("yes", "no") and told != sample.label:
                    return None
        return [sample.id for sample, _ in zip(self.samples, records, strict=False)]

    # Messages -----------------------------------------------------------------------------------

    def _why_not(
        self, records: Sequence[Record], columns: Sequence[str], apart: Sequence[Apart]
    ) -> str:
        if apart:
            wrong = apart[0]
            return (
                f"the answers are to other questions: {'; '.join(wrong.examples)} ({wrong.count} "
                f"of {len(records)} differ in {wrong.column!r}); give the annotations of the same "
                "split."
            )
        if not columns:
            found = ", ".join(f'"{key}"' for key in records[0].fields)
            return (
                f'{records[0].where}: key "question_id" is missing; the keys found are {found}, '
                "and the questions beside the answers are not those of the annotations in order. "
                "Map the id with --columns id=THEIRS."
            )
        return self._foreign(records, columns)

    def _foreign(self, records: Sequence[Record], columns: Sequence[str]) -> str:
        """What is wrong with the ids of the column that comes nearest."""
        best = max(
            columns,
            key=lambda c: sum(c in r.fields and self._id(r, c) is not None for r in records),
        )
        lines: dict[Id, int] = {}
        foreign: list[Record] = []
        for record in records:
            if best not in record.fields:
                found = ", ".join(f'"{key}"' for key in record.fields)
                return f'{record.where}: key "{best}" is missing; the keys found are {found}.'
            i = self._id(record, best)
            if i is None:
                foreign.append(record)
            elif i in lines:
                return (
                    f"{record.where}: {best} {record.fields[best]} was already answered on line "
                    f"{lines[i]}; give one answer per question."
                )
            else:
                lines[i] = record.line
        cell = foreign[0].fields[best]
        kind = ""
        if isinstance(cell, str) and all(isinstance(i, int) for i in self.by_id):
            kind = "; it is text, the annotations have numbers"
        return (
            f"{foreign[0].where}: {best} {cell!r} is no {self.what} ({len(foreign)} such answers)"
            f"{kind}; check that both are of the same set."
        )


_HOW = {
    "_by_picture": "picture and {0}",
    "_by_words": "{0}",
    "_by_order": "the order of the annotations, where each {0} is the same",
}


def read_plain_id(fields: Mapping[str, Any], column: str) -> Id | None:
    """The id in a cell; None where it holds none."""
    cell = fields[column]
    if isinstance(cell, bool) or not isinstance(cell, int | float | str) or cell == "":
        return None
    return read_id(cell.strip() if isinstance(cell, str) else cell)


def _key(i: Id) -> Id:
    return read_id(i)


@lru_cache(maxsize=1 << 15)  # every system answers the same pictures
def _stem(name: str) -> str:
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    dot = last.rfind(".")
    return (last[:dot] if 0 < dot < len(last) - 1 else last).lower()


def _image_keys(name: Any) -> list[str]:
    """Names of a picture from the surest: with its folder, alone, without the ending."""
    if not isinstance(name, str) or not name:
        return []
    path = PurePosixPath(name.replace("\\", "/").lower())
    return list(dict.fromkeys(["/".join(path.parts[-2:]), path.name, path.stem]))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
