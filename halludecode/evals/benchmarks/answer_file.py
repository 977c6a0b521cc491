"""Answers made elsewhere, to any benchmark: read, matched with what was asked, judged.

What a file looks like is found out by `data.answer_columns` and `data.answer_matching`; a benchmark
only says how it names its samples (`Benchmark.answer_id`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halludecode.core.errors import InvalidData
from halludecode.evals.data.answer_columns import (
    CAPTIONS,
    answer_column,
    core,
    given_columns,
    question_columns,
)
from halludecode.evals.data.answer_matching import Matcher
from halludecode.evals.data.answer_records import answer_files, read_answer_records, stem_of
from halludecode.evals.data.answer_splits import Asked, by_split
from halludecode.evals.data.answers import naming
from halludecode.evals.data.columns import said
from halludecode.evals.data.final_answer import RULES, final_answer
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Id, Score, match

if TYPE_CHECKING:
    from halludecode.evals.benchmarks.base import Benchmark

OWN = frozenset({"id", "task", "strategy", "answer", "data_hash"})  # a line of a run folder


@dataclass(frozen=True)
class Given:
    """The answers of a file to the samples of one split.

    Args:
        answers: Raw words by sample id, in the order of the samples.
        column: Where they were taken from.
        how: What they were matched by.
        path: The file.
        others: Columns left aside, with what they are.
        where: File and line of every answer.
        aside: Records of the file that are of other splits.
        remark: What else must be known of the match.
        complete: Whether the file is a benchmark's own results, which say what was asked.
    """

    answers: dict[Id, str]
    column: str
    how: str
    path: Path
    others: Mapping[str, str] = field(default_factory=dict[str, str])
    where: Mapping[Id, str] = field(default_factory=dict[Id, str], repr=False)
    aside: int = 0
    complete: bool = False
    remark: str = ""

    @property
    def sentence(self) -> str:
        """What was taken for what."""
        left = "; ".join(f"{name!r} is {what}" for name, what in self.others.items())
        rest = f" ({left})" if left else ""
        more = f"; {self.aside} answers to other splits are left out" if self.aside else ""
        count = f"{len(self.answers)} answer{'' if len(self.answers) == 1 else 's'}"
        return (
            f"{self.path}: {count} from {self.column!r}{rest}, matched by "
            f"{self.how}{self.remark}{more}."
        )


# Reading ----------------------------------------------------------------------------------------


def load_records(
    benchmark: Benchmark, paths: Sequence[Path], system: str | None = None
) -> list[tuple[Path, list[Record]]]:
    """The records of every file.

    Args:
        benchmark: Lines of a run folder that are of another one are left out.
        paths: Files, or folders of files.
        system: Strategy whose lines are meant, where a run folder's samples hold several.

    Raises:
        InvalidData: A file cannot be read or a folder holds none.
    """
    found = []
    for path in paths:
        files = answer_files(path) if path.is_dir() else [path]
        if not files:
            raise InvalidData(
                f"{path} holds no file of answers (.jsonl, .json, .tsv, .csv, .xlsx)."
            )
        found += [(f, _own_lines(benchmark, f, read_answer_records(f), system)) for f in files]
    return found


def _own_lines(
    benchmark: Benchmark, path: Path, records: list[Record], system: str | None
) -> list[Record]:
    """Of lines of a run folder those of one strategy and one benchmark."""
    if not records[0].fields.keys() >= OWN:
        return records
    mine = [r for r in records if r.fields.get("task") == benchmark.name]
    for key, what in (("data", "data sources"), ("strategy", "strategies")):
        names = list(dict.fromkeys(str(r.fields.get(key)) for r in mine))
        if len(names) > 1 and key == "strategy" and system is not None:
            short = [n for n in names if n == system] or [
                n for n in names if n.partition("(")[0] == system and "+" not in n
            ]
            if len(short) == 1:
                mine = [r for r in mine if r.fields.get(key) == short[0]]
                continue
        if len(names) > 1:
            raise InvalidData(
                f"{path} holds answers of several {what}: {', '.join(names)}; keep those of one, "
                "or compare the run folder itself."
            )
    if not mine:
        there = ", ".join(dict.fromkeys(str(r.fields.get("task")) for r in records))
        raise InvalidData(f"{path} holds no answers to {benchmark.name}; it has {there}.")
    return mine


def read_answers(
    benchmark: Benchmark,
    files: Sequence[tuple[Path, list[Record]]],
    asked: Asked,
    columns: Mapping[str, str] | None = None,
) -> dict[str | None, Given]:
    """The answers to every split that the files answer.

    Args:
        benchmark: Says how samples are named.
        files: What `load_records` read.
        asked: Samples by split.
        columns: ``--columns``: our names to the file's.

    Raises:
        InvalidData: Columns or ids cannot be told, two files answer one split, or what is answered
            is not what was asked; the sentence names file and line.
    """
    given, found = given_columns(columns or {}), dict[str | None, Given]()
    for path, records in files:
        named = benchmark.split_named(path) if benchmark.splits else None
        if named is None and len(files) > 1 and stem_of(path) in asked:
            named = stem_of(path)
        part = asked
        if named is not None and (len(files) > 1 or len(asked) > 1) and named in asked:
            part = {named: asked[named]}
        if named is not None and named not in asked and set(asked) <= set(benchmark.splits):
            raise InvalidData(
                f"{path} is named after the {named} split and the annotations are of "
                f"{', '.join(map(str, asked))}; give those of the same split, or rename the file."
            )
        with naming(path):
            parts, told = by_split(records, part, benchmark.splits, benchmark.offsets, given)
            taken = sum(map(len, parts.values()))
            for split, own in parts.items():
                if split in found:
                    raise InvalidData(
                        f"{path} and {found[split].path} both answer the {split or benchmark.name} "
                        "questions; give one file a split."
                    )
                answers = _matched(benchmark, path, own, asked[split], given)
                how = f"{told} and {answers.how}" if told else answers.how
                aside = 0 if len(part) > 1 else len(records) - taken
                found[split] = replace(answers, how=how, aside=aside)
    return {split: found[split] for split in asked if split in found}


def _matched(
    benchmark: Benchmark,
    path: Path,
    records: Sequence[Record],
    samples: Sequence[Sample],
    given: Mapping[str, str],
) -> Given:
    matcher = Matcher(samples, benchmark.answer_id, benchmark.answers_what)
    captions = benchmark.text_kind == "caption"
    cores = [core(s.question) for s in samples]
    questions = question_columns(records, [c for c in cores if c])
    if given.get("answer") in questions:
        questions.remove(given["answer"])
    matched = matcher.match(records, questions, given)
    truths = [matcher.by_id[i].label for i in matched.ids]
    roles = answer_column(records, questions, truths, given, captions, str(path))
    texts = {
        i: _text(benchmark, r, roles.answer) for i, r in zip(matched.ids, records, strict=True)
    }
    ordered = {s.id: texts[s.id] for s in samples if s.id in texts}
    where = {i: record.where for i, record in zip(matched.ids, records, strict=True)}
    told = {"remark": matched.remark, "where": where, "others": roles.others}
    return Given(ordered, roles.answer, matched.how, path, **told)


def _text(benchmark: Benchmark, record: Record, name: str) -> str:
    """The answer of a record; of workbooks also a number."""
    value = record.fields.get(name)
    kinds = benchmark.answer_types
    if isinstance(value, str):
        return value
    if isinstance(value, kinds) and not isinstance(value, bool):
        return said(value)
    if record.where.partition(": ")[2].startswith("row") and value is not None:
        return said(value)
    return record.get(name, kind=str, what="the answer as a string")


# Judging ----------------------------------------------------------------------------------------


def check_rule(rule: str) -> None:
    """Refuses what is no rule of `final_answer`.

    Raises:
        InvalidData: The known ones are named.
    """
    if rule not in RULES:
        raise InvalidData(f"answers {rule!r} is unknown; it must be {' or '.join(RULES)}.")


def answered(benchmark: Benchmark, sample: Sample, text: str, rule: str) -> dict[str, Any]:
    """What the line of an answer holds, read as it is written or by what it finally says.

    Under ``final``, ``answer`` is what was scored and ``as_written`` the whole where it is more; an
    answer that never came is read as neither.
    """
    if rule == "as_written":
        return benchmark.answered(sample, text)
    final = final_answer(text, benchmark.text_kind)
    line = benchmark.answered(sample, final or "")
    if final is None and sample.label is not None:
        line |= {} if line["parsed"] == "other" else {"parsed": "other", "score": 0}
    return line if final == text else {**line, "as_written": text}


def changed_by_final(
    benchmark: Benchmark, samples: Sequence[Sample], answers: Mapping[Id, str]
) -> int:
    """How many answers ``final`` would read otherwise."""
    changed = 0
    for sample in samples:
        text = answers.get(sample.id)
        if text is None:
            continue
        final = final_answer(text, benchmark.text_kind)
        if final == text or (final is None and not text.strip()):
            continue
        if final is None or sample.label is None:
            changed += 1
        else:
            says = [benchmark.judge(sample, words)["parsed"] for words in (text, final)]
            changed += says[0] != says[1]
    return changed


def offer(changed: int, total: int) -> str:
    """The sentence that offers to read final answers."""
    return (
        f"{changed} of {total} answers would be read otherwise without their thoughts, tags, boxes "
        "and marks: --answers final."
    )


def lines_of(
    benchmark: Benchmark, samples: Sequence[Sample], answers: Mapping[Id, str], rule: str
) -> dict[Id, dict[str, Any]]:
    """Lines as a run folder has them, of the samples that are answered."""
    lines = {}
    for sample in benchmark.answerable(grouped(benchmark, samples), answers):
        asked = {"id": sample.id, "image": sample.image, "prompt": sample.question}
        lines[sample.id] = {**asked, **answered(benchmark, sample, answers[sample.id], rule)}
    return lines


def grouped(benchmark: Benchmark, samples: Sequence[Sample]) -> list[Sample]:
    """The samples with name and size of their groups, which lines hold where they count."""
    if not benchmark.whole:
        return list(samples)
    names = [benchmark.group(sample) for sample in samples]
    sizes = Counter(names)
    return [
        sample
        if (sample.group, sample.group_size) == (name, sizes[name])
        else replace(sample, group=name, group_size=sizes[name])
        for sample, name in zip(samples, names, strict=True)
    ]


def texts_of(
    benchmark: Benchmark, samples: Sequence[Sample], answers: Mapping[Id, str], rule: str
) -> tuple[dict[Id, str], frozenset[Id]]:
    """What of every answer is scored, and which answers never came: see `answered`."""
    if rule == "as_written":
        return dict(answers), frozenset()
    final = {i: final_answer(text, benchmark.text_kind) for i, text in answers.items()}
    unread = frozenset(i for i, text in final.items() if text is None)
    return {i: text or "" for i, text in final.items()}, unread


def check_missing(samples: Sequence[Sample], given: Given, allowed: bool) -> dict[str, int]:
    """``{"missing": n}``; without leave to miss any, {}.

    Raises:
        InvalidData: An answer is missing and must not be.
    """
    missing = sum(sample.id not in given.answers for sample in samples)
    if not allowed:
        with naming(given.path):
            match(
                [s.id for s in samples], given.answers, given.how if " " not in given.how else "id"
            )
    return {"missing": missing} if missing else {}


def score_answers(
    benchmark: Benchmark, given: Given, samples: Sequence[Sample], parser: str, rule: str
) -> Score:
    """Judges every answer as `eval` would, and scores the lines.

    Args:
        benchmark: Judges.
        given: The answers.
        samples: What was asked.
        parser: Only ``official``: the benchmark has one way of reading answers.
        rule: See `answered`.

    Raises:
        InvalidData: Answers are missing, or no group is answered whole.
    """
    title = benchmark.title or benchmark.name
    if parser != "official":
        raise InvalidData(f"parser {parser!r} is unknown for {title}; it has only official.")
    lines = lines_of(benchmark, samples, given.answers, rule)
    whole = benchmark.complete(lines)
    if not whole:
        raise InvalidData(f"{given.path} holds no group of questions that {title} counts whole.")
    with naming(given.path):
        score = benchmark.score(list(whole.values()))
    left_out = len(lines) - len(whole)
    return replace(score, notes={**score.notes, **({"left_out": left_out} if left_out else {})})


__all__ = [
    "CAPTIONS",
    "Given",
    "answered",
    "changed_by_final",
    "check_missing",
    "check_rule",
    "lines_of",
    "load_records",
    "match",
    "offer",
    "read_answers",
    "score_answers",
    "texts_of",
]
