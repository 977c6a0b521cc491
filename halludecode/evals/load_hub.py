"""Tasks from hub data sets: by id, as a folder in the hub's formats, or as a VLMEvalKit table.

A source is ``owner/name``, ``owner/name:config``, either with ``@revision`` (a branch, tag or
commit), a folder of Parquet, JSON, CSV or Arrow files, an image folder with metadata, or a ``.tsv``
file. Which columns mean what a benchmark says (`Benchmark.columns`). The commit that was read is
recorded.

With a limit the data are streamed: no more rows are read than the first groups take
(`Benchmark.enough`), no more pictures than are asked about.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from halludecode.core.errors import HalluDecodeError, InvalidData, MissingExtra
from halludecode.evals.benchmarks.base import Benchmark
from halludecode.evals.benchmarks.registry import BENCHMARKS
from halludecode.evals.data.columns import Columns, map_columns, refuse_null, said
from halludecode.evals.data.entries import Pictures, Selection, limited, make_unit
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import EvalImage, EvalUnit, Sample
from halludecode.evals.data.table_rows import Rows, Stored, Streamed, Table, name_of

HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
_SAVED = ("dataset_dict.json", "state.json")
_PATTERNS = ("*.parquet", "*.arrow", "metadata.jsonl", "metadata.csv", "*.jsonl", "*.csv")


def is_hub_copy(folder: Path) -> bool:
    """Whether a folder holds files in one of the hub's formats."""
    if any((folder / name).exists() for name in _SAVED):
        return True
    return any(next(folder.rglob(pattern), None) is not None for pattern in _PATTERNS)


def hub_units(source: str, selection: Selection, images: Path | None = None) -> list[EvalUnit]:
    """Reads a data set, by every benchmark that its columns and categories are of.

    Args:
        source: See the first lines of the module.
        selection: Benchmarks, prompts, limits, column map.
        images: What paths of pictures start from; None is the data set's own folder.

    Raises:
        InvalidData: It cannot be loaded, a column is missing (the found ones are listed), or a row
            cannot be used; the sentence names it.
        MissingExtra: ``datasets`` is not installed.
    """
    path = Path(source)
    if path.suffix == ".tsv":
        tables, data, revision = [Table(path)], path.stem, None
    else:
        with _explained(source):
            tables, data, revision = _open(source, stream=selection.limit is not None)
    for table in tables:
        table.folder = images or table.folder
    units: list[EvalUnit] = []
    with _explained(source):
        for benchmark in selection.benchmarks:
            found = _read(source, tables, benchmark, selection)
            if found.samples:
                units += _units(data, benchmark, found, selection, revision)
    return units


def pinned(source: str, benchmark: Benchmark) -> str:
    """A source as the benchmark pins it: its own data set's commit, where none is named."""
    asked = HUB_ID.fullmatch(source)
    name, _, commit = benchmark.hub.partition("@")
    if asked is None or asked["name"] != name or asked["revision"] or not commit:
        return source
    return f"{source}@{commit}"


def fetched(source: str, files: Sequence[str]) -> tuple[Path, str]:
    """Fetches files of a data set that is no table, and tells where they are.

    Args:
        source: ``owner/name@revision``.
        files: Patterns of their names.

    Returns:
        The folder, and the commit they are of.

    Raises:
        InvalidData: They cannot be fetched.
        MissingExtra: ``datasets`` is not installed.
    """
    _library(source)
    import huggingface_hub

    name, _, revision = source.partition("@")
    with _explained(source):
        folder = huggingface_hub.snapshot_download(
            name, repo_type="dataset", revision=revision or None, allow_patterns=list(files)
        )
    return Path(folder), Path(folder).name  # its folder of a snapshot is named after the commit


# Rows to samples --------------------------------------------------------------------------------


@dataclass
class _Found:
    """What one benchmark read, and where each picture stands (table, column, row, place)."""

    samples: dict[str | None, list[Sample]] = field(default_factory=dict)  # by split
    cells: dict[str, tuple[Rows, str, int, int | None]] = field(default_factory=dict)
    groups: dict[str | None, dict[str, None]] = field(default_factory=dict)

    def add(self, benchmark: Benchmark, sample: Sample) -> None:
        self.samples.setdefault(sample.split, []).append(sample)
        self.groups.setdefault(sample.split, {})[benchmark.group(sample)] = None

    def counted(self) -> dict[str | None, Sequence[str]]:
        return {split: list(names) for split, names in self.groups.items()}


def _read(
    source: str, tables: Sequence[Rows], benchmark: Benchmark, selection: Selection
) -> _Found:
    """What a benchmark finds in the tables, each read as far as the limit asks."""
    found = _Found()
    for table in tables:
        kind = _kind(source, table, benchmark, selection)
        if kind is not None:
            _collect(source, table, kind, benchmark, selection, found)
    return found


def _kind(source: str, table: Rows, benchmark: Benchmark, selection: Selection) -> Columns | None:
    """How a benchmark reads a table; None where the table is another's."""
    known = {*table.columns, *selection.columns}
    kind = benchmark.table(known)
    if kind is None:
        raise InvalidData(
            f"{source}: {benchmark.name} reads no tables; it needs {benchmark.what_it_needs}."
        )
    if kind.fits(known):
        return kind
    another = any(other.fits(known) for cls in BENCHMARKS for other in cls.columns)
    return None if another else kind


def _collect(
    source: str,
    table: Rows,
    kind: Columns,
    benchmark: Benchmark,
    selection: Selection,
    found: _Found,
) -> None:
    """Reads the rows of one table, up to where the limit is met."""
    columns = map_columns(kind, f"{source} ({table.name})", table.columns, selection.columns)
    shown = [name for name in kind.pictures if name in columns]
    named = _named_by(table, kind, columns)
    wanted = {n: c for n, c in columns.items() if n not in shown or named is None}
    limit = selection.limit
    for number, row in enumerate(table.words(list(dict.fromkeys(wanted.values())))):
        where = table.where(number)
        cells = {name: row[column] for name, column in wanted.items()}
        if kind.several:
            cells |= {name: _part_names(cells.get(name), where, table.folder) for name in shown}
        else:
            cells |= _picture_names(shown or kind.pictures[:1], named, table, cells, where)
        record = Record(where, cells, split=table.name)
        if benchmark.owns(record):
            refuse_null(kind, cells, where)
        samples = benchmark.samples(record)
        for sample in samples:
            found.add(benchmark, sample)
            for name in shown:
                if kind.several:
                    for place, part in enumerate(cells[name]):
                        found.cells.setdefault(part, (table, columns[name], number, place))
                elif sample.image is not None and (sample.image == cells[name] or not shown[1:]):
                    found.cells.setdefault(sample.image, (table, columns[name], number, None))
        if not samples:
            _check_category(record, kind, benchmark)
        elif limit is None or kind.apart:
            continue
        elif benchmark.enough(found.counted(), limit, kind):
            break


def _check_category(record: Record, kind: Columns, benchmark: Benchmark) -> None:
    """Refuses a row of a shared table that no benchmark takes."""
    if not benchmark.categories or "category" not in record.fields:
        return
    given = said(record.fields["category"])
    sharing = [cls for cls in BENCHMARKS if any(c.fits(kind.needs) for c in cls.columns)]
    readers = sorted(sharing, key=lambda cls: cls.name != benchmark.name)  # the asked one first
    known = {name for cls in readers for name in cls.categories}
    if not known & set(map(str.strip, given.split(","))):
        lists = [(cls.title or cls.name, ", ".join(cls.categories)) for cls in readers]
        told = " nor ".join(f"{title}'s ({names})" for title, names in lists if names)
        raise InvalidData(f"{record.where}: category {given!r} is neither {told}.")


def _named_by(table: Rows, kind: Columns, columns: Mapping[str, str]) -> str | None:
    """Our column that names a row's picture; None: the picture has to be looked at."""
    for name in kind.names:
        if name in columns:
            if name != "question_id" or kind.single:
                return name
            first = next(iter(table.words([columns[name]])), {})
            if "/" in str(first.get(columns[name])):
                return name
    shown = any(name in columns for name in kind.pictures)
    return None if shown or not kind.names else kind.names[0]


def _picture_names(
    shown: Sequence[str], named: str | None, table: Rows, cells: Mapping[str, Any], where: str
) -> dict[str, str]:
    """Our columns of pictures to the pictures' names."""
    if named is None:
        pictures = {column: cells.get(column) for column in shown}
        return {
            column: "" if picture is None else name_of(picture, where, table.folder)
            for column, picture in pictures.items()
        }
    name = str(cells.get(named) or "").removeprefix("./")
    bare = name.startswith("COCO_") and not Path(name).suffix  # POPE's column leaves it out
    return {shown[0]: f"{name}.jpg" if bare else name}


def _part_names(cell: Any, where: str, folder: Path | None) -> tuple[str, ...]:
    """Names of a list of pictures."""
    if not isinstance(cell, list) or not cell:
        raise InvalidData(f"{where}: {cell!r:.80} is no list of pictures.")
    return tuple(name_of(part, where, folder) for part in cell)


# Samples to units -------------------------------------------------------------------------------


def _units(
    data: str, benchmark: Benchmark, found: _Found, selection: Selection, revision: str | None
) -> list[EvalUnit]:
    splits = {
        split: benchmark.finish(benchmark.order(found.samples[split], data))
        for split in benchmark.taken(list(found.samples), data)
    }
    kept = [s for own in splits.values() for s in limited(benchmark, own, selection.limit)]
    shown = {name for s in kept if s.image is not None for name in (s.image, *s.more)}
    pictures = _pictures(found, shown, benchmark)
    return [
        make_unit(benchmark, data, split, own, pictures, selection, revision)
        for split, own in splits.items()
    ]


def _pictures(found: _Found, names: set[str], benchmark: Benchmark) -> Pictures:
    """Finds pictures by name; those of one table are fetched together."""
    tables: dict[tuple[int, str, int | None], tuple[Rows, list[int]]] = {}
    for name in names & found.cells.keys():
        table, column, number, place = found.cells[name]
        tables.setdefault((id(table), column, place), (table, []))[1].append(number)
    reads = {key: rows.pictures(key[1], numbers, key[2]) for key, (rows, numbers) in tables.items()}
    known: dict[str, EvalImage] = {}

    def find(name: str, where: str) -> EvalImage:
        if name not in found.cells:
            raise InvalidData(
                f"{where}: the data set has no column of pictures; {benchmark.name} needs "
                f"{benchmark.what_it_needs}."
            )
        if name not in known:
            table, column, number, place = found.cells[name]
            read = partial(reads[id(table), column, place], number)
            digest = hashlib.sha256(read()).hexdigest()[:16]
            known[name] = EvalImage(name, read, table.where(number), digest)
        return known[name]

    return find


# Loading ----------------------------------------------------------------------------------------


def _open(source: str, *, stream: bool) -> tuple[list[Rows], str, str | None]:
    """The splits of a data set, its name and the revision that was read."""
    datasets = _library(source)
    folder = Path(source) if Path(source).is_dir() else None
    if folder and any((folder / name).exists() for name in _SAVED):
        loaded = datasets.load_from_disk(str(folder))
        splits = dict(loaded) if isinstance(loaded, dict) else {"test": loaded}
        return _tables(source, folder, splits, Stored), folder.resolve().name, None
    asked = HUB_ID.fullmatch(source)
    if folder or asked is None:
        name, config, revision = str(folder or source), None, None
    else:
        name, config, revision = asked.group("name", "config", "revision")
    make = partial(datasets.load_dataset_builder, name, config, revision=revision)
    if folder and (files := _files_of_lines(folder)):
        make = partial(datasets.load_dataset_builder, **files)
        # Of a CSV file that is not read to its end, datasets leaves the handle open.
        stream = stream and files["path"] != "csv"
    builder = make()
    commit = builder.hash if re.fullmatch(r"[0-9a-f]{40}", str(builder.hash)) else revision
    if not folder:  # a branch may move while it is read
        make = partial(make, revision=commit)
    if stream:
        names = builder.as_streaming_dataset()
        splits = {split: partial(_stream, make, builder, split) for split in names}
        tables = _tables(source, folder, splits, Streamed, builder)
    else:
        builder.download_and_prepare()
        tables = _tables(source, folder, dict(builder.as_dataset()), Stored, builder)
    return tables, folder.resolve().name if folder else name, None if folder else commit


def _files_of_lines(folder: Path) -> dict[str, Any]:
    """JSON lines or CSV at the top of a folder, a split each: `datasets` may see only pictures."""
    if any(next(folder.rglob(name), None) for name in ("*.parquet", "metadata.*")):
        return {}
    for suffix, kind in ((".jsonl", "json"), (".csv", "csv")):
        if found := sorted(folder.glob(f"*{suffix}")):
            splits = {re.sub(r"\W+", "_", path.stem): [str(path)] for path in found}
            return {"path": kind, "data_files": splits}
    return {}


def _library(source: str) -> Any:
    import torch  # noqa: F401  # before datasets, which must not find a torchcodec it cannot load

    try:
        import datasets
    except ImportError:
        raise MissingExtra(
            f'{source} needs the datasets package: pip install "halludecode[eval]".'
        ) from None
    if sys.modules.get("torchcodec", datasets) is None:  # hidden after datasets was imported
        datasets.config.TORCHCODEC_AVAILABLE = False
    return datasets


def _stream(
    make: Callable[..., Any], builder: Any, split: str, columns: Sequence[str] | None
) -> Any:
    """A fresh stream of one split; of Parquet files only these columns are fetched."""
    if columns is None or not hasattr(builder.config, "columns"):
        return builder.as_streaming_dataset()[split]
    return make(columns=list(columns)).as_streaming_dataset()[split]


def _tables(
    source: str,
    folder: Path | None,
    splits: Mapping[str, Any],
    make: Callable[..., Rows],
    builder: Any = None,
) -> list[Rows]:
    """One table a split; the test split alone, where there is one."""
    if "test" in splits:
        splits = {"test": splits["test"]}
    files = (getattr(builder, "config", None) and builder.config.data_files) or {}
    return [
        make(split, rows, partial(_place, f"{source} ({split})", files.get(split, ())), folder)
        for split, rows in splits.items()
    ]


def _place(name: str, files: Sequence[str], number: int) -> str:
    """File and line, where a split is one file of lines; else its row, counted from 0."""
    lines = {".jsonl": 1, ".csv": 2}.get(Path(files[0]).suffix) if len(files) == 1 else None
    return f"{name}, row {number}" if lines is None else f"{files[0]}:{number + lines}"


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turns the errors of loading into one sentence; libraries' own lines are not shown."""
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    except HalluDecodeError:
        raise
    except Exception as error:  # datasets, huggingface_hub and pyarrow each have their own families
        general = type(error).__name__ == "DatasetGenerationError"  # says nothing itself
        told = str(error.__cause__ if general and error.__cause__ else error)
        reason = " ".join(told.split())[:200].rstrip(".")
        raise InvalidData(
            f"{source}: the data set cannot be loaded ({reason}); check name, revision and "
            "connection, or give the path of a folder that holds it."
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
