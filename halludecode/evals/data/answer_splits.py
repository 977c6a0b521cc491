"""Which split of a benchmark a record of an answer file belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.data.answer_columns import asks, core, names_of, question_columns
from halludecode.evals.data.answer_matching import IDS
from halludecode.evals.data.columns import read_id, said
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample

OFFSET = 10_000_000  # by which LLaVA sets the ids of its file's parts apart
Asked = Mapping[str | None, Sequence[Sample]]


def by_split(
    records: Sequence[Record],
    asked: Asked,
    splits: Sequence[str],
    offsets: Sequence[str],
    given: Mapping[str, str],
) -> tuple[dict[str | None, list[Record]], str]:
    """The records of every split asked about.

    Args:
        records: A file of answers.
        asked: The samples by split.
        splits: All splits the benchmark has; () for one without.
        offsets: Splits in the order of the offsets of their ids, where these are customary.
        given: ``--columns`` under our names.

    Returns:
        The records, and what told them apart, in words; "" where nothing had to.

    Raises:
        InvalidData: There are several splits and nothing tells them apart.
    """
    only = next(iter(asked))
    if len(asked) == 1 and only not in splits:
        return {only: list(records)}, ""
    column = given.get("split") or _split_column(records, {*splits, *map(str, asked)})
    if column is not None:
        return _by_column(records, asked, column), column
    parts, names = _parts(records)
    if len(parts) == 1:
        if len(asked) == 1:
            return {only: list(records)}, ""
        raise InvalidData(
            f"{records[0].where}: nothing says which split the answers are of, and the annotations "
            f"hold {', '.join(map(str, asked))}; give one question file, a folder with a file a "
            "split, or --columns split=THEIRS."
        )
    return _by_words(
        parts, names, asked, offsets
    ), "the offsets of the ids" if names else "their order"


def _split_column(records: Sequence[Record], splits: set[str]) -> str | None:
    """A column whose cells name splits, perhaps several by commas."""
    for name in names_of(records):
        cells = [record.fields.get(name) for record in records]
        if all(isinstance(c, str) and c and set(_named(c)) <= splits for c in cells):
            return name
    return None


def _named(cell: Any) -> list[str]:
    return [part.strip() for part in said(cell).split(",") if part.strip()]


def _by_column(
    records: Sequence[Record], asked: Asked, column: str
) -> dict[str | None, list[Record]]:
    found: dict[str | None, list[Record]] = {split: [] for split in asked}
    for record in records:
        for name in _named(record.fields.get(column, "")):
            if name in found:
                found[name].append(record)
    empty = [str(split) for split, own in found.items() if not own]
    if len(empty) == len(found):
        there = sorted({name for r in records for name in _named(r.fields.get(column, ""))})
        raise InvalidData(
            f"{records[0].where}: {column!r} says that the answers are of {', '.join(there)}, and "
            f"the annotations are of {', '.join(empty)}; give the annotations of the same split."
        )
    return {split: own for split, own in found.items() if own}


def _parts(records: Sequence[Record]) -> tuple[list[list[Record]], list[int]]:
    """Parts of a file by the offset of their ids, or cut where ids begin anew; their offsets."""
    column = next((name for name in IDS if name in records[0].fields), None)
    ids = [read_id(r.fields[column]) for r in records if column is not None and column in r.fields]
    if len(ids) < len(records):
        return [list(records)], []
    if all(isinstance(i, int) for i in ids) and max(map(int, ids)) >= OFFSET:
        groups: dict[int, list[Record]] = {}
        for i, record in zip(ids, records, strict=True):
            groups.setdefault(int(i) // OFFSET, []).append(record)
        return [
            [_moved(r, str(column), offset) for r in groups[offset]] for offset in sorted(groups)
        ], sorted(groups)
    blocks: list[list[Record]] = [[]]
    seen: set[Any] = set()
    for i, record in zip(ids, records, strict=True):
        if i in seen:
            blocks.append([])
            seen = set()
        seen.add(i)
        blocks[-1].append(record)
    return blocks, []


def _moved(record: Record, column: str, offset: int) -> Record:
    """A record with its id as the annotations have it."""
    i = int(read_id(record.fields[column])) - offset * OFFSET
    return Record(record.where, {**record.fields, column: i}, record.line, record.split)


def _by_words(
    parts: Sequence[list[Record]],
    names: Sequence[int],
    asked: Asked,
    offsets: Sequence[str],
) -> dict[str | None, list[Record]]:
    """Every part with the split whose questions are its own."""
    fitting = [[split for split, own in asked.items() if _fits(part, own)] for part in parts]
    usual = [offsets[n] if n < len(offsets) else None for n in names] or [None] * len(parts)
    found: dict[str | None, list[Record]] = {}
    for part, splits, own in zip(parts, fitting, usual, strict=True):
        # The words go before the customary offsets, which only tell apart what has the same words.
        others = [split for split in splits if split not in usual or split == own]
        if len(splits) > 1 or (len(asked) == 1 and sum(map(len, fitting)) > 1):
            splits = others
        if len(splits) == 1 and splits[0] not in found:
            found[splits[0]] = part
        elif len(asked) == 1 and not splits:
            continue  # another split's answers in the same file
        else:
            what = "no split" if not splits else " and ".join(map(str, splits))
            raise InvalidData(
                f"{part[0].where}: the answers from here on fit {what} of the annotations "
                f"({', '.join(map(str, asked))}); give a file a split, or --columns split=THEIRS."
            )
    if not found:
        raise InvalidData(
            f"{parts[0][0].where}: none of the file's {len(parts)} parts answers the questions of "
            f"the {next(iter(asked))} split; give the annotations of the same split."
        )
    return found


def _fits(part: Sequence[Record], samples: Sequence[Sample]) -> bool:
    """Whether a part has the questions of a split."""
    cores = {s.id: core(s.question) for s in samples}
    column = next((name for name in IDS if name in part[0].fields), None)
    asked = question_columns(part, list(cores.values()))
    if not asked or column is None:
        return column is not None
    pairs = ((r.fields.get(asked[0]), cores.get(read_id(r.fields[column]))) for r in part)
    return all(question is not None and asks(cell, question) for cell, question in pairs)
