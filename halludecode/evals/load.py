"""Where questions and pictures come from: the testbed, a user's folder or files, a hub data set.

A data folder holds ``images/`` and what each benchmark looks for in it (`Benchmark.find`)::

    images/                          pictures
    pope/{random,popular,adversarial}.jsonl
    annotations/instances*.json      COCO instances (CHAIR); captions*.json beside it is optional
    mme/<subtask>/*.txt              MME's official layout, pictures beside
    NAME.jsonl                       any other benchmark's questions, unless it says otherwise

A hub data set that a benchmark calls its own is read at the commit that it pins (`Benchmark.hub`),
unless another is named.

A source serves the benchmarks it has files for; every one asked for must be served by some source.
``limit`` keeps the first N groups of every source and benchmark with all their questions: pictures,
unless a benchmark judges several together (`Benchmark.group`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from halludecode.core.errors import InvalidData
from halludecode.evals import load_hub as hub
from halludecode.evals.benchmarks.base import Benchmark
from halludecode.evals.benchmarks.registry import BENCHMARKS
from halludecode.evals.data.answer_records import stem_of
from halludecode.evals.data.entries import Selection, make_unit
from halludecode.evals.data.records import first_fields
from halludecode.evals.data.samples import EvalUnit

TESTBED = ("testbed-iid", "testbed-broken", "testbed-dev-iid", "testbed-dev-broken")
_COCO_NAME = re.compile(r"COCO_(train|val|test)\d{4}_\d{12}\.jpg$")


def load_units(
    sources: Sequence[str | Path],
    selection: Selection,
    images: Path | None = None,
    annotations: Path | None = None,
) -> list[EvalUnit]:
    """Reads every source.

    Args:
        sources: Testbed names, folders, hub ids or VLMEvalKit tables, see `hub`.
        selection: Benchmarks, prompts, limits.
        images: Folder of pictures; alone with ``annotations``, or in place of a folder's
            ``images/``.
        annotations: A question file of the one benchmark asked for.

    Raises:
        InvalidData: Files are missing, damaged or contradict each other; the sentence names them.
        MissingExtra: A hub data set is asked for and ``datasets`` is not installed.
    """
    check_places(sources, images, annotations)
    units: list[EvalUnit] = []
    if annotations is not None:
        units += _from_files(images, Path(annotations), selection)
    elif images is not None and not sources:
        units += _from_folder(Path(images), Path(images).resolve().name, selection, None)
    for source in sources:
        of_file = source in TESTBED and annotations is not None  # ``images`` are the file's then
        units += _from_source(str(source), selection, None if of_file else images)
    _check(units, selection, sources)
    order = [benchmark.name for benchmark in selection.benchmarks]
    return sorted(units, key=lambda unit: order.index(unit.task))  # stable: sources in order


def check_places(
    sources: Sequence[str | Path],
    images: str | Path | None = None,
    annotations: str | Path | None = None,
) -> None:
    """Whether all that is named is there, in time before anything is read, painted or loaded.

    Args:
        sources: As for `load_units`; a hub id is taken at its word.
        images: As there.
        annotations: As there.

    Raises:
        InvalidData: The first that is missing.
    """
    if images is not None and not Path(images).is_dir():
        raise InvalidData(f"{images}: no such folder of pictures.")
    if annotations is not None and not Path(annotations).exists():
        raise InvalidData(f"{annotations} does not exist; check the path.")
    for source in map(str, sources):
        if source in TESTBED:
            continue
        if source.startswith("testbed"):
            raise InvalidData(f"No data source {source!r}; the testbed has {', '.join(TESTBED)}.")
        path = Path(source)
        if path.is_file() and path.suffix != ".tsv":
            raise InvalidData(
                f"{source} is a file; give the folder it is in, or a VLMEvalKit .tsv."
            )
        if not path.exists() and not hub.HUB_ID.fullmatch(source):
            raise InvalidData(
                f"{source}: no such folder, and not a hub id (owner/name); "
                f"the testbed has {', '.join(TESTBED)}."
            )


def _check(units: Sequence[EvalUnit], selection: Selection, sources: Sequence[str | Path]) -> None:
    seen = set()
    for unit in units:
        if unit.key in seen:
            raise InvalidData(
                f"Two data sources are both named {unit.data!r}; rename one of the folders."
            )
        seen.add(unit.key)
    for benchmark in selection.benchmarks:
        if not any(unit.task == benchmark.name for unit in units):
            named = ", ".join(str(source) for source in sources) or "the files given"
            raise InvalidData(
                f"No questions for {benchmark.name} in {named}; it needs {benchmark.what_it_needs}."
            )


def _from_source(source: str, selection: Selection, images: Path | None) -> list[EvalUnit]:
    if source in TESTBED:
        from halludecode import testbed

        folder = testbed.dataset(source, selection.testbed_images)
        return _from_folder(folder, source, selection, images)
    folder = Path(source)
    if folder.is_dir() and (_is_ours(folder, selection) or not hub.is_hub_copy(folder)):
        return _from_folder(folder, folder.resolve().name, selection, images)
    units = []
    for benchmark in selection.benchmarks:  # each has its own commit of its own data set
        alone = replace(selection, benchmarks=[benchmark])
        own = hub.pinned(source, benchmark)
        if benchmark.hub_files and benchmark.hub.partition("@")[0] == own.partition("@")[0]:
            fetched, commit = hub.fetched(own, benchmark.hub_files)
            name = own.partition("@")[0]
            made = _from_folder(fetched, name, alone, images)
            units += [replace(unit, revision=commit) for unit in made]
        elif own != source:
            units += hub.hub_units(own, alone, images)
    rest = [b for b in selection.benchmarks if not any(u.task == b.name for u in units)]
    if rest:
        units += hub.hub_units(source, replace(selection, benchmarks=rest), images)
    return units


def _is_ours(folder: Path, selection: Selection) -> bool:
    """Whether a folder has files of a benchmark, whatever else is in it."""
    for benchmark in _asked_first(selection.benchmarks):
        try:
            if benchmark.find(folder):
                return True
        except InvalidData:  # it has some, and something is wrong with them
            return True
    return False


def _asked_first(benchmarks: Sequence[Benchmark]) -> Iterable[Benchmark]:
    """The benchmarks asked for, then all others."""
    asked = {benchmark.name for benchmark in benchmarks}
    yield from benchmarks
    yield from (cls() for cls in BENCHMARKS if cls.name not in asked)


def _from_folder(
    folder: Path, data: str, selection: Selection, images: Path | None
) -> list[EvalUnit]:
    units = []
    for benchmark in selection.benchmarks:
        for split, path in benchmark.find(folder).items():
            units.append(_unit(benchmark, path, data, split, selection, folder, images))
    return units


def _unit(
    benchmark: Benchmark,
    path: Path,
    data: str | None,
    split: str | None,
    selection: Selection,
    folder: Path,
    images: Path | None,
) -> EvalUnit:
    """The unit of one question file; without a name of the source, of files the user named."""
    bound = benchmark.bound_to(path)
    listed = images if data is None else None
    samples = bound.load(path, limit=selection.limit, images=listed)
    if not samples:
        raise InvalidData(f"{images or path} holds none of the pictures that {path} lists.")
    if data is None:
        data = data_name(samples[0].image, images or folder)
    samples = bound.finish(bound.order(samples, str(path)))
    pictures = bound.pictures(path, folder, images)
    return make_unit(bound, data, split, samples, pictures, selection, path=path)


def data_name(image: str | None, place: Path | None) -> str:
    """What files without a name of their own are called: after COCO, or where they lie.

    Args:
        image: Name of one of their pictures.
        place: Folder of the pictures, or the question file; None is COCO's shipped truth.
    """
    if place is None or _COCO_NAME.search(str(image)):
        return "coco"
    return place.resolve().name if place.is_dir() else stem_of(place)


def _from_files(images: Path | None, annotations: Path, selection: Selection) -> list[EvalUnit]:
    """``--images DIR --annotations FILE``: the file's own shape says which benchmark it serves."""
    if images is None:
        raise InvalidData(f"{annotations} needs the folder of its pictures: add --images DIR.")
    asked = list(selection.benchmarks)
    first = first_fields(annotations)
    owner = next((b for b in _asked_first(asked) if b.reads(annotations, first)), asked[0])
    if asked != [owner]:
        names = ", ".join(benchmark.name for benchmark in asked)
        raise InvalidData(
            f"{annotations} holds {owner.name} annotations, and the tasks asked for are {names}; "
            f"use --tasks {owner.name}, or a folder (--data) for several."
        )
    split = owner.split_of(annotations)
    return [_unit(owner, annotations, None, split, selection, annotations.parent, images)]
