"""Tasks from hub data sets: by id, as a folder in the hub's formats, or as a VLMEvalKit table.

A source is ``owner/name``, ``owner/name:config``, either with ``@revision`` (a branch, tag or
commit), a folder of Parquet, JSON, CSV or Arrow files, an image folder with metadata, or a ``.tsv``
file. Which columns mean what says `columns`. The commit that was read is recorded.

With a limit the data are streamed: no more rows are read than the first pictures take, no more
pictures than are asked about. Questions about one picture are neighbours in POPE's and MME's sets,
which tells when a picture is complete; of AMBER's and HallusionBench's, all words are read.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from halludecode.core.errors import HalluDecodeError, InvalidData, MissingExtra
from halludecode.evals.benchmarks import folder_tasks as benchmarks
from halludecode.evals.data.columns import Key, Shape, map_columns, shape_of
from halludecode.evals.data.entries import Entry, Pictures, Selection, in_turn, limited, make_unit
from halludecode.evals.data.image_ids import check_ids
from halludecode.evals.data.samples import EvalImage, EvalUnit
from halludecode.evals.data.table_rows import Rows, Stored, Streamed, Table, name_of
from halludecode.evals.presets import POPE_SPLITS

HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
_SAVED = ("dataset_dict.json", "state.json")
_PATTERNS = ("*.parquet", "*.arrow", "metadata.jsonl", "metadata.csv", "*.jsonl", "*.csv")


def is_hub_copy(folder: Path) -> bool:
    """Whether a folder holds files in one of the hub's formats."""
    if any((folder / name).exists() for name in _SAVED):
        return True
    return any(next(folder.rglob(pattern), None) is not None for pattern in _PATTERNS)


def hub_units(source: str, selection: Selection, images: Path | None = None) -> list[EvalUnit]:
    """Reads a data set and finds out from its columns and categories which tasks it serves.

    Args:
        source: See the first lines of the module.
        selection: Tasks, prompts, limits, column map.
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
    found = _Found({})
    with _explained(source):
        for table in tables:
            _collect(source, table, selection, found)
        return _units(data, found, selection, revision)


# Rows to entries --------------------------------------------------------------------------------


@dataclass
class _Found:
    """What was read: entries by unit, and where each picture stands (table, column, row)."""

    entries: dict[Key, list[Entry]]
    cells: dict[str, tuple[Rows, str, int]] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)  # questions about an MME picture so far

    def add(self, key: Key, entry: Entry) -> None:
        if key[0] == "mme":  # one id for the questions of a picture
            k = self.asked[str(entry.id)] = self.asked.get(str(entry.id), 0) + 1
            entry = replace(entry, id=f"{entry.id}#{k}")
        self.entries.setdefault(key, []).append(entry)


def _collect(source: str, table: Rows, selection: Selection, found: _Found) -> None:
    """Reads the rows of one table, up to where the limit is met."""
    shape = shape_of(table.columns, selection.tasks, selection.columns)
    if not set(shape.tasks) & set(selection.tasks):
        return
    columns = map_columns(shape, f"{source} ({table.name})", table.columns, selection.columns)
    families = selection.families.get("gt_family", "wordnet")
    if shape.tasks == ("chair",) and "objects" not in columns and families != "wordnet":
        raise InvalidData(
            f"{source}: without a column of objects the shipped sets are the truth, which are of "
            f"the wordnet family, not {families!r}."
        )
    named = _named_by(table, shape, columns)
    wanted = {name: c for name, c in columns.items() if name != "image" or named is None}
    seen = _Seen(shape, selection)
    for number, row in enumerate(table.words(list(dict.fromkeys(wanted.values())))):
        where = table.where(number)
        cells = {name: row[column] for name, column in wanted.items()}
        picture = _picture_name(named, table, cells, where)
        cells.pop("image", None)
        for key, entry in shape.read(cells, where, picture, table.name):
            if key[0] in selection.tasks:
                found.add(key, entry)
                if entry.image is not None and "image" in columns:
                    found.cells.setdefault(entry.image, (table, columns["image"], number))
                seen.add(key, entry)
        if seen.enough():
            break


def _named_by(table: Rows, shape: Shape, columns: Mapping[str, str]) -> str | None:
    """Our column that names a row's picture; None: the picture has to be looked at."""
    for name in shape.names:
        if name in columns:
            if name != "question_id" or shape.single:
                return name
            first = next(iter(table.words([columns[name]])), {})
            if "/" in str(first.get(columns[name])):
                return name
    return None if "image" in columns else shape.names[0]


def _picture_name(named: str | None, table: Rows, cells: Mapping[str, Any], where: str) -> str:
    if named is None:
        return "" if cells["image"] is None else name_of(cells["image"], where, table.folder)
    name = str(cells.get(named) or "").removeprefix("./")
    bare = name.startswith("COCO_") and not Path(name).suffix  # POPE's column leaves it out
    return f"{name}.jpg" if bare else name


class _Seen:
    """Tells when the rows read so far hold all that a limit takes."""

    def __init__(self, shape: Shape, selection: Selection) -> None:
        self._shape, self._selection = shape, selection
        self._pictures: dict[tuple[Key, str], dict[str, None]] = {}

    def add(self, key: Key, entry: Entry) -> None:
        part = entry.whole.partition("/")[0] if key[0] == "mme" else ""
        self._pictures.setdefault((key, part), {})[entry.whole] = None

    def enough(self) -> bool:
        limit = self._selection.limit
        if limit is None or self._shape.apart or self._selection.image_ids:
            return False
        if self._shape.single:
            return any(len(pictures) >= limit for pictures in self._pictures.values())
        counts = {key: len(pictures) for key, pictures in self._pictures.items()}
        tasks = {key[0] for key, _ in counts}
        if "amber" in tasks or not tasks:  # its questions about a picture stand in several places
            return False
        return all(getattr(self, f"_{task}")(counts, limit) for task in tasks)

    def _pope(self, counts: Mapping[tuple[Key, str], int], limit: int) -> bool:
        own = {key[1]: n for (key, _), n in counts.items() if key[0] == "pope"}
        # Other splits may follow, unless the data set has only its own name for one.
        wanted = set(self._selection.splits or POPE_SPLITS) if own.keys() & {*POPE_SPLITS} else own
        return all(own.get(split, 0) > limit for split in wanted)

    def _mme(self, counts: Mapping[tuple[Key, str], int], limit: int) -> bool:
        # The subtasks' first pictures are taken; a subtask that has begun ends the one before.
        own = [n for (key, _), n in counts.items() if key[0] == "mme"]
        return len(own) > limit or (len(own) == limit and own[-1] > 1)


# Entries to units -------------------------------------------------------------------------------


def _units(data: str, found: _Found, selection: Selection, revision: str | None) -> list[EvalUnit]:
    groups = {key: _ordered(data, key, own, selection) for key, own in found.entries.items()}
    pictures = _pictures(found, _kept(groups.values(), selection.limit))
    units = []
    for (task, split), entries in _in_order(data, groups, selection):
        if task in benchmarks.UNITS:
            made = benchmarks.unit_of(task, data, entries, pictures, selection, revision)
        else:
            made = make_unit(task, data, split, entries, pictures, selection, revision)
        units.append(made)
    return units


def _ordered(data: str, key: Key, entries: list[Entry], selection: Selection) -> list[Entry]:
    """Entries in the order a limit takes them."""
    if key[0] == "mme":
        return in_turn(entries)
    if key[0] == "chair" and selection.image_ids:
        by_id = {entry.id: entry for entry in entries}
        check_ids(selection.image_ids, [int(i) for i in by_id], data)
        return [by_id[i] for i in selection.image_ids]
    return entries


def _in_order(
    data: str, groups: Mapping[Key, list[Entry]], selection: Selection
) -> Iterator[tuple[Key, list[Entry]]]:
    """Units' entries, POPE's splits in its own order and only those asked for."""
    splits = [split for task, split in groups if task == "pope"]
    missing = [name for name in selection.splits if name not in splits] if splits else []
    if missing:
        raise InvalidData(f"{data}: no {missing[0]} split; found {', '.join(map(str, splits))}.")
    order = [("pope", split) for split in POPE_SPLITS if ("pope", split) in groups]
    for key in [*order, *(key for key in groups if key not in order)]:
        if key[0] != "pope" or not selection.splits or key[1] in selection.splits:
            yield key, groups[key]


def _kept(groups: Iterable[Sequence[Entry]], limit: int | None) -> set[str]:
    return {e.image for entries in groups for e in limited(entries, limit) if e.image is not None}


def _pictures(found: _Found, names: set[str]) -> Pictures:
    """Finds pictures by name; those of one table are fetched together."""
    tables: dict[tuple[int, str], tuple[Rows, list[int]]] = {}
    for name in names & found.cells.keys():
        table, column, number = found.cells[name]
        tables.setdefault((id(table), column), (table, []))[1].append(number)
    reads = {key: rows.pictures(key[1], numbers) for key, (rows, numbers) in tables.items()}
    known: dict[str, EvalImage] = {}

    def find(name: str, where: str) -> EvalImage:
        if name not in found.cells:
            raise InvalidData(f"{where}: the data set has no column of pictures.")
        if name not in known:
            table, column, number = found.cells[name]
            read = partial(reads[id(table), column], number)
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
